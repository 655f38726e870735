"""Networks written as Python expressions come out as pycaffe writes them, and run."""

import sys

import numpy as np
import pytest

import autonuq as nuq
from autonuq.pycaffe import NetSpec, io, to_proto
from autonuq.pycaffe import layers as L
from autonuq.pycaffe import params as P


def lenet():
    n = NetSpec()
    n.data = L.Input(input_param=dict(shape=dict(dim=[2, 1, 12, 12])))
    n.conv1 = L.Convolution(
        n.data,
        kernel_size=5,
        num_output=4,
        param=[dict(lr_mult=1, decay_mult=1), dict(lr_mult=2)],
        weight_filler=dict(type="xavier"),
    )
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.AVE)
    n.relu1 = L.ReLU(n.pool1, in_place=True)
    n.score = L.InnerProduct(L.Dropout(n.relu1), num_output=3)
    return n


def test_names_order_and_parameters():
    n = lenet()
    net = n.to_proto()
    assert [(layer.name, layer.type) for layer in net.layer] == [
        ("data", "Input"),
        ("conv1", "Convolution"),
        ("pool1", "Pooling"),
        ("relu1", "ReLU"),
        ("Dropout1", "Dropout"),
        ("score", "InnerProduct"),
    ]
    conv, pool, relu, dropout = net.layer[1:5]
    assert list(conv.convolution_param.kernel_size) == [5]
    assert [spec.lr_mult for spec in conv.param] == [1, 2]
    assert conv.convolution_param.weight_filler.type == "xavier"
    assert pool.pooling_param.pool == io.caffe_pb2.PoolingParameter.AVE
    assert (list(relu.bottom), list(relu.top)) == (["pool1"], ["pool1"])
    assert list(dropout.bottom) == ["pool1"]
    assert n.keys() == ["data", "conv1", "pool1", "relu1", "score"]


def test_what_is_written_runs(tmp_path):
    model, weights = tmp_path / "n.prototxt", tmp_path / "n.caffemodel"
    net = lenet().to_proto()
    model.write_text(str(net))
    rng = np.random.default_rng(0)
    for layer, shapes in ((net.layer[1], [(4, 1, 5, 5), (4,)]), (net.layer[5], [(3, 64), (3,)])):
        layer.blobs.extend(io.array_to_blobproto(rng.random(shape)) for shape in shapes)
    weights.write_bytes(net.SerializeToString())
    out = nuq.Net(model, weights, nuq.pycaffe.TEST).forward(data=rng.random((2, 1, 12, 12)))
    assert out["score"].shape == (2, 3)


def test_several_tops_none_and_automatic_names():
    n = NetSpec()
    n.data, n.label = L.Data(
        source="db", batch_size=8, backend=P.Data.LMDB, ntop=2, transform_param=dict(mean_value=104)
    )
    first, second = L.Slice(n.data, ntop=2, slice_point=[1])
    n.both = L.Eltwise(first, second, operation=P.Eltwise.MAX)
    n.quiet = L.Silence(n.label, ntop=0)
    net = n.to_proto()
    assert [layer.name for layer in net.layer] == ["data", "Slice1", "both", "quiet"]
    assert list(net.layer[0].top) == ["data", "label"]
    assert list(net.layer[0].transform_param.mean_value) == [104]
    assert list(net.layer[1].top) == list(net.layer[2].bottom) == ["Slice1", "Slice2"]
    assert not net.layer[3].top


def test_python_layers_and_fields_of_the_layer():
    n = NetSpec()
    n.x = L.DummyData(shape=[dict(dim=[1, 2])])
    n.y = L.Python(
        n.x, module="mine", layer="Mine", param_str="{'a': 1}", loss_weight=2, include=dict(phase=nuq.pycaffe.TEST)
    )
    layer = n.to_proto().layer[1]
    assert (layer.python_param.module, layer.python_param.layer) == ("mine", "Mine")
    assert list(layer.loss_weight) == [2]
    assert layer.include[0].phase == nuq.pycaffe.TEST


def test_to_proto_of_tops_alone():
    top = L.ReLU(L.Convolution(L.Input(), num_output=2))
    net = to_proto(top)
    assert [layer.name for layer in net.layer] == ["Input1", "Convolution1", "ReLU1"]
    assert str(top.to_proto()) == str(net)


def test_a_network_of_any_depth_is_written():
    top = L.Input()
    for _ in range(5000):
        top = L.ReLU(top)
    assert len(to_proto(top).layer) == 5001


def test_tops_can_be_read_changed_and_deleted():
    n = lenet()
    assert n["score"] is n.score is n.vals()[-1]
    n.update("score", {"num_output": 7})
    del n["relu1"]
    assert n.to_proto().layer[-1].inner_product_param.num_output == 7
    with pytest.raises(AttributeError, match="no top 'relu1'"):
        n.relu1  # noqa: B018


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: L.ReLU("data"), TypeError, "ReLU input 0 is not a Top"),
        (
            lambda: to_proto(L.Convolution(L.Input(), outputs=3)),
            AttributeError,
            "Convolution has no parameter.*'outputs'",
        ),
        (lambda: P.Poling.MAX, AttributeError, "PolingParameter"),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_scripts_import_it_from_caffe(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "caffe"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    nuq.pycaffe.install()
    try:
        import caffe
        from caffe.net_spec import layers
        from caffe.proto import caffe_pb2

        assert layers is caffe.layers is L
        assert caffe.params is P
        assert isinstance(caffe.NetSpec().to_proto(), caffe_pb2.NetParameter)
        assert caffe.coord_map.crop
        assert caffe.classifier.Classifier is caffe.Classifier
        assert "Convolution" in caffe.layer_type_list()
        with pytest.raises(nuq.RuntimeFailure, match="not trained"):
            caffe.SGDSolver("solver.prototxt")
        with pytest.raises(nuq.RuntimeFailure, match="not trained"):
            caffe.get_solver("solver.prototxt")
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "caffe":
                del sys.modules[name]
