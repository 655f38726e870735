"""What a layer of a hundred bytes may make while it is loaded and lowered: nothing large by its settings alone."""

import tracemalloc

import numpy as np
import pytest

from autonuq.errors import ModelError
from autonuq.graph.backward import windows
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.gradients import lower_gradients
from autonuq.graph.heads import find_heads
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.lowering import lower
from autonuq.runtime.session import Session

MOST = 2**31 - 1
SMALL = (1, 2, 4, 4)


def blob(name, shape):
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def network(folder, kind, settings, *shapes, tops=1):
    """Load a network of one layer."""
    names = [f"b{index}" for index in range(len(shapes))]
    text = "".join(blob(name, shape) for name, shape in zip(names, shapes, strict=True))
    reads = " ".join(f'bottom: "{name}"' for name in names)
    makes = " ".join(f'top: "t{index}"' for index in range(tops))
    path = folder / "net.prototxt"
    path.write_text(f'{text}layer {{ name: "l" type: "{kind}" {reads} {makes} {settings} }}\n')
    return load_graph(path)


REFUSED = {
    "Interp": ("Interp", f"interp_param {{ height: {MOST} width: 1 }}", [(1, 1, 4, 4)], 1, "the places that it blends"),
    "Interp without a top": (
        "Interp", f"interp_param {{ height: {MOST} width: 1 }}", [(1, 1, 4, 4)], 0, "the places that it blends",
    ),
    "a top that is not named": (
        "Interp", f"interp_param {{ height: {MOST} width: 2 }}", [(1, 1, 4, 4)], 0, "top 0 of shape .* exceeds",
    ),
    "Im2col": (
        "Im2col", "convolution_param { kernel_h: 1 kernel_w: 1 pad_h: 500000000 }", [(1, 1, 1, 1)], 1,
        "the places under its windows",
    ),
    "areas of AVE pooling": (
        "Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }", [(1, 1, 20000, 20000)], 1,
        "the areas of its windows",
    ),
    "boxes": ("PriorBox", "prior_box_param { min_size: 3 }", [(1, 1, 8000, 8000), SMALL], 1, "its boxes would take"),
    "boxes of a pixel": (
        "PriorBox",
        "prior_box_param { " + " ".join(f"min_size: {n} aspect_ratio: {n}" for n in range(2, 200)) + " }",
        [SMALL, SMALL], 1, "make 78606 boxes a pixel; 1000 is the most",
    ),
    "slopes": ("PReLU", "prelu_param { channel_shared: true }", [(1, 2**31 - 16, 1, 1)], 1, "a slope for every"),
    "weights": ("InnerProduct", f"inner_product_param {{ num_output: {MOST} }}", [SMALL], 1, "weights 0 of shape"),
    "axes": ("Reshape", "reshape_param { shape { " + "dim: 1 " * 40 + "dim: -1 } }", [SMALL], 1, "has 41 axes; 32 is"),
    "endless boxes": ("PriorBox", "prior_box_param { min_size: 1 max_size: inf }", [SMALL, SMALL], 1, "must be finite"),
    "a scale that is no number": ("Upsample", "upsample_param { scale: nan }", [SMALL], 1, "scale must be finite"),
    "bins": (
        "HFMG", 'hfmg_param { num_of_bins: 4294967295 object_layer: "a" record_file_path: "r" }', [SMALL], 0,
        "num_of_bins must be in 8..8192",
    ),
    "ranges to try": (
        "IFMR",
        'ifmr_param { search_range_start: 1 search_range_end: 2 search_step: 1e-9 object_layer: "a" '
        'record_file_path: "r" }',
        [SMALL], 0, "makes less than 10000 steps",
    ),
    "a percentile that is no number": (
        "IFMR",
        'ifmr_param { search_range_start: 1 search_range_end: 2 search_step: 1 min_percentile: 0.9 max_percentile: 2 '
        'object_layer: "a" record_file_path: "r" }',
        [SMALL], 0, "max_percentile must be above 0 and at most 1, got 2",
    ),
    "no record file": ("HFMG", 'hfmg_param { object_layer: "a" }', [SMALL], 0, "record_file_path must be a file's"),
    "objects": ("HFMG", 'hfmg_param { record_file_path: "r" }', [SMALL], 0, "names 0 as object_layer, but has 1 bot"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_settings_would_make_is_refused_before_it_is_made(tmp_path, case):
    kind, settings, shapes, tops, message = REFUSED[case]
    tracemalloc.start()
    with pytest.raises(ModelError, match=message) as caught:
        graph = network(tmp_path, kind, settings, *shapes, tops=tops)
        slope = np.ones((), np.float32)
        lower(graph.with_layers(one.with_(blobs=[slope] if kind == "PReLU" else []) for one in graph.layers))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.path == tmp_path / "net.prototxt"
    assert caught.value.layer == "l"
    assert taken < 200 << 20


LARGE = {
    "ArgMax": ("ArgMax", "argmax_param { top_k: 2 axis: 1 }", [(1, 2**30)], 1),
    "Accuracy of classes": ("Accuracy", "", [(1, 2**30), (1,)], 2),
    "HingeLoss": ("HingeLoss", "", [(1, 2**30), (1,)], 1),
    "Tile": ("Tile", f"tile_param {{ tiles: {MOST} }}", [(1, 1)], 1),
    "whole windows": (
        "Pooling",
        "pooling_param { pool: AVE kernel_size: 2 }",
        [(1, 1, 40000, 40000)],
        1,
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_blobs_alone_cost_nothing_until_they_are_computed(tmp_path, case):
    kind, settings, shapes, tops = LARGE[case]
    tracemalloc.start()
    lower(network(tmp_path, kind, settings, *shapes, tops=tops))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 10 << 20


def test_the_tables_of_all_layers_count_together(tmp_path):
    settings = "prior_box_param { min_size: 3 }"
    one = network(tmp_path, "PriorBox", settings, (1, 1, 1024, 1024), SMALL)
    assert lower(one).initializers
    layer = one.layers[-1]
    more = [layer.with_(tops=[f"top{index}"]) for index in range(4)]
    with pytest.raises(ModelError, match="134,217,728 bytes in a network, 134,217,728 of which are used: take"):
        lower(one.with_layers([*one.layers, *more]))


def test_windows_far_apart_run_in_float(tmp_path):
    """A dilation of 3,000 would make a matrix that is 1,500 times as large as the weights."""
    (tmp_path / "net.prototxt").write_text(
        blob("data", (1, 64, 4, 3001))
        + """layer { name: "q" type: "Quant" bottom: "data" top: "q" quant_param { scale: 1 offset: "\\200" } }
layer { name: "conv" type: "Convolution" bottom: "q" top: "conv"
        convolution_param { num_output: 1024 kernel_h: 1 kernel_w: 2 dilation: 1 dilation: 3000 bias_term: false } }
layer { name: "d" type: "DeQuant" bottom: "conv" top: "conv" dequant_param { channel_wise: true } }
"""
    )
    graph = load_graph(tmp_path / "net.prototxt")
    scale = [np.ones(1024, np.float32), np.zeros(1024, np.float32), np.zeros(1024, np.float32)]
    blobs = {"conv": [np.ones((1024, 64, 1, 2), np.float32)], "d": scale}
    graph = graph.with_layers(one.with_(blobs=blobs.get(one.name, ())) for one in graph.layers)
    names = {b"MatMulIntegerToFloat": False, b"Conv": True}
    model = lower(graph, plan=IntegerPlan(graph)).model
    assert {name: name in model for name in names} == names


def test_a_layer_without_tops_wants_no_grid(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(blob("data", SMALL) + 'layer { name: "end" type: "ReLU" bottom: "data" }')
    assert IntegerPlan(load_graph(path)).grids == {}


@pytest.mark.parametrize("count", [2, MOST // 32], ids=["few", "many"])
def test_fillers_make_little_more_than_the_caffemodel_holds(tmp_path, count):
    paths = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    write_model(network(tmp_path, "ReLU", "", SMALL), *paths)
    settings = f'num_output: {count} weight_filler {{ type: "constant" value: 1 }}'
    network(tmp_path, "InnerProduct", f"inner_product_param {{ {settings} }}", SMALL)
    paths[0].write_text(paths[0].read_text().replace('name: "l"', 'name: "absent"'))
    if count == 2:
        assert load_graph(*paths).layers[-1].blobs[0].sum() == 64
        return
    with pytest.raises(ModelError, match="layer 'absent': its fillers and others would make 2,214,592,4.. weights"):
        load_graph(*paths)


def test_a_window_too_large_for_a_table_has_no_derivative(tmp_path, monkeypatch):
    path = tmp_path / "net.prototxt"
    path.write_text(
        blob("data", SMALL)
        + """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 1 kernel_size: 1 } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 2 } }
"""
    )
    graph = load_graph(path)
    blobs = [np.ones((1, 2, 1, 1), np.float32), np.ones(1, np.float32)]
    graph = graph.with_layers(one.with_(blobs=blobs if one.name == "conv" else ()) for one in graph.layers)
    assert [head.blob for head in lower_gradients(graph, None, ["conv"]).heads] == ["pool"]
    monkeypatch.setattr(windows, "MAX_TABLES_BYTES", 15)
    assert [head.blob for head in lower_gradients(graph, None, ["conv"]).heads] == ["pool", "conv"]


def test_layers_without_a_name_get_one_in_little_time(tmp_path):
    """Each of them once tried all the numbers of those before it."""
    path = tmp_path / "net.prototxt"
    path.write_text(blob("b", SMALL) + 'layer { type: "ReLU" bottom: "b" top: "b" }\n' * 2000)
    assert load_graph(path).layers[-1].name == "ReLU#2000"


def test_heads_are_found_once_however_many_ways_lead_there(tmp_path):
    """Each of these layers reads the one before twice: 2^40 ways."""
    path = tmp_path / "net.prototxt"
    path.write_text(
        blob("t0", (1, 1))
        + "".join(
            f'layer {{ name: "l{index}" type: "ContrastiveLoss" bottom: "t{index}" bottom: "t{index}" bottom: "t0" '
            f'top: "t{index + 1}" }}\n'
            for index in range(40)
        )
    )
    assert find_heads(load_graph(path)) == ()


def test_the_padding_of_im2col_is_one_zero(tmp_path):
    """Windows a billion apart meet the image once; it is not padded to two billion pixels for that."""
    settings = "convolution_param { kernel_size: 1 stride: 1000000000 pad: 1000000000 }"
    graph = network(tmp_path, "Im2col", settings, (1, 2, 1))
    feeds = {"b0": np.array([[[3], [4]]], np.float32)}
    assert Session(lower(graph)).run(feeds)["t0"].tolist() == [[[0, 3, 0], [0, 4, 0]]]


ENDLESS = {"end": '"' + '\\"' * 30000, "word": "a" * 60000 + "\\", "quotes": '\\"' * 30000}


@pytest.mark.parametrize("case", ENDLESS)
def test_strings_without_an_end_are_refused_in_little_time(tmp_path, case):
    """Each quote of these once was tried as the beginning of a string: a minute for 60,000 characters."""
    path = tmp_path / "net.prototxt"
    path.write_text(ENDLESS[case])
    with pytest.raises(ModelError, match="syntax error in line 1, column 1"):
        load_graph(path)
