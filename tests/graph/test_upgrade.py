"""Older spellings: V0 and V1 layers, legacy blobs, inputs, rules."""

import numpy as np
import pytest
from google.protobuf import text_format

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.upgrade import v1_type_name

V0 = """
name: "old"
input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers { layer { name: "conv1" type: "conv" num_output: 4 kernelsize: 5 stride: 2 group: 1 biasterm: true
         weight_filler { type: "gaussian" std: 0.01 } blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 }
         bottom: "pad1" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "conv1" top: "pool1" }
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.5 beta: 0.25 k: 2 } bottom: "pool1" top: "norm1" }
layers { layer { name: "flat" type: "flatten" } bottom: "norm1" top: "flat" }
layers { layer { name: "fc" type: "innerproduct" num_output: 3 biasterm: false } bottom: "flat" top: "fc" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.25 } bottom: "fc" top: "fc" }
layers { layer { name: "cat" type: "concat" concat_dim: 1 } bottom: "fc" bottom: "flat" top: "cat" }
layers { layer { name: "prob" type: "softmax" } bottom: "cat" top: "prob" }
"""
V2 = """
name: "new"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 5 stride: 2 pad: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
        lrn_param { local_size: 3 alpha: 0.5 beta: 0.25 k: 2 } }
layer { name: "flat" type: "Flatten" bottom: "norm1" top: "flat" }
layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc"
        inner_product_param { num_output: 3 bias_term: false } }
layer { name: "drop" type: "Dropout" bottom: "fc" top: "fc" }
layer { name: "cat" type: "Concat" bottom: "fc" bottom: "flat" top: "cat" }
layer { name: "prob" type: "Softmax" bottom: "cat" top: "prob" }
"""


def legacy_blob(values):
    """Return a blob of four dimensions, ones in front: the spelling before shapes."""
    num, channels, height, width = (1,) * (4 - values.ndim) + values.shape
    return caffe_pb2.BlobProto(
        num=num, channels=channels, height=height, width=width, data=values.astype("<f4").tobytes()
    )


def write_v0(folder, weights):
    net = text_format.Parse(V0, caffe_pb2.NetParameter())
    (folder / "old.prototxt").write_text(V0)
    for layer in net.layers:
        layer.layer.blobs.extend(legacy_blob(values) for values in weights.get(layer.layer.name, []))
    (folder / "old.caffemodel").write_bytes(net.SerializeToString())
    return folder / "old.prototxt", folder / "old.caffemodel"


def write_v2(folder, weights):
    (folder / "new.prototxt").write_text(V2)
    graph = load_graph(folder / "new.prototxt")
    graph = graph.with_layers(
        layer.with_(blobs=weights[layer.name]) if layer.name in weights else layer for layer in graph.layers
    )
    write_model(graph, folder / "new.prototxt", folder / "new.caffemodel")
    return folder / "new.prototxt", folder / "new.caffemodel"


def test_v0_net_computes_what_its_v2_spelling_does(tmp_path, rng):
    from autonuq.runtime.net import Net

    shapes = {"conv1": [(4, 3, 5, 5), (4,)], "fc": [(3, 16)]}
    weights = {name: [np.float32(rng.normal(size=shape)) for shape in found] for name, found in shapes.items()}
    x = rng.normal(size=(2, 3, 8, 8))
    results = []
    for files in (write_v0(tmp_path, weights), write_v2(tmp_path, weights)):
        net = Net(*files)
        results.append(net.forward(data=x)["prob"])
    np.testing.assert_array_equal(*results)
    assert results[0].shape == (2, 19)


