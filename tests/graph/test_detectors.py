"""Layers of detectors' forks against their definitions, written out value by value."""

import math

import numpy as np
import pytest

from autonuq import Net
from autonuq.errors import ModelError
from autonuq.graph.files import load_graph, write_caffemodel
from autonuq.graph.lowering import lower
from autonuq.graph.passes import fold_batch_norm

IMAGE = (2, 8, 6, 10)


def noise(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def one(run):
    """Run one layer and return its first top."""
    return lambda text, weights=None, **feeds: run(
        f'layer {{ name: "y" {text} {" ".join(f"bottom: {name!r}" for name in feeds)} top: "y" }}',
        feeds,
        None if weights is None else {"y": weights},
    )["y"]


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared_scale", [True, False])
def test_normalize(one, rng, across, shared_scale):
    x, eps = noise(rng, *IMAGE), 0.01
    scale = np.float32(3) if shared_scale else rng.uniform(1, 5, 8).astype(np.float32)
    text = f"across_spatial: {across} channel_shared: {shared_scale} eps: {eps}".lower()
    total = (np.float64(x) ** 2).sum((1, 2, 3) if across else 1, keepdims=True)
    expected = x / np.sqrt(total + eps) * scale.reshape(-1, 1, 1)
    assert one(f'type: "Normalize" norm_param {{ {text} }}', [scale], x=x) == pytest.approx(expected, rel=1e-5)


def bilinear(image, height, width):
    result = np.empty((*image.shape[:2], height, width))
    for row in range(height):
        for column in range(width):
            y = row * (image.shape[2] - 1) / (height - 1) if height > 1 else 0
            x = column * (image.shape[3] - 1) / (width - 1) if width > 1 else 0
            top, left = min(int(y + 1e-9), image.shape[2] - 1), min(int(x + 1e-9), image.shape[3] - 1)
            bottom, right = min(top + 1, image.shape[2] - 1), min(left + 1, image.shape[3] - 1)
            p, q = y - top, x - left
            result[:, :, row, column] = (1 - p) * (
                (1 - q) * image[:, :, top, left] + q * image[:, :, top, right]
            ) + p * ((1 - q) * image[:, :, bottom, left] + q * image[:, :, bottom, right])
    return result


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("height: 9 width: 7", (9, 7)),
        ("height: 6 width: 10", (6, 10)),
        ("zoom_factor: 3", (16, 28)),
        ("shrink_factor: 3", (2, 4)),
        ("shrink_factor: 2 zoom_factor: 2", (5, 9)),
        ("height: 1 width: 5", (1, 5)),
        ("pad_beg: -1 pad_end: -2 height: 4 width: 4", (4, 4)),
    ],
)
def test_interp(one, rng, text, size):
    x = noise(rng, *IMAGE)
    cut = x[:, :, 1:-2, 1:-2] if "pad" in text else x
    found = one(f'type: "Interp" interp_param {{ {text} }}', x=x)
    assert found == pytest.approx(bilinear(cut, *size), rel=1e-5, abs=1e-5)  # positions are float32


def test_interp_takes_the_size_of_a_second_input(one, rng):
    x = noise(rng, *IMAGE)
    found = one('type: "Interp"', x=x, like=np.zeros((2, 3, 9, 12)))
    assert found == pytest.approx(bilinear(x, 9, 12), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "repeat", "factor"),
    [
        ("scale: 2", (2, 2), 1),  # darknet2caffe
        ("scale: 1 stride: 3", (3, 3), 1),  # AMCT from here on
        ("scale: 0.5 stride: 2", (2, 2), 0.5),
        ("stride_h: 2 stride_w: 3", (2, 3), 1),
        ("", (2, 2), 1),
    ],
)
def test_upsample(one, rng, text, repeat, factor):
    x = noise(rng, *IMAGE)
    expected = x.repeat(repeat[0], axis=2).repeat(repeat[1], axis=3) * np.float32(factor)
    assert (one(f'type: "Upsample" upsample_param {{ {text} }}', x=x) == expected).all()


