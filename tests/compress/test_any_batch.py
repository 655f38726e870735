"""ONNX files run at every batch size and say what the network says; where a size counts, it stays and is told why."""

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest

import autonuq as nuq
from autonuq.graph.files import expected_blobs, load_graph, write_caffemodel
from autonuq.graph.onnx_model import build_onnx

SIZE = 2  # of the prototxts
SIZES = (1, 3, SIZE, 7)


def layer(kind, parameters="", bottoms=("x",), top="y", name=None):
    below = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name or top}" type: "{kind}" {below} top: "{top}" {parameters} }}'


def source(*shape, name="x"):
    dims = " ".join(f"dim: {dim}" for dim in (SIZE, *shape))
    return f'layer {{ name: "in {name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'


IMAGE = source(6, 8, 10)
ANY = {
    "inner product": [
        IMAGE,
        layer("InnerProduct", "inner_product_param { num_output: 5 }"),
        layer("Softmax", "", ["y"], "z"),
    ],
    "inner product along one axis": [IMAGE, layer("InnerProduct", "inner_product_param { num_output: 5 axis: 3 }")],
    "reshape": [
        IMAGE,
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }"),
        layer("InnerProduct", "inner_product_param { num_output: 3 axis: 2 }", ["y"], "z"),
    ],
    "reshape to whatever is left": [IMAGE, layer("Reshape", "reshape_param { shape { dim: -1 dim: 48 dim: 10 } }")],
    "more rows than items": [
        IMAGE,
        layer("Reshape", "reshape_param { shape { dim: -1 dim: 80 } }"),
        layer("InnerProduct", "inner_product_param { num_output: 4 }", ["y"], "z"),
        layer("Reshape", "reshape_param { shape { dim: -1 dim: 24 } }", ["z"], "w"),
    ],
    "flatten": [IMAGE, layer("Flatten", "flatten_param { axis: 1 end_axis: 2 }")],
    "shuffle": [IMAGE, layer("ShuffleChannel", "shuffle_channel_param { group: 3 }")],
    "reorg": [source(8, 8, 10), layer("Reorg", "reorg_param { stride: 2 }")],
    "upsample": [IMAGE, layer("Upsample", "upsample_param { scale: 2 }")],
    "interp": [IMAGE, layer("Interp", "interp_param { zoom_factor: 2 }")],
    "unpooling": [
        IMAGE,
        'layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "m" pooling_param { kernel_size: 2 stride: 2 } }',
        layer("Upsample", "upsample_param { scale: 2 }", ["p", "m"]),
    ],
    "crop": [
        IMAGE,
        layer("Convolution", "convolution_param { num_output: 2 kernel_size: 3 }", top="c"),
        layer("Crop", "crop_param { axis: 2 offset: 1 }", ["x", "c"]),
    ],
    "norm": [IMAGE, layer("LRN"), layer("MVN", "", ["y"], "z"), layer("Normalize", "", ["z"], "w")],
    "spatial pyramid": [IMAGE, layer("SPP", "spp_param { pyramid_height: 2 }")],
    "constant power": [IMAGE, layer("Power", "power_param { power: 0 }"), layer("Eltwise", "", ["x", "y"], "z")],
    "largest": [IMAGE, layer("ArgMax", "argmax_param { top_k: 3 out_max_val: true }")],
    "sums": [IMAGE, layer("Reduction", "reduction_param { axis: 1 operation: MEAN }")],
    "squeeze and excite": [
        IMAGE,
        layer("Pooling", "pooling_param { pool: AVE global_pooling: true }", top="p"),
        layer("Axpy", "", ["p", "x", "x"]),
    ],
    "columns": [IMAGE, layer("Im2col", "convolution_param { kernel_size: 3 pad: 1 }")],
    "prior boxes": [
        IMAGE,
        layer("PriorBox", "prior_box_param { min_size: 4 }", ["x", "x"], "boxes"),
        layer("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
        layer("Flatten", "", ["y"], "z"),
    ],
    "two inputs": [IMAGE, source(6, name="f"), layer("Scale", "scale_param { axis: 0 }", ["x", "f"])],
    "letters": [
        source(6, 1, 10),
        source(10, name="cont"),
        layer("Permute", "permute_param { order: 3 order: 0 order: 1 order: 2 }", top="p"),
        layer("Permute", "permute_param { order: 1 order: 0 }", ["cont"], "c"),
        layer("LSTM", "recurrent_param { num_output: 4 }", ["p", "c"], "h"),
        layer("InnerProduct", "inner_product_param { num_output: 3 axis: 2 }", ["h"]),
        layer("Softmax", "softmax_param { axis: 2 }", ["y"], "z"),
    ],
    "handed over": [
        'layer { name: "in" type: "MemoryData" top: "x" top: "l"'
        f" memory_data_param {{ batch_size: {SIZE} channels: 6 height: 4 width: 5 }} }}",
        'layer { name: "s" type: "Silence" bottom: "l" }',
        layer("InnerProduct", "inner_product_param { num_output: 5 }"),
    ],
}
FIXED = {
    "an explicit size": (
        [IMAGE, layer("Reshape", "reshape_param { shape { dim: 2 dim: 480 } }")],
        "'y'.*hold different",
    ),
    "one row of all": (
        [IMAGE, layer("Reshape", "reshape_param { shape { dim: 1 dim: -1 dim: 10 } }")],
        "'y' of type 'Reshape' moves the items",
    ),
    "all items in one": (
        [IMAGE, layer("InnerProduct", "inner_product_param { num_output: 5 axis: 0 }")],
        "'y': Input size incompatible",
    ),
    "softmax over items": (
        [IMAGE, layer("Softmax", "softmax_param { axis: 0 }")],
        "'y' of type 'Softmax' computes across",
    ),
    "statistics of the batch": (
        [IMAGE, layer("BatchNorm", "batch_norm_param { use_global_stats: false }")],
        "'y' of type 'BatchNorm' computes across",
    ),
    "a constant beside": (
        [
            IMAGE,
            layer("DummyData", "dummy_data_param { shape { dim: 2 dim: 6 dim: 8 dim: 10 } }", [], "d"),
            layer("Eltwise", "", ["x", "d"]),
        ],
        "'y': element-wise inputs differ",
    ),
    "time first": (
        [source(3, 6), source(3, name="c"), layer("LSTM", "recurrent_param { num_output: 4 }", ["x", "c"])],
        "'y' of type 'LSTM' computes across",
    ),
    "sizes that differ": (
        [
            IMAGE,
            source(2, name="f").replace("dim: 2", "dim: 3", 1),
            layer("ReLU", top="y"),
            layer("ReLU", "", ["f"], "z"),
        ],
        "differ in their first size",
    ),
}