def test_v0_padding_disappears_and_learning_rates_stay(tmp_path):
    (tmp_path / "old.prototxt").write_text(V0)
    graph = load_graph(tmp_path / "old.prototxt")
    assert "pad1" not in graph.by_name
    conv = graph.by_name["conv1"].message
    assert list(conv.convolution_param.pad) == [2]
    assert list(conv.bottom) == ["data"]
    assert [(spec.lr_mult, spec.decay_mult) for spec in conv.param] == [(1, 1), (2, 0)]
    assert conv.convolution_param.weight_filler.std == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ('layers { layer { name: "a" type: "magic" } bottom: "data" top: "a" }', "V0 layer type 'magic'"),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "data" top: "p" } '
            'layers { layer { name: "r" type: "relu" } bottom: "p" top: "r" }',
            "can be padded",
        ),
    ],
)
def test_v0_mistakes_are_named(tmp_path, layers, words):
    path = tmp_path / "net.prototxt"
    path.write_text('input: "data" input_dim: 1 input_dim: 1 input_dim: 2 input_dim: 2 ' + layers)
    with pytest.raises(ModelError, match=words):
        load_graph(path)


def test_every_v1_type_has_the_name_of_its_registry():
    names = {value.name: v1_type_name(value.number) for value in caffe_pb2.V1LayerParameter.LayerType.DESCRIPTOR.values}
    assert names.pop("NONE") == ""
    assert names["SOFTMAX_LOSS"] == "SoftmaxWithLoss"
    assert names["SIGMOID_CROSS_ENTROPY_LOSS"] == "SigmoidCrossEntropyLoss"
    assert names["EUCLIDEAN_LOSS"] == "EuclideanLoss"
    assert names["INNER_PRODUCT"] == "InnerProduct"
    assert all(names.values())


def test_v1_sharing_and_transformation_move(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        """
        input: "data" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
        layers { name: "train" type: DATA top: "t" include { phase: TRAIN } data_param { source: "db" scale: 0.5 } }
        layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" param: "w" param: "b" blob_share_mode: PERMISSIVE
                 blobs_lr: 3 convolution_param { num_output: 2 kernel_size: 1 } }
        """
    )
    specs = load_graph(path).by_name["c"].message.param
    assert [(spec.name, spec.share_mode, spec.lr_mult) for spec in specs] == [
        ("w", caffe_pb2.ParamSpec.PERMISSIVE, 3),
        ("b", caffe_pb2.ParamSpec.STRICT, 1),
    ]


def test_three_parameter_specs_of_batch_norm_do_not_learn(tmp_path):
    path = tmp_path / "net.prototxt"
    specs = "param { lr_mult: 1 name: 'm' } " + "param { decay_mult: 2 } " * 2
    path.write_text(
        'input: "x" input_shape { dim: 1 dim: 2 } '
        f'layer {{ name: "b" type: "BatchNorm" bottom: "x" top: "y" {specs} }}'
    )
    assert [(s.name, s.lr_mult, s.decay_mult) for s in load_graph(path).by_name["b"].message.param] == [
        ("m", 0, 0), ("", 0, 0), ("", 0, 0),
    ]  # fmt: skip


def test_a_layer_may_be_called_input_beside_old_inputs(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text('input: "x" input_shape { dim: 1 } layer { name: "input" type: "ReLU" bottom: "x" top: "input" }')
    assert list(load_graph(path).by_name) == ["input_", "input"]


def test_both_kinds_of_rules_are_refused(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        'input: "x" input_shape { dim: 1 } '
        'layer { name: "r" type: "ReLU" bottom: "x" top: "y" include { phase: TEST } exclude { phase: TRAIN } }'
    )
    with pytest.raises(ModelError, match="include and exclude"):
        load_graph(path)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("include { phase: TEST min_level: 2 }", False),
        ("include { max_level: 1 stage: 'deploy' }", True),
        ("include { stage: 'deploy' stage: 'other' }", False),
        ("include { not_stage: 'deploy' }", False),
        ("exclude { not_stage: 'train' }", False),
        ("exclude { phase: TRAIN } exclude { min_level: 2 }", True),
    ],
)
def test_rules_follow_level_and_stages(tmp_path, rules, kept):
    path = tmp_path / "net.prototxt"
    path.write_text(
        f'input: "x" input_shape {{ dim: 1 }} layer {{ name: "r" type: "ReLU" bottom: "x" top: "y" {rules} }}'
    )
    assert ("r" in load_graph(path, level=1, stages=["deploy"]).by_name) is kept
