"""Real trained networks reproduce, on real data, the accuracy that their authors or OpenCV measured."""

import numpy as np
import pytest

from autonuq import Net
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.passes import capabilities, fold_batch_norm


def fashion(shared):
    with np.load(shared / "data/fashion_test.npz") as data:
        return data["x"][:, None] / np.float32(255), data["y"]


def mnist(shared):
    with np.load(shared / "data/mnist_test.npz") as data:
        return data["x"].reshape(-1, 1, 28, 28) / np.float32(256), data["y"]


def cifar(shared):
    with np.load(shared / "data/cifar10_test.npz") as data:
        return data["x"].transpose(0, 3, 1, 2) - data["mean_rgb_chw"], data["y"]


def imagenet(shared):
    from PIL import Image

    folder = shared / "data/imagenet200"
    rows = [line.split() for line in (folder / "labels.txt").read_text().splitlines()]
    images = np.empty((len(rows), 3, 227, 227), np.float32)
    for index, (name, _) in enumerate(rows):
        pixels = np.asarray(Image.open(folder / name).convert("RGB"), np.float32)
        images[index] = pixels[14:241, 14:241, ::-1].transpose(2, 0, 1) - np.array([104, 117, 123])[:, None, None]
    return images, np.array([int(label) for _, label in rows])


def top1(net, images, labels, batch=100):
    (name,), (output,) = net.inputs, net.outputs
    net.blobs[name].reshape(batch, *images.shape[1:])
    net.reshape()
    correct = 0
    for start in range(0, len(images), batch):
        scores = net.forward(**{name: images[start : start + batch]})[output].reshape(batch, -1)
        correct += int((scores.argmax(1) == labels[start : start + batch]).sum())
    return 100 * correct / len(images)


NETWORKS = [
    ("lenet-fashion", fashion, 91.24),
    pytest.param("resnet20-fashion", fashion, 93.12, marks=pytest.mark.slow),
    ("lenet-mnist", mnist, 99.14),
    ("cifar10-quick", cifar, 74.53),  # of the first 4,000 images; 74.15 of all 10,000
    pytest.param("squeezenet-v1.0", imagenet, 69.0, marks=pytest.mark.slow),  # of these 200, as OpenCV; 67.0 of 1,000
]


@pytest.mark.parametrize(("name", "data", "expected"), NETWORKS)
def test_top1(shared, name, data, expected):
    folder = shared / "models" / name
    net = Net(folder / "deploy.prototxt", folder / "weights.caffemodel")
    assert top1(net, *data(shared)) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", ["resnet20-fashion"])
def test_folding_changes_outputs_by_rounding_only(shared, tmp_path, name):
    folder = shared / "models" / name
    graph = load_graph(folder / "deploy.prototxt", folder / "weights.caffemodel")
    folded = fold_batch_norm(graph)
    assert not {layer.type for layer in folded.layers} & {"BatchNorm", "Scale"}
    write_model(folded, tmp_path / "folded.prototxt", tmp_path / "folded.caffemodel")
    nets = [
        Net(folder / "deploy.prototxt", folder / "weights.caffemodel"),
        Net(tmp_path / "folded.prototxt", tmp_path / "folded.caffemodel"),
    ]
    image = fashion(shared)[0][:1]
    before, after = (net.forward(data=image, blobs=["fc10"])["fc10"] for net in nets)
    assert after == pytest.approx(before, rel=1e-4, abs=1e-4)


def test_every_weight_of_resnet20_can_carry_a_codebook(shared):
    folder = shared / "models/resnet20-fashion"
    found = capabilities(load_graph(folder / "deploy.prototxt", folder / "weights.caffemodel"))
    assert sum(capability.nuq for capability in found) == 22
