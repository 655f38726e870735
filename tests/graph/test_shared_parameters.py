"""Layers that name their parameters alike have one blob."""

import numpy as np
import pytest

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import load_graph, write_model

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" lr_mult: 2 } param { name: "b" }
        inner_product_param { num_output: 3 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" MODE } param { name: "b" }
        inner_product_param { num_output: 3 transpose: TRANSPOSE } }
"""


def write(folder, layers, mode="", transpose="false", net=NET):
    (folder / "net.prototxt").write_text(net.replace("MODE", mode).replace("TRANSPOSE", transpose))
    message = caffe_pb2.NetParameter()
    for name, blobs in layers:
        layer = message.layer.add(name=name, type="InnerProduct")
        for blob in blobs:
            layer.blobs.add(shape=caffe_pb2.BlobShape(dim=blob.shape), data=blob.astype("<f4").tobytes())
    (folder / "net.caffemodel").write_bytes(message.SerializeToString())
    return folder / "net.prototxt", folder / "net.caffemodel"


def blobs(value):
    return [np.full((3, 3), value, np.float32), np.full(3, value, np.float32)]


@pytest.mark.parametrize(("order", "value"), [("ab", 2), ("ba", 1)])
def test_the_last_layer_in_the_file_counts(tmp_path, order, value):
    files = write(tmp_path, [(name, blobs({"a": 1, "b": 2}[name])) for name in order])
    graph = load_graph(*files)
    for name in "ab":
        assert (graph.by_name[name].blobs[0] == value).all()
    assert np.shares_memory(graph.by_name["a"].blobs[0], graph.by_name["b"].blobs[0])


def test_a_layer_that_owns_nothing_may_be_missing(tmp_path):
    graph = load_graph(*write(tmp_path, [("a", blobs(4))]))
    assert (graph.by_name["b"].blobs[1] == 4).all()


def test_a_layer_that_owns_something_may_not(tmp_path):
    net = NET.replace('MODE } param { name: "b" }', '} param { name: "c" }')
    with pytest.raises(ModelError, match="no layer of this name"):
        load_graph(*write(tmp_path, [("a", blobs(4))], net=net))


def test_permissive_sharing_compares_counts_only(tmp_path):
    net = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 3 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
            inner_product_param { num_output: 3 } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" MODE }
            inner_product_param { num_output: 1 axis: 0 bias_term: false } }
    """
    strict = write(tmp_path, [("a", blobs(1))], net=net)
    with pytest.raises(ModelError, match="shares 'w' of shape"):
        load_graph(*strict)
    graph = load_graph(*write(tmp_path, [("a", blobs(1))], mode="share_mode: PERMISSIVE", net=net))
    assert graph.by_name["b"].blobs[0].shape == (1, 9)


def test_files_keep_sharing_while_values_are_equal(tmp_path):
    graph = load_graph(*write(tmp_path, [("a", blobs(4))]))
    write_model(graph, tmp_path / "same.prototxt", tmp_path / "same.caffemodel")
    again = load_graph(tmp_path / "same.prototxt", tmp_path / "same.caffemodel")
    assert [spec.name for spec in again.by_name["a"].message.param] == ["w", "b"]
    assert again.by_name["a"].message.param[0].lr_mult == 2
    assert again.by_name["b"].blobs[0] is not None


def test_files_give_sharing_up_where_values_differ(tmp_path):
    graph = load_graph(*write(tmp_path, [("a", blobs(4))]))
    other = blobs(5)[:1] + blobs(4)[1:]
    changed = [layer.with_(blobs=other) if layer.name == "b" else layer for layer in graph.layers]
    write_model(graph.with_layers(changed), tmp_path / "two.prototxt", tmp_path / "two.caffemodel")
    again = load_graph(tmp_path / "two.prototxt", tmp_path / "two.caffemodel")
    assert (again.by_name["a"].blobs[0] == 4).all()
    assert (again.by_name["b"].blobs[0] == 5).all()
    assert [spec.name for spec in again.by_name["a"].message.param] == ["", "b"]
    assert again.by_name["a"].message.param[0].lr_mult == 2
