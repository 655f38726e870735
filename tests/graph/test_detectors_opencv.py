"""Layers of detectors' forks give what OpenCV's Caffe importer gives, where it has them."""

import numpy as np
import pytest

from autonuq import Net
from autonuq.graph.files import load_graph, write_caffemodel

cv2 = pytest.importorskip("cv2")
if not hasattr(cv2.dnn, "readNetFromCaffe"):
    pytest.skip("this OpenCV has no Caffe importer", allow_module_level=True)

IMAGE = (2, 8, 6, 10)
REGIONS = np.array(
    [[0, 0, 0, 159, 95], [1, 16, 20, 100, 70], [0, 33.4, 12.6, 60, 40], [1, 40, 40, 40, 40], [1, 120, 60, 400, 300]],
    np.float32,
)


def both(folder, layer, feeds, weights=()):
    """Run one layer here and in OpenCV."""
    inputs = "".join(
        f'input: "{name}" input_shape {{ {" ".join(f"dim: {dim}" for dim in values.shape)} }}\n'
        for name, values in feeds.items()
    )
    bottoms = "".join(f' bottom: "{name}"' for name in feeds)
    files = folder / "net.prototxt", folder / "net.caffemodel"
    files[0].write_text(f'name: "n"\n{inputs}layer {{ name: "y" {layer} {bottoms} top: "y" }}\n')
    graph = load_graph(files[0])
    blobs = [np.float32(blob) for blob in weights]
    graph = graph.with_layers(one.with_(blobs=blobs) if one.name == "y" else one for one in graph.layers)
    write_caffemodel(graph, files[1])
    found = Net(*files).forward(**feeds)["y"]
    other = cv2.dnn.readNetFromCaffe(*map(str, files))
    for name, values in feeds.items():
        other.setInput(values, name)
    return found, other.forward()


@pytest.fixture
def agree(tmp_path):
    def check(layer, feeds, weights=(), tolerance=1e-5):
        found, expected = both(tmp_path, layer, feeds, weights)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()

    return check


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def noise(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 1, 3, 2), (3, 1, 0, 2), (0, 3, 1, 2)])
def test_permute(agree, rng, order):
    orders = " ".join(f"order: {axis}" for axis in order)
    agree(f'type: "Permute" permute_param {{ {orders} }}', {"x": noise(rng, *IMAGE)})


PRIORS = {
    "wechat": "min_size: 50 max_size: 100 aspect_ratio: 2 aspect_ratio: 0.5 flip: false variance: 0.1 variance: 0.1"
    " variance: 0.2 variance: 0.2 step: 16",
    "flipped": "min_size: 30 max_size: 60 aspect_ratio: 2 aspect_ratio: 3 flip: true variance: 0.1",
    "clipped": "min_size: 60 aspect_ratio: 2 clip: true variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2",
    "two sizes": "min_size: 20 min_size: 40 max_size: 30 max_size: 60 aspect_ratio: 2 variance: 0.1 offset: 0.3",
    "one twice": "min_size: 20 aspect_ratio: 1 aspect_ratio: 2 aspect_ratio: 2 aspect_ratio: 0.5 variance: 0.1",
    "steps": "min_size: 20 step_h: 16 step_w: 10 variance: 0.1",
}


@pytest.mark.parametrize("text", PRIORS.values(), ids=PRIORS)
def test_prior_box(agree, rng, text):
    feeds = {"x": noise(rng, 1, 3, 5, 7), "data": noise(rng, 1, 3, 96, 160)}
    text += "" if "clip" in text else " clip: false"  # OpenCV's own default is true
    agree(f'type: "PriorBox" prior_box_param {{ {text} }}', feeds)


def test_normalize(agree, rng):
    """As SSD has it; OpenCV cannot read a scale without axes, nor one a channel across space."""
    text = 'type: "Normalize" norm_param { across_spatial: false channel_shared: false }'
    agree(text, {"x": noise(rng, *IMAGE)}, [rng.uniform(1, 20, IMAGE[1])])


