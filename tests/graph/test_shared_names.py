"""Layers that share a name, or have none: Caffe has no rule against it."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import ModelError
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.wire import delimited, encode_varints

NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "a" convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "conv" type: "ReLU" bottom: "a" top: "a" }
layer { type: "Power" bottom: "a" top: "b" power_param { scale: 2 shift: -1 } }
layer { name: "pool" type: "Pooling" bottom: "b" top: "p" pooling_param { pool: AVE kernel_size: 2 } }
layer { name: "conv" type: "Convolution" bottom: "p" top: "c"
        convolution_param { num_output: 2 kernel_size: 1 FILLER } }
layer { type: "Power" bottom: "c" top: "d" power_param { scale: 3 } }
layer { name: "pool" type: "Pooling" bottom: "d" top: "out" pooling_param { pool: AVE kernel_size: 2 } }
"""
FIRST = 'type: "Convolution" bottom: "x"'
FILLED = NET.replace("FILLER", "weight_filler { value: 0.5 }")
NAMES = ["in", "conv", "conv#2", "Power", "pool", "conv#3", "Power#2", "pool#2"]
W, B = np.array([[1.0, 2], [3, -4]]).reshape(2, 2, 1, 1), np.array([0.5, -1])
X = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)


def stored(name, *blobs):
    parts = [*delimited(1, [name.encode()])]
    for blob in blobs:
        shape = delimited(7, delimited(1, [encode_varints(np.array(blob.shape))]))
        parts += delimited(7, [*shape, *delimited(5, [blob.astype("<f4").tobytes()])])
    return b"".join(delimited(100, parts))


@pytest.fixture
def write(tmp_path):
    def files(text, *layers):
        (tmp_path / "net.prototxt").write_text(text)
        (tmp_path / "net.caffemodel").write_bytes(b"".join(layers))
        return str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")

    return files


def right():
    a = np.maximum(np.einsum("oi,bihw->bohw", W[:, :, 0, 0], X) + B.reshape(2, 1, 1), 0)
    windows = np.lib.stride_tricks.sliding_window_view(2 * a - 1, (2, 2), (2, 3)).mean((4, 5))
    c = 0.5 * windows.sum(1, keepdims=True).repeat(2, 1)
    return np.lib.stride_tricks.sliding_window_view(3 * c, (2, 2), (2, 3)).mean((4, 5))


def test_layers_are_told_apart(write):
    graph = load_graph(*write(FILLED, stored("conv", W, B)))
    assert [layer.name for layer in graph.layers] == NAMES
    assert [layer.caffe_name for layer in graph.layers] == ["in", "conv", "conv", "", "pool", "conv", "", "pool"]


def test_a_name_that_is_given_stays(write):
    text = NET.replace("FILLER", "").replace('type: "Power" bottom: "a"', 'name: "conv#2" type: "Power" bottom: "a"')
    model, _ = write(text)
    assert [layer.name for layer in load_graph(model).layers][1:6] == ["conv", "conv#3", "conv#2", "pool", "conv#4"]


def test_pycaffe_shows_the_names_of_the_file(write):
    net = nuq.Net(*write(FILLED, stored("conv", W, B)), nuq.pycaffe.TEST)
    assert net._layer_names == ["in", "conv", "conv", "", "pool", "conv", "", "pool"]
    assert len(net.layers) == 8
    assert [layer.type for layer in net.layers[1:3]] == ["Convolution", "ReLU"]
    assert list(net.params) == ["conv"]
    assert net.params["conv"] is net.layers[5].blobs  # the last of a name
    assert net.layer_dict["conv"].type == "Convolution"
    assert net.top_names["pool"] == ["out"]
    assert net.forward(x=X)["out"] == pytest.approx(right(), rel=1e-5)
    assert list(net.forward(x=X, end="conv")) == ["a"]  # the first of a name, as pycaffe looks for it


