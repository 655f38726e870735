"""Nine real networks give what OpenCV's Caffe importer gives, as they are and folded, on noise and on real inputs."""

import numpy as np
import pytest

from autonuq import Net
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.passes import fold_batch_norm

cv2 = pytest.importorskip("cv2")
if not hasattr(cv2.dnn, "readNetFromCaffe"):
    pytest.skip("this OpenCV has no Caffe importer", allow_module_level=True)

TOLERANCE = 1e-4  # of the largest value of an output; most stay below 1e-5
SCORED = {
    "lenet-fashion": ("fashion_test.npz", 255),
    "resnet20-fashion": ("fashion_test.npz", 255),
    "lenet-mnist": ("mnist_test.npz", 256),
    "cifar10-quick": ("cifar10_test.npz", 1),
}
NETWORKS = [
    *SCORED, "squeezenet-v1.0", "ultraface-rfb-320", "wechat-detect", "hyperlpr-segfree-inception", "mtcnn-det3",
]  # fmt: skip


def scored(shared, name, shape):
    file, scale = SCORED[name]
    with np.load(shared / "data" / file) as data:
        images = data["x"][: shape[0]]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2) - data["mean_rgb_chw"]
    return np.float32(images) / np.float32(scale)


def photo(shared, shape):
    """Cut the middle out of a photograph, in the range that detectors take."""
    image = cv2.imread(str(sorted((shared / "data/imagenet200").glob("*.jpg"))[0]))
    image = cv2.resize(image, (shape[3], shape[2])).astype(np.float32)
    return (image.transpose(2, 0, 1)[None] - 127) / 128


def codes(shape):
    """Paint two QR codes on grey."""
    code = cv2.QRCodeEncoder.create().encode("a detector should find this one, and its smaller copy, too")
    image = np.full(shape[2:], 200, np.uint8)
    for size, row, column in [(120, 40, 50), (80, 200, 210)]:
        scaled = cv2.resize(code, (size, size), interpolation=cv2.INTER_NEAREST)
        image[row : row + size, column : column + size] = scaled
    return np.float32(image[None, None]) / 255


def inputs(shared, name, shape):
    yield np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    if name in SCORED:
        yield scored(shared, name, shape)
    else:
        yield codes(shape) if name == "wechat-detect" else photo(shared, shape)


def opened(shared, name, folded, folder):
    prototxt, weights = (shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel"))
    if folded:
        graph = fold_batch_norm(load_graph(prototxt, weights))
        prototxt, weights = folder / "folded.prototxt", folder / "folded.caffemodel"
        write_model(graph, prototxt, weights)
    return Net(prototxt, weights)


def opencv(shared, name, values, outputs):
    folder = shared / "models" / name
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "weights.caffemodel"))
    results = {}
    for output in outputs:
        net.setInput(values)
        results[output] = net.forward(output)
    return results


@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "folded"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(shared, tmp_path, name, folded):
    net = opened(shared, name, folded, tmp_path)
    (blob,) = net.inputs
    for values in inputs(shared, name, net.blobs[blob].shape):
        found = net.forward(**{blob: values})
        expected = opencv(shared, name, values, found)
        for output, wanted in expected.items():
            if output == "detection_output":
                wanted = rows(wanted)
            assert found[output].shape == wanted.shape
            assert np.abs(found[output] - wanted).max() <= TOLERANCE * np.abs(wanted).max(), output


def rows(detections):
    """Leave out the zeros with which OpenCV fills up; for no box at all Caffe makes one row of -1 an item."""
    kept = detections[:, :, detections[0, 0, :, 2] > 0]
    return kept if kept.size else np.array([[[[0, -1, -1, -1, -1, -1, -1]]]], np.float32)


def test_codes_are_found(shared, tmp_path):
    net = opened(shared, "wechat-detect", False, tmp_path)
    found = net.forward(data=codes(net.blobs["data"].shape))["detection_output"]
    assert found.shape == (1, 1, 2, 7)
    assert net.blobs["detection_output"].shape == (1, 1, 2, 7)
    assert found[0, 0, :, 2].min() > 0.99
    assert found[0, 0, 0, 3:] * 384 == pytest.approx([50, 40, 170, 160], abs=15)
