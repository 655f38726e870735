"""Real networks score the same wherever their exports run: our runtime, Python layers, OpenCV, plain onnxruntime."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from autonuq import Net
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.formats import export, onnx_file, pycaffe_pair, weights_only_pair
from autonuq.compress.outputs import fake_quant_pair
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import ModelPair, load_graph

BATCH = 50


def gray(shared, file, scale):
    with np.load(shared / "data" / file) as data:
        return np.float32(data["x"][:1000, None]) / np.float32(scale), data["y"][:1000]


def cifar(shared):
    with np.load(shared / "data/cifar10_test.npz") as data:
        return np.float32(data["x"].transpose(0, 3, 1, 2) - data["mean_rgb_chw"])[:1000], data["y"][:1000]


def imagenet(shared):
    image = pytest.importorskip("PIL.Image")
    folder = shared / "data/imagenet200"
    rows = [line.split() for line in (folder / "labels.txt").read_text().splitlines()]
    pixels = [np.asarray(image.open(folder / name).convert("RGB"))[14:241, 14:241, ::-1] for name, _ in rows]
    images = np.stack(pixels).transpose(0, 3, 1, 2) - np.float32([104, 117, 123])[:, None, None]
    return np.float32(images), np.array([int(label) for _, label in rows])


NETWORKS = {
    "lenet-fashion": lambda shared: gray(shared, "fashion_test.npz", 255),
    "resnet20-fashion": lambda shared: gray(shared, "fashion_test.npz", 255),
    "lenet-mnist": lambda shared: gray(shared, "mnist_test.npz", 256),
    "cifar10-quick": cifar,
    "squeezenet-v1.0": imagenet,
}


def scores(pair, images):
    net = Net(pair.model, pair.weights)
    (name,), (output,) = net.inputs, net.outputs
    net.blobs[name].reshape(BATCH, *images.shape[1:])
    net.reshape()
    parts = [net.forward(**{name: images[i : i + BATCH]})[output].copy() for i in range(0, len(images), BATCH)]
    return np.concatenate(parts).reshape(len(images), -1)


def onnx_scores(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape[0] == "batch"
    parts = [session.run(None, {entry.name: images[i : i + BATCH]})[0] for i in range(0, len(images), BATCH)]
    return np.concatenate(parts).reshape(len(images), -1)


@pytest.mark.parametrize(
    "name", [name if name == "lenet-fashion" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_top1_is_the_same_everywhere(shared, tmp_path, name):
    images, labels = NETWORKS[name](shared)
    source = shared / "models" / name
    graph = load_graph(source / "deploy.prototxt", source / "weights.caffemodel")
    model = quantize(graph, default_config(graph))
    *coarse, last = model.weights  # 32 levels, and 256 in the last layer
    weights = {layer: replace(model.weights[layer], codes=model.weights[layer].codes // 8 * 8 + 4) for layer in coarse}
    model = replace(model, weights=weights | {last: model.weights[last]})
    pair = ModelPair(tmp_path / "m.prototxt", tmp_path / "m.caffemodel")
    write_calibration_model(model, pair, tmp_path / "record.txt", model.weights)
    scores(pair, images[-BATCH:])
    model = calibrated(model, tmp_path / "record.txt")
    prefix = str(tmp_path / "net")
    export(Candidate(model), prefix, ("caffe", "pycaffe", "weights", "onnx", "onnx-codebook"))

    def top1(found):
        return 100 * np.mean(found.argmax(1) == labels)

    expected = top1(scores(fake_quant_pair(prefix), images))
    others = [scores(pycaffe_pair(prefix), images)]  # whose layers calculate in float
    others += [onnx_scores(onnx_file(prefix, codebooks=codebooks), images) for codebooks in (False, True)]
    for found in others:
        assert top1(found) == pytest.approx(expected, abs=0.1 + 100 / len(images))
    only = weights_only_pair(prefix)
    cv2 = pytest.importorskip("cv2")
    net = cv2.dnn.readNetFromCaffe(str(only.model), str(only.weights))
    net.setInput(images[:BATCH])
    theirs, ours = net.forward().reshape(BATCH, -1), scores(only, images[:BATCH])
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())
    int8, codebook = (onnx_file(prefix, codebooks=which).stat().st_size for which in (False, True))
    packed = sum(uniform.codes.size for uniform in weights.values())
    assert int8 - codebook == pytest.approx(packed * 3 / 8, rel=0.1)
