"""Sizes that do not fit are refused where they are set, by layer and numbers, and never by the engine."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import ModelError, RuntimeFailure
from autonuq.graph.files import expected_blobs, load_graph, write_caffemodel

ENGINE = ("onnx", "ORT", "ShapeInference", "Gemm", "Node", "node", "status code")


def build(folder, layers, **inputs):
    """Write a network with random weights and load it."""
    lines = [
        f'layer {{ name: "in {name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {dim}" for dim in shape)
        + " } } }"
        for name, shape in inputs.items()
    ]
    model, weights = folder / "n.prototxt", folder / "n.caffemodel"
    model.write_text("\n".join([*lines, layers]))
    graph, rng = load_graph(model), np.random.default_rng(0)
    blobs = {
        name: [rng.random(shape, np.float32) for shape in shapes] for name, shapes in expected_blobs(graph).items()
    }
    write_caffemodel(graph.with_layers(layer.with_(blobs=blobs[layer.name]) for layer in graph.layers), weights)
    return nuq.Net(model, weights, nuq.pycaffe.TEST)


def one(kind, parameters="", bottoms=("x",)):
    below = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "mine" type: "{kind}" {below} top: "top" {parameters} }}'


X = (2, 4, 6, 8)
MISFITS = {
    "inner product": (
        one("InnerProduct", "inner_product_param { num_output: 3 }"),
        {"x": (2, 4, 6, 9)},
        "inner product parameters: .*takes 192, not the 216",
    ),
    "inner product, transposed": (
        one("InnerProduct", "inner_product_param { num_output: 3 transpose: true }"),
        {"x": (2, 4, 5, 8)},
        "takes 192, not the 160",
    ),
    "convolution": (
        one("Convolution", "convolution_param { num_output: 2 kernel_size: 3 }"),
        {"x": (2, 3, 6, 8)},
        "convolution kernel: .*takes 4, not the 3",
    ),
    "convolution in groups": (
        one("Convolution", "convolution_param { num_output: 2 kernel_size: 3 group: 2 }"),
        {"x": (2, 6, 6, 8)},
        "takes 4, not the 6",
    ),
    "groups that do not divide": (
        one("Convolution", "convolution_param { num_output: 2 kernel_size: 3 group: 2 }"),
        {"x": (2, 5, 6, 8)},
        "5 input channels are no multiple of group 2",
    ),
    "convolution of volumes": (
        one("Convolution", "convolution_param { num_output: 2 kernel_size: 3 }"),
        {"x": (2, 4, 6, 8, 5)},
        r"\(2, 4, 3, 3\), but .* must be \(2, 4, 3, 3, 3\)",
    ),
    "deconvolution": (
        one("Deconvolution", "convolution_param { num_output: 2 kernel_size: 3 }"),
        {"x": (2, 5, 6, 8)},
        "takes 4, not the 5",
    ),
    "depthwise": (
        one("DepthwiseConvolution", "convolution_param { num_output: 4 kernel_size: 3 }"),
        {"x": (2, 5, 6, 8)},
        "number of channels, 5",
    ),
    "kernel larger than the input": (
        one("Convolution", "convolution_param { num_output: 2 kernel_size: 5 }"),
        {"x": (2, 4, 4, 8)},
        "extent 5 is larger than the padded input 4",
    ),
    "scale": (one("Scale"), {"x": (2, 5, 6, 8)}, "takes 4, not the 5"),
    "bias": (one("Bias"), {"x": (2, 5, 6, 8)}, "takes 4, not the 5"),
    "prelu": (one("PReLU"), {"x": (2, 5, 6, 8)}, "takes 4, not the 5"),
    "batch norm": (one("BatchNorm"), {"x": (2, 5, 6, 8)}, r"blob 0 has shape \(4,\), so it takes 4, not the 5"),
    "normalize": (
        one("Normalize", "norm_param { channel_shared: false }"),
        {"x": (2, 5, 6, 8)},
        "takes 4, not the 5",
    ),
}
PAIRS = {
    "eltwise": (one("Eltwise", "", ["x", "y"]), r"differ in shape: \(2, 4, 6, 8\), \(2, 4, 6, 7\)"),
    "concat": (one("Concat", "", ["x", "y"]), r"differ elsewhere: .*\(2, 4, 6, 7\)"),
    "crop": (
        one("Crop", "crop_param { axis: 2 offset: 0 offset: 2 }", ["x", "y"]),
        "axis 3: 7 values from 2 on do not fit into 8",
    ),
    "scale by another": (one("Scale", "scale_param { axis: 0 }", ["x", "y"]), "does not lie along"),
}


@pytest.mark.parametrize(("layers", "sizes", "message"), MISFITS.values(), ids=MISFITS)
def test_inputs_that_the_weights_are_not_made_for(tmp_path, layers, sizes, message):
    net = build(tmp_path, layers, x=X)
    before = net.forward(x=np.ones(X, np.float32))["top"].copy()
    net.blobs["x"].reshape(*sizes["x"])
    for call in (net.reshape, net.forward):
        with pytest.raises(ModelError, match=f"layer 'mine': .*{message}") as caught:
            call()
        assert not any(word in str(caught.value) for word in ENGINE)
    net.blobs["x"].reshape(*X)
    np.testing.assert_array_equal(net.forward(x=np.ones(X, np.float32))["top"], before)


@pytest.mark.parametrize(("layers", "message"), PAIRS.values(), ids=PAIRS)
def test_inputs_that_do_not_fit_each_other(tmp_path, layers, message):
    if "Crop" in layers:
        net = build(tmp_path, layers, x=(2, 4, 6, 9), y=(2, 4, 6, 7))
        net.blobs["x"].reshape(*X)
    else:
        net = build(tmp_path, layers, x=X, y=X)
        net.blobs["y"].reshape(2, 4, 6, 7)
    with pytest.raises(ModelError, match=f"layer 'mine': .*{message}"):
        net.reshape()


def test_recurrent_layers_and_reshapes(tmp_path):
    net = build(tmp_path, one("LSTM", "recurrent_param { num_output: 3 }", ["x", "c"]), x=(5, 2, 4), c=(5, 2))
    net.blobs["x"].reshape(5, 2, 6)
    with pytest.raises(ModelError, match="layer 'mine': .*takes 4, not the 6"):
        net.reshape()
    net.blobs["x"].reshape(7, 2, 4)
    with pytest.raises(ModelError, match=r"continuation marks of shape \(7, 2\), got \(5, 2\)"):
        net.reshape()
    net = build(tmp_path, one("Reshape", "reshape_param { shape { dim: 2 dim: 8 dim: 24 } }"), x=X)
    net.blobs["x"].reshape(2, 4, 6, 9)
    with pytest.raises(ModelError, match=r"\(2, 4, 6, 9\) and \(2, 8, 24\) hold different numbers"):
        net.reshape()


def test_values_that_the_engine_refuses_are_told_by_layer(tmp_path, capfd):
    net = build(tmp_path, one("Embed", "embed_param { num_output: 3 input_dim: 5 }"), x=(2, 3))
    with pytest.raises(RuntimeFailure, match="layer 'mine': the engine cannot compute this layer: an index") as caught:
        net.forward(x=np.full((2, 3), 9, np.float32))
    assert caught.value.layer == "mine"
    assert not any(word in str(caught.value) for word in ENGINE)
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_a_network_that_ends_in_silence_runs(tmp_path):
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
        'layer { name: "quiet" type: "Silence" bottom: "x" }'
    )
    assert nuq.Net(tmp_path / "n.prototxt", nuq.pycaffe.TEST).forward() == {}


@pytest.fixture
def net(tiny):
    return nuq.Net(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        (((1, 2, 8, 8),), TypeError, r"one by one. Got \(1, 2, 8, 8\) instead; write reshape\(\*shape\)"),
        (([1, 2, 8, 8],), TypeError, r"write reshape\(\*shape\)"),
        ((1.0, 2, 8, 8), TypeError, "Got 1.0"),
        (("1", 2, 8, 8), TypeError, "Got '1'"),
        ((None,), TypeError, "Got None"),
        ((-1, 2, 8, 8), ValueError, r"positive. Got \(-1, 2, 8, 8\)"),
        ((0, 2, 8, 8), ValueError, "positive"),
        ((1,) * 33, ValueError, "at most 32 axes"),
        ((2**16, 2**16), ValueError, "at most 2147483647 values"),
    ],
)
def test_a_blob_takes_whole_positive_sizes_only(net, sizes, error, message):
    for blob in (net.blobs["data"], net.blobs["conv"]):
        before = blob.shape
        with pytest.raises(error, match=message):
            blob.reshape(*sizes)
        assert blob.shape == before


def test_sizes_may_be_numpys(net):
    net.blobs["data"].reshape(*np.array([3, 2, 8, 8]))
    net.reshape()
    assert net.blobs["prob"].shape == (3, 10)
    assert all(type(size) is int for size in net.blobs["data"].shape)


def test_legacy_names_of_sizes(tmp_path):
    net = build(tmp_path, one("InnerProduct", "inner_product_param { num_output: 3 }"), x=X, y=(1, 2, 3, 4, 5))
    weights, bias = net.params["mine"]
    assert [
        (blob.num, blob.channels, blob.height, blob.width, blob.count) for blob in (net.blobs["x"], weights, bias)
    ] == [
        (2, 4, 6, 8, 384),
        (3, 192, 1, 1, 576),
        (3, 1, 1, 1, 3),
    ]
    for name in ("num", "channels", "height", "width"):
        with pytest.raises(ValueError, match=r"shape \(1, 2, 3, 4, 5\) has more than 4 axes"):
            getattr(net.blobs["y"], name)
    assert net.blobs["y"].count == 120


def test_a_label_beyond_the_classes_is_told_by_layer(tmp_path):
    net = build(tmp_path, one("SoftmaxWithLoss", "", ["x", "y"]), x=(2, 5), y=(2,))
    with pytest.raises(RuntimeFailure, match="layer 'mine': .* an index or a label that it reads lies outside"):
        net.forward(x=np.zeros((2, 5), np.float32), y=np.float32([1, 7]))