@pytest.mark.parametrize(
    "text",
    ["height: 13 width: 20", "height: 3 width: 4", "height: 6 width: 17", "zoom_factor: 2", "height: 1 width: 1"],
)
def test_interp(agree, rng, text):
    agree(f'type: "Interp" interp_param {{ {text} }}', {"x": noise(rng, *IMAGE)})


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_shuffle_channel(agree, rng, group):
    agree(f'type: "ShuffleChannel" shuffle_channel_param {{ group: {group} }}', {"x": noise(rng, *IMAGE)})


def test_reorg(agree, rng):
    agree('type: "Reorg" reorg_param { stride: 2 }', {"x": noise(rng, *IMAGE)})


def test_relu6(agree, rng):
    agree('type: "ReLU6"', {"x": 5 * noise(rng, *IMAGE)})


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7)])
def test_roi_pooling(agree, rng, size):
    text = f"pooled_h: {size[0]} pooled_w: {size[1]} spatial_scale: 0.0625"
    agree(f'type: "ROIPooling" roi_pooling_param {{ {text} }}', {"x": noise(rng, *IMAGE), "rois": REGIONS})


@pytest.mark.parametrize("group", [1, 2, 3])
def test_psroi_pooling(agree, rng, group):
    text = f"spatial_scale: 0.0625 output_dim: 4 group_size: {group}"
    feeds = {"x": noise(rng, 2, 4 * group**2, 6, 10), "rois": REGIONS}
    agree(f'type: "PSROIPooling" psroi_pooling_param {{ {text} }}', feeds)


@pytest.mark.parametrize("text", ["kernel_size: 3 pad: 1", "kernel_h: 3 kernel_w: 1 stride: 2", "kernel_size: 3"])
def test_depthwise_convolution(agree, rng, text):
    blobs = [noise(rng, 8, 1, 3, 1 if "kernel_w" in text else 3), noise(rng, 8)]
    text = f'type: "ConvolutionDepthwise" convolution_param {{ num_output: 8 group: 8 {text} }}'
    agree(text, {"x": noise(rng, *IMAGE)}, blobs)


DETECTIONS = {
    "plain": "",
    "corner": "code_type: CORNER",
    "not shared": "share_location: false",
    "few kept": "keep_top_k: 5",
    "few looked at": "nms_param { nms_threshold: 0.45 top_k: 7 }",
    "other background": "background_label_id: 2",
    "confident": "confidence_threshold: 0.8",
}
DEFAULTS = {
    "num_classes": "num_classes: 4",
    "code_type": "code_type: CENTER_SIZE",
    "keep_top_k": "keep_top_k: 200",
    "nms_param": "nms_param { nms_threshold: 0.45 top_k: 400 }",
    "confidence_threshold": "confidence_threshold: 0.3",
    "background_label_id": "background_label_id: 0",
    "share_location": "share_location: true",
}


def detection_inputs(rng, number, priors, classes, shared_location):
    """Make boxes that overlap a lot, and confidences that differ a lot."""
    centre, size = rng.uniform(0.2, 0.8, (priors, 2)), rng.uniform(0.1, 0.5, (priors, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    variance = np.tile([0.1, 0.1, 0.2, 0.2], (priors, 1))
    kinds = 1 if shared_location else classes
    return {
        "loc": 0.5 * noise(rng, number, priors * kinds * 4),
        "conf": rng.uniform(0, 1, (number, priors * classes)).astype(np.float32),
        "prior": np.stack([boxes, variance]).reshape(1, 2, -1).astype(np.float32),
    }


@pytest.mark.parametrize("text", DETECTIONS.values(), ids=DETECTIONS)
def test_detection_output(tmp_path, rng, text):
    words = [value for key, value in DEFAULTS.items() if key not in text] + [text]
    feeds = detection_inputs(rng, 1, 60, 4, "share_location: false" not in text)
    layer = f'type: "DetectionOutput" detection_output_param {{ {" ".join(words)} }}'
    found, expected = both(tmp_path, layer, feeds)
    expected = expected[:, :, expected[0, 0, :, 2] > 0]
    assert found.shape == expected.shape
    assert 0 < found.shape[2] <= 200
    order = [np.lexsort(rows[0, 0].T) for rows in (found, expected)]
    assert np.abs(found[0, 0, order[0]] - expected[0, 0, order[1]]).max() < 1e-5