@pytest.fixture
def written(tmp_path):
    """Write a network with random weights; return its graph and its files."""

    def write(lines):
        model, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
        model.write_text("\n".join(lines))
        graph, rng = load_graph(model), np.random.default_rng(0)
        blobs = {
            name: [rng.random(shape, np.float32) for shape in shapes] for name, shapes in expected_blobs(graph).items()
        }
        graph = graph.with_layers(each.with_(blobs=blobs[each.name]) for each in graph.layers)
        write_caffemodel(graph, weights)
        return graph, model, weights

    return write


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True))


def note(model):
    return {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props}["autonuq:batch"]


@pytest.mark.parametrize("lines", ANY.values(), ids=ANY)
def test_every_batch_size_says_what_the_net_says(written, lines):
    graph, *files = written(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_onnx(graph, {}, {}, metadata={})
    assert note(model) == "any"
    declared = onnx.load_from_string(model).graph.input
    assert {entry.type.tensor_type.shape.dim[0].dim_param for entry in declared} == {"batch"}
    for size in SIZES:
        net = nuq.Net(*files)
        feeds = {}
        rng = np.random.default_rng(size)
        if net.inputs:
            for name in net.inputs:
                net.blobs[name].reshape(size, *net.blobs[name].shape[1:])
                feeds[name] = rng.random(net.blobs[name].shape, np.float32)
            feeds |= {"cont": np.ones_like(feeds["cont"])} if "cont" in feeds else {}
            expected = net.forward(**feeds)
        else:
            feeds = {"x": rng.random((size * SIZE, *net.blobs["x"].shape[1:]), np.float32)}
            net.set_input_arrays(feeds["x"], np.zeros(size * SIZE, np.float32))
            parts = [net.forward()["y"].copy() for _ in range(size)]
            expected = {"y": np.concatenate(parts)}
        found = run(model, feeds)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=f"{name} of {size} items")


@pytest.mark.parametrize(("lines", "reason"), FIXED.values(), ids=FIXED)
def test_a_size_that_counts_stays_and_is_explained(written, lines, reason):
    graph, *files = written(lines)
    with pytest.warns(UserWarning, match=f"batch size of the prototxt only: .*{reason}"):
        model = build_onnx(graph, {}, {}, metadata={})
    assert note(model).startswith("the prototxt's size only: ")
    net = nuq.Net(*files)
    feeds = {name: np.random.default_rng(0).random(net.blobs[name].shape, np.float32) for name in net.inputs}
    for name, values in run(model, feeds).items():
        np.testing.assert_allclose(values, net.forward(**feeds)[name], rtol=1e-4, atol=1e-5)
