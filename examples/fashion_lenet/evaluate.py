"""Top-1 accuracy of LeNet on Fashion-MNIST: preprocess, run, count.

The shape of any evaluator: a class whose `eval_model` runs a given number of batches of a given network and returns
one number, and whose `is_satisfied` says whether a number is good enough beside the original one. The number knows what
each image scored, so that losses have errors; every fourth image is held back from the search, for `HeldBack`.
"""

from pathlib import Path

import numpy as np

import autonuq as nuq

BATCH_SIZE = 100


class Top1(nuq.Evaluator):
    """Share of images whose largest probability is at their label."""

    unit = ("points", 100, "images")
    held_back = False

    def __init__(self, evaluate_batch_num):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        with np.load(Path(__file__).parent / "fashion.npz") as data:
            held_back = np.arange(len(data["test_labels"])) % 4 == 3
            chosen = held_back if self.held_back else ~held_back
            self.test = data["test_images"][chosen], data["test_labels"][chosen]
            self.calibration = data["calibration_images"], data["calibration_labels"]

    def eval_model(self, model_file, weights_file, batch_num):
        """Score on test images; any other number of batches is the calibration pass, on training images."""
        images, labels = self.test if batch_num == self.evaluate_batch_num else self.calibration
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        net.blobs["data"].reshape(BATCH_SIZE, 1, 28, 28)
        net.reshape()
        correct = []
        for start in range(0, batch_num * BATCH_SIZE, BATCH_SIZE):
            batch = np.arange(start, start + BATCH_SIZE) % len(images)
            net.blobs["data"].data[:, 0] = images[batch] / np.float32(255)
            probabilities = net.forward()["prob"]
            correct.append(probabilities.argmax(axis=1) == labels[batch])
        return nuq.Score(np.mean(correct), samples=np.concatenate(correct))

    def is_satisfied(self, original_metric, new_metric):
        """Accept a loss of less than 1 point."""
        return (original_metric - new_metric) * 100 < 1


class HeldBack(Top1):
    """The same on the images that the search never sees."""

    held_back = True