def test_blobs_go_to_the_first_layer_of_their_name_that_has_some(write):
    other = stored("conv", 9 * W, 9 * B)
    for layers in ([stored("conv", W, B), stored("conv")], [other, stored("conv", W, B)]):
        graph = load_graph(*write(FILLED, *layers))
        assert (graph.by_name["conv"].blobs[0] == W).all()
        assert (graph.by_name["conv#3"].blobs[0] == 0.5).all()
    swapped = FILLED.replace(
        'name: "conv" type: "Convolution" bottom: "x"', 'name: "c" type: "Convolution" bottom: "x"'
    )
    graph = load_graph(*write(swapped, stored("c", W, B), other))
    assert (graph.by_name["conv#2"].blobs[0] == 9 * W).all()  # the ReLU of this name has none


def test_a_second_layer_without_a_fixed_filler_is_refused_with_the_reason(write):
    for filler in ("", 'weight_filler { type: "xavier" }'):
        with pytest.raises(ModelError, match="layer 'conv#3'.*of several layers 'conv' the first gets that layer's"):
            load_graph(*write(NET.replace("FILLER", filler), stored("conv", W, B)))


def test_layers_without_a_name_have_blobs_too(write):
    text = NET.replace("FILLER", "").replace(f'name: "conv" {FIRST}', FIRST)
    graph = load_graph(*write(text, stored("", W, B), stored("conv", 2 * W, B)))
    assert (graph.by_name["Convolution"].blobs[0] == W).all()
    assert (graph.by_name["conv#2"].blobs[0] == 2 * W).all()


def test_written_files_give_every_layer_its_own_blobs(write, tmp_path):
    model, weights = write(FILLED, stored("conv", W, B))
    net = nuq.Net(model, weights, nuq.pycaffe.TEST)
    net.params["conv"][0].data[...] = 0.25
    net.save(tmp_path / "saved.caffemodel")
    assert [name for name in load_caffemodel(tmp_path / "saved.caffemodel") if "conv" in name] == NAMES[1:3] + NAMES[
        5:6
    ]
    again = load_graph(model, tmp_path / "saved.caffemodel")
    assert (again.by_name["conv"].blobs[0] == W).all()
    assert (again.by_name["conv#3"].blobs[0] == 0.25).all()
    write_model(again, tmp_path / "copy.prototxt", tmp_path / "copy.caffemodel")
    copy = load_graph(tmp_path / "copy.prototxt", tmp_path / "copy.caffemodel")
    assert [layer.caffe_name for layer in copy.layers] == NAMES
    assert [layer.message for layer in copy.layers] == [layer.message for layer in again.layers]


def test_the_whole_product_takes_them(write, run_in, tmp_path):
    write(FILLED, stored("conv", W, B))
    pair = ("net.prototxt", "net.caffemodel")
    shown = run_in(tmp_path, "inspect", *pair)
    assert "conv#3" in shown.stdout
    assert run_in(tmp_path, "new", "study", "--model", pair[0], "--weights", pair[1]).returncode == 0
    evaluator = tmp_path / "study/evaluate.py"
    evaluator.write_text(evaluator.read_text().replace("< 0.1", "< 10"))
    for command in ("check", "tune"):
        done = run_in(tmp_path, command, "study/study.toml", *(["--trials", "2"] if command == "tune" else []))
        assert done.returncode in (0, 9), done.stderr
    for kind in ("onnx", "packed", "caffe", "deploy"):
        assert run_in(tmp_path, "export", "study/study.toml", "--format", kind, "-o", f"to/{kind}").returncode == 0
    assert run_in(tmp_path, "unpack", "to/packed.nuq", "-o", "to/unpacked").returncode == 0
    fake = nuq.Net("to/unpacked_fake_quant_model.prototxt", "to/unpacked_fake_quant_weights.caffemodel")
    found, wanted = fake.forward(x=X)["out"], right()
    assert np.abs(found - wanted).max() < 0.5 * np.abs(wanted).max()
