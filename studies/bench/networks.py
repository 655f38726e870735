"""The five real networks of the benchmarks, with their labelled data, from a folder that holds both.

The folder has `models/NAME/deploy.prototxt`, `models/NAME/weights.caffemodel` and `data/`: `--shared` of each bench.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import autonuq as nuq

Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
BATCH = 100


def _images(values, scale):
    return values.reshape(-1, 1, 28, 28) / np.float32(scale)


def fashion(data: Path) -> Data:
    with np.load(data / "fashion_test.npz") as test, np.load(data / "fashion_calib.npz") as calibration:
        return _images(test["x"], 255), test["y"], _images(calibration["x"], 255)


def mnist(data: Path) -> Data:
    """There are no calibration images of its own: the last 1,000 test images serve, and are not scored."""
    with np.load(data / "mnist_test.npz") as test:
        images = _images(test["x"], 256)
        return images[:9000], test["y"][:9000], images[9000:]


def cifar(data: Path) -> Data:
    with np.load(data / "cifar10_test.npz") as test, np.load(data / "cifar10_calib.npz") as calibration:
        mean = test["mean_rgb_chw"]
        return (
            test["x"].transpose(0, 3, 1, 2) - mean,
            test["y"],
            np.float32(calibration["x"].transpose(0, 3, 1, 2) - mean),
        )


def imagenet(data: Path) -> Data:
    """200 images, all scored; every second one also calibrates."""
    from PIL import Image

    rows = [line.split() for line in (data / "imagenet200/labels.txt").read_text().splitlines()]
    images = np.empty((len(rows), 3, 227, 227), np.float32)
    for index, (name, _) in enumerate(rows):
        pixels = np.asarray(Image.open(data / "imagenet200" / name).convert("RGB"), np.float32)[14:241, 14:241]
        images[index] = pixels[..., ::-1].transpose(2, 0, 1) - np.float32([104, 117, 123])[:, None, None]
    labels = np.array([int(label) for _, label in rows])
    return images, labels, images[1::2]


def efficientnet(data: Path) -> Data:
    """400 images, all scored; every second one also calibrates."""
    from PIL import Image

    rows = [line.split() for line in (data / "imagenet400/labels.txt").read_text().splitlines()]
    images = np.empty((len(rows), 3, 224, 224), np.float32)
    for index, (name, _) in enumerate(rows):
        picture = Image.open(data / "imagenet400" / name).convert("RGB")
        left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
        pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
        images[index] = (pixels.transpose(2, 0, 1) - 127) / 128
    return images, np.array([int(label) for _, label in rows]), images[1::2]


NETWORKS: dict[str, Callable[[Path], Data]] = {
    "lenet-fashion": fashion,
    "resnet20-fashion": fashion,
    "lenet-mnist": mnist,
    "cifar10-quick": cifar,
    "squeezenet-v1.0": imagenet,
}


class Top1(nuq.Evaluator):
    """Top-1 in points; less than one point may be lost. Networks called modified_model are calibrated, not scored."""

    def __init__(self, data: Data):
        super().__init__(evaluate_batch_num=len(data[0]) // BATCH)
        self.images, self.labels, self.calibration = data
        self.batches_scored = 0

    def eval_model(self, model_file, weights_file, batch_num):
        if Path(model_file).stem == "modified_model":
            self.correct(model_file, weights_file, batch_num, self.calibration, np.zeros(len(self.calibration)))
            return 0.0
        self.batches_scored += batch_num
        correct = self.correct(model_file, weights_file, batch_num, self.images, self.labels)
        return 100 * sum(correct) / (batch_num * BATCH)

    def correct(self, model_file, weights_file, batch_num, images, labels):
        """Return the number of correct images of each batch."""
        net = nuq.Net(model_file, weights_file)
        (name,), (output,) = net.inputs, net.outputs
        net.blobs[name].reshape(BATCH, *images.shape[1:])
        net.reshape()
        counts = []
        for start in range(0, batch_num * BATCH, BATCH):
            scores = net.forward(**{name: images[start : start + BATCH]})[output].reshape(BATCH, -1)
            counts.append(int((scores.argmax(axis=1) == labels[start : start + BATCH]).sum()))
        return counts

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 1

    def standard_error(self, metric):
        share = metric / 100
        return 100 * (share * (1 - share) / (self.evaluate_batch_num * BATCH)) ** 0.5