def test_upsample_with_a_mask_undoes_a_pooling(run, rng):
    x = noise(rng, 2, 3, 7, 10)
    blobs = run(
        'layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "mask" '
        "pooling_param { kernel_size: 2 stride: 2 } }"
        'layer { name: "y" type: "Upsample" bottom: "p" bottom: "mask" top: "y" upsample_param { scale: 2 '
        "pad_out_h: true } }",
        {"x": x},
    )
    expected = np.zeros((2, 3, 70), np.float32)
    places = blobs["mask"].reshape(2, 3, -1).astype(int)
    np.put_along_axis(expected, places, blobs["p"].reshape(2, 3, -1), axis=2)
    assert (blobs["y"] == expected.reshape(2, 3, 7, 10)).all()
    assert (blobs["y"][blobs["y"] != 0] == x[blobs["y"] != 0]).all()


def darknet(x, stride, reverse):
    """Copy with darknet's own indices."""
    number, channels, height, width = x.shape
    depth, flat, result = channels // stride**2, x.ravel(), np.empty(x.size, x.dtype)
    for b, k, j, i in np.ndindex(x.shape):
        plain = i + width * (j + height * (k + channels * b))
        c2, offset = k % depth, k // depth
        w2, h2 = i * stride + offset % stride, j * stride + offset // stride
        other = w2 + width * stride * (h2 + height * stride * (c2 + depth * b))
        result[other if reverse else plain] = flat[plain if reverse else other]
    if reverse:
        return result.reshape(number, depth, height * stride, width * stride)
    return result.reshape(number, channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("stride", "shape"), [(2, (2, 8, 4, 6)), (3, (1, 18, 3, 6)), (1, (1, 2, 3, 4))])
def test_reorg(one, rng, stride, shape, reverse):
    x = noise(rng, *shape)
    text = f'type: "Reorg" reorg_param {{ stride: {stride} reverse: {str(reverse).lower()} }}'
    assert (one(text, x=x) == darknet(x, stride, reverse)).all()


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 1, 1)])
def test_axpy(one, rng, shape):
    a, x, z = noise(rng, *shape), noise(rng, *IMAGE), noise(rng, *IMAGE)
    assert one('type: "Axpy"', a=a, x=x, z=z) == pytest.approx(a.reshape(2, 8, 1, 1) * x + z, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("slope", [0, 0.25])
def test_relu6(one, rng, slope):
    x = 5 * noise(rng, *IMAGE)
    found = one(f'type: "ReLU6" relu_param {{ negative_slope: {slope} }}', x=x)
    assert found == pytest.approx(x.clip(0, 6) + slope * np.minimum(x, 0), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "group", "outputs"),
    [
        ("DepthwiseConvolution", "group: 8", 8),
        ("DepthwiseConvolution", "group: 8", 16),
        ("DepthwiseConv", "", 8),
        ("ConvolutionDepthwise", "", 8),
        ("ConvolutionDepthwise", "group: 1", 8),
    ],
)
def test_depthwise_is_a_convolution_with_a_group_a_channel(one, rng, kind, group, outputs):
    x, weights = noise(rng, *IMAGE), [noise(rng, outputs, 1, 3, 3), noise(rng, outputs)]
    rest = f"num_output: {outputs} kernel_size: 3 pad: 1 stride: 2"
    found = one(f'type: "{kind}" convolution_param {{ {rest} {group} }}', weights, x=x)
    assert (found == one(f'type: "Convolution" convolution_param {{ {rest} group: 8 }}', weights, x=x)).all()


def test_depthwise_layers_absorb_their_batch_norm(tmp_path, rng):
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 1 dim: 4 dim: 5 dim: 5 }'
        'layer { name: "c" type: "DepthwiseConvolution" bottom: "x" top: "c" '
        "convolution_param { num_output: 4 kernel_size: 3 group: 4 bias_term: false } }"
        'layer { name: "b" type: "BatchNorm" bottom: "c" top: "c" }'
    )
    graph = load_graph(tmp_path / "net.prototxt")
    blobs = {"c": [noise(rng, 4, 1, 3, 3)], "b": [noise(rng, 4), rng.uniform(1, 2, 4), np.ones(1)]}
    graph = graph.with_layers(
        layer.with_(blobs=[np.float32(blob) for blob in blobs.get(layer.name, [])]) for layer in graph.layers
    )
    folded = fold_batch_norm(graph)
    assert [layer.type for layer in folded.layers] == ["Input", "DepthwiseConvolution"]
    factor = 1 / np.sqrt(blobs["b"][1] + 1e-5)
    assert folded.layers[1].blobs[0] == pytest.approx(blobs["c"][0] * factor.reshape(4, 1, 1, 1), rel=1e-5)


def c_round(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def test_roi_pooling_with_two_scales(one, rng):
    x = noise(rng, *IMAGE)
    regions = np.float32([[0, 0, 0, 70, 40], [1, 10, 8, 33, 37], [1, 36, 20, 36, 20], [0, 60, 30, 200, 200]])
    found = one(
        'type: "ROIPooling" roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale_h: 0.25 spatial_scale_w: 0.125 }',
        x=x, rois=regions,
    )  # fmt: skip
    expected = np.zeros((4, 8, 2, 3), np.float32)
    for index, (item, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (c_round(corner * scale) for corner, scale in zip(corners, [0.125, 0.25] * 2, strict=True))
        height, width = max(y2 - y1 + 1, 1) / 2, max(x2 - x1 + 1, 1) / 3
        for i, j in np.ndindex(2, 3):
            rows = [min(max(int(v + y1), 0), 6) for v in (math.floor(i * height), math.ceil((i + 1) * height))]
            columns = [min(max(int(v + x1), 0), 10) for v in (math.floor(j * width), math.ceil((j + 1) * width))]
            part = x[int(item), :, slice(*rows), slice(*columns)]
            if part.size:
                expected[index, :, i, j] = part.max((1, 2))
    assert (found == expected).all()


def test_prior_boxes_of_a_given_image_cut_fractions_off(one, rng):
    """SSD keeps sizes in integers: 35.84 in the prototxt of SSD512 means 35."""
    feeds = {"x": noise(rng, 1, 3, 1, 2), "data": noise(rng, 1, 3, 50, 50)}
    text = "min_size: 35.84 max_size: 76.8 img_size: 100 offset: 0 step: 10 variance: 0.3"
    found = one(f'type: "PriorBox" prior_box_param {{ {text} }}', **feeds)[0]
    large = math.sqrt(35 * 76)
    halves = np.array([35, large, 35, large])[:, None] / 2
    centres = np.array([[0, 0], [0, 0], [10, 0], [10, 0]])
    assert found[0].reshape(4, 4) == pytest.approx(np.hstack([centres - halves, centres + halves]) / 100)
    assert found[1] == pytest.approx(np.full(16, 0.3))


def overlap(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0
    areas = [0 if b[2] < b[0] or b[3] < b[1] else (b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (sum(areas) - width * height)


def decoded(offset, prior, variance, code):
    offset = offset * variance
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    size = np.array([width, height, width, height])
    if code == "CORNER":
        return prior + offset
    if code == "CORNER_SIZE":
        return prior + offset * size
    centre = (prior[:2] + prior[2:]) / 2 + offset[:2] * size[:2]
    half = np.exp(offset[2:]) * size[:2] / 2
    return np.concatenate([centre - half, centre + half])


def detections(loc, conf, prior, settings):
    """Return the rows of SSD's layer, one box after the other."""
    classes, shared_location = settings["num_classes"], settings["share_location"]
    boxes, variances = np.float64(prior).reshape(2, -1, 4)
    if settings["variance_encoded_in_target"]:
        variances = np.ones_like(variances)
    rows = []
    for item in range(len(loc)):
        offsets = loc[item].reshape(len(boxes), -1, 4)
        scores = conf[item].reshape(len(boxes), classes)
        found = []
        for label in range(classes):
            if label == settings["background_label_id"]:
                continue
            kind = 0 if shared_location else label
            own = [
                decoded(np.float64(offsets[p, kind]), boxes[p], variances[p], settings["code_type"])
                for p in range(len(boxes))
            ]
            order = [p for p in range(len(boxes)) if scores[p, label] > settings["confidence_threshold"]]
            order = sorted(order, key=lambda p: -scores[p, label])  # noqa: B023 - used at once
            order = order[: settings["top_k"]] if settings["top_k"] >= 0 else order
            limit, kept = settings["nms_threshold"], []
            for p in order:
                if all(overlap(own[p], own[k]) <= limit for k in kept):
                    kept.append(p)
                    if settings["eta"] < 1 and limit > 0.5:
                        limit *= settings["eta"]
            found += [(item, label, scores[p, label], *own[p]) for p in kept]
        if 0 <= settings["keep_top_k"] < len(found):
            best = sorted(found, key=lambda row: -row[2])[: settings["keep_top_k"]]
            found = sorted(best, key=lambda row: row[1])
        rows += found
    return np.array(rows or [[item] + [-1] * 6 for item in range(len(loc))])


DEFAULT = {
    "num_classes": 4, "share_location": True, "background_label_id": 0, "code_type": "CENTER_SIZE", "keep_top_k": 30,
    "variance_encoded_in_target": False, "confidence_threshold": 0.2, "nms_threshold": 0.45, "top_k": 25, "eta": 1.0,
}  # fmt: skip
SETTINGS = {
    "plain": {},
    "corner": {"code_type": "CORNER"},
    "corner size": {"code_type": "CORNER_SIZE"},
    "encoded": {"variance_encoded_in_target": True, "code_type": "CORNER_SIZE"},
    "a location a class": {"share_location": False, "background_label_id": 2},
    "no background": {"background_label_id": -1, "share_location": False},
    "eta": {"nms_threshold": 0.9, "eta": 0.8},
    "everything": {"keep_top_k": -1, "top_k": -1, "confidence_threshold": -1},
    "nothing": {"confidence_threshold": 2},
    "no overlap": {"nms_threshold": 0},
}


def prototxt_of(settings, feeds):
    inner = " ".join(f"{name}: {settings[name]}" for name in ("nms_threshold", "top_k", "eta"))
    outer = " ".join(
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
        if name not in ("nms_threshold", "top_k", "eta")
    )
    inputs = "".join(
        f'input: "{name}" input_shape {{ {" ".join(f"dim: {dim}" for dim in values.shape)} }}\n'
        for name, values in feeds.items()
    )
    return (
        f'{inputs} layer {{ name: "y" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "y" '
        f"detection_output_param {{ {outer} nms_param {{ {inner} }} }} }}"
    )


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("changed", SETTINGS.values(), ids=SETTINGS)
def test_detection_output(tmp_path, rng, number, changed):
    settings = DEFAULT | changed
    priors, kinds = 40, 1 if settings["share_location"] else 4
    centre, size = rng.uniform(0.2, 0.8, (priors, 2)), rng.uniform(0.1, 0.5, (priors, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    variances = np.tile([0.1, 0.1, 0.2, 0.2], (priors, 1))
    feeds = {
        "loc": 0.5 * noise(rng, number, priors * kinds * 4),
        "conf": rng.uniform(0, 1, (number, priors * 4)).astype(np.float32),
        "prior": np.stack([boxes, variances]).reshape(1, 2, -1).astype(np.float32),
    }
    path = tmp_path / "net.prototxt"
    path.write_text(prototxt_of(settings, feeds))
    net = Net(path)
    for name, values in feeds.items():
        net.blobs[name].data[...] = values
    found = net.forward()["y"]
    expected = detections(*feeds.values(), settings)
    assert found.shape == (1, 1, *expected.shape)
    assert found[0, 0] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_detection_output_survives_infinite_boxes(tmp_path):
    feeds = {
        "loc": np.float32([[0, 0, 1000, 1000, 0, 0, 0, 0]]),
        "conf": np.float32([[0.1, 0.9, 0.3, 0.7]]),
        "prior": np.float32([[0, 0, 1, 1] * 2, [1] * 8])[None],
    }
    (tmp_path / "net.prototxt").write_text(prototxt_of(DEFAULT | {"num_classes": 2}, feeds))
    net = Net(tmp_path / "net.prototxt")
    for name, values in feeds.items():
        net.blobs[name].data[...] = values
    rows = net.forward()["y"][0, 0]
    assert rows[:, 2] == pytest.approx([0.9, 0.7])
    assert np.isinf(rows[0, 3:]).all()


def test_host_layers_have_no_onnx(tmp_path):
    feeds = {"loc": np.empty((1, 8)), "conf": np.empty((1, 8)), "prior": np.empty((1, 2, 8))}
    (tmp_path / "net.prototxt").write_text(prototxt_of(DEFAULT, feeds))
    with pytest.raises(ModelError, match="layer 'y'.*runs in Python"):
        lower(load_graph(tmp_path / "net.prototxt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('type: "Permute" bottom: "x" permute_param { order: 1 order: 1 }', "different axes"),
        ('type: "Permute" bottom: "x" permute_param { order: 4 }', "different axes"),
        ('type: "PriorBox" bottom: "x" bottom: "x"', "min_size"),
        ('type: "PriorBox" bottom: "x" bottom: "x" prior_box_param { min_size: 9 max_size: 8 }', "larger"),
        ('type: "PriorBox" bottom: "x" bottom: "x" prior_box_param { min_size: 9 variance: 1 variance: 1 }', "four"),
        ('type: "Interp" bottom: "x"', "either height"),
        ('type: "Interp" bottom: "x" interp_param { height: 3 width: 3 pad_beg: 1 }', "crop"),
        ('type: "Upsample" bottom: "x" upsample_param { scale: 1.5 }', "whole number"),
        ('type: "ShuffleChannel" bottom: "x" shuffle_channel_param { group: 3 }', "group 3"),
        ('type: "Reorg" bottom: "x" reorg_param { stride: 3 }', "square must divide"),
        ('type: "Axpy" bottom: "x" bottom: "x" bottom: "x"', "needs"),
        ('type: "ROIPooling" bottom: "x" bottom: "x" roi_pooling_param { pooled_h: 1 pooled_w: 1 }', "batch index"),
        ('type: "DepthwiseConv" bottom: "x" convolution_param { num_output: 6 kernel_size: 1 }', "number of channels"),
    ],
    ids=lambda value: value.split('"')[1] if "type:" in value else "",
)
def test_bad_settings_are_named(one, rng, run, text, words):
    with pytest.raises(ModelError, match=words) as caught:
        run(f'layer {{ name: "bad" {text} top: "y" }}', {"x": noise(rng, *IMAGE)})
    assert caught.value.layer == "bad"


def test_weights_of_normalize_without_axes_survive_a_file(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        'input: "x" input_shape { dim: 1 dim: 2 dim: 1 dim: 1 } '
        'layer { name: "y" type: "Normalize" bottom: "x" top: "y" }'
    )
    graph = load_graph(path)
    graph = graph.with_layers(
        layer.with_(blobs=[np.float32(5).reshape(())]) if layer.name == "y" else layer for layer in graph.layers
    )
    write_caffemodel(graph, tmp_path / "net.caffemodel")
    found = Net(path, tmp_path / "net.caffemodel").forward(x=np.float32([3, 4]).reshape(1, 2, 1, 1))["y"]
    assert found.ravel() == pytest.approx([3, 4])
