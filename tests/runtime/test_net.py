"""`Net` behaves as pycaffe's does: constructors, blobs, forward's arguments and results, parameters."""

import sys

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import RuntimeFailure


@pytest.fixture
def files(tiny):
    return str(tiny / "tiny.prototxt"), str(tiny / "tiny.caffemodel")


@pytest.fixture
def net(files):
    return nuq.Net(*files, nuq.pycaffe.TEST)


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((4, 2, 8, 8), np.float32)


def test_constructors_agree(files, images):
    model, weights = files
    test = nuq.pycaffe.TEST
    nets = [
        nuq.Net(model, weights, test),
        nuq.Net(model, weights),
        nuq.Net(model, test, weights=weights),
        nuq.Net(model, test, 0, None, weights),
        nuq.Net(network_file=model, phase=test, weights=weights),
    ]
    results = [net.forward(data=images)["prob"] for net in nets]
    assert all((result == results[0]).all() for result in results)


def test_without_weights_a_net_has_what_its_fillers_say(files, images, tmp_path):
    net = nuq.Net(files[0], nuq.pycaffe.TEST)
    assert net.blobs["pool"].shape == (4, 8, 4, 4)
    assert net.forward(data=images)["prob"] == pytest.approx(0.1)  # zeros: the prototxt has no fillers
    source = nuq.Net(*files, nuq.pycaffe.TEST)
    for name, blobs in source.params.items():
        for own, other in zip(net.params[name], blobs, strict=True):
            own.data[...] = other.data
    net.save(tmp_path / "operated.caffemodel")
    again = nuq.Net(files[0], str(tmp_path / "operated.caffemodel"), nuq.pycaffe.TEST)
    right = source.forward(data=images)["prob"].copy()
    assert (net.forward(data=images)["prob"] == right).all()
    assert (again.forward(data=images)["prob"] == right).all()


def test_only_the_test_phase(files):
    with pytest.raises(RuntimeFailure, match="TEST"):
        nuq.Net(*files, nuq.pycaffe.TRAIN)


def test_names(net):
    assert (net.inputs, net.outputs) == (["data"], ["prob"])
    assert list(net.blobs) == ["data", "conv", "pool", "fc", "prob"]
    assert [parameter.shape for parameter in net.params["fc"]] == [(10, 128), (10,)]
    assert net.top_names["relu"] == ["conv"]
    assert [layer.type for layer in net.layers[:2]] == ["Input", "Convolution"]
    assert net.layer_dict["fc"].blobs[0] is net.params["fc"][0]


def test_forward_takes_inputs_by_name_or_from_the_blob(net, images):
    by_name = net.forward(data=images)["prob"].copy()
    net.blobs["data"].data[...] = images
    assert (net.forward()["prob"] == by_name).all()
    assert by_name.sum(axis=1) == pytest.approx(np.ones(4))


def test_result_is_the_blob(net, images):
    prob = net.blobs["prob"].data
    assert net.forward(data=images)["prob"] is prob
    assert prob.any()


def test_intermediate_blobs_belong_to_the_last_pass(net, images):
    net.forward(data=images)
    conv = net.blobs["conv"].data.copy()
    assert conv.min() == 0  # the ReLU in place was the last to write it
    net.blobs["data"].data[...] = 0
    assert (net.blobs["conv"].data == conv).all()
    assert (net.forward(data=images, blobs=["conv", "fc"])["conv"] == conv).all()


def test_end_and_start(net, images):
    whole = net.forward(data=images)["prob"].copy()
    part = net.forward(data=images, end="pool")
    assert list(part) == ["pool"]
    assert (net.forward(start="fc")["prob"] == whole).all()


def test_reshape(net, images):
    expected = net.forward(data=images)["prob"][:1].copy()
    net.blobs["data"].reshape(1, 2, 8, 8)
    net.reshape()
    assert net.blobs["conv"].shape == (1, 8, 8, 8)
    assert net.forward(data=images[:1])["prob"] == pytest.approx(expected, rel=1e-5)


def test_forward_reshapes_by_itself(net, images):
    net.blobs["data"].reshape(2, 2, 8, 8)
    net.blobs["data"].data[...] = images[:2]
    assert net.forward()["prob"].shape == (2, 10)


def test_forward_all_pads_the_last_batch(net):
    images = np.random.default_rng(1).standard_normal((7, 2, 8, 8), np.float32)
    result = net.forward_all(data=images)["prob"]
    assert result.shape == (7, 10)
    assert result[4:6] == pytest.approx(net.forward(data=np.tile(images[4:6], (2, 1, 1, 1)))["prob"][:2], rel=1e-5)


def test_wrong_inputs_are_refused_in_pycaffes_words(net, images):
    with pytest.raises(Exception, match="do not match net inputs"):
        net.forward(image=images)
    with pytest.raises(Exception, match="not batch sized"):
        net.forward(data=images[:1])


def test_parameters_can_be_written(net, images, tmp_path):
    before = net.forward(data=images)["prob"].copy()
    net.params["fc"][0].data[...] = 0
    net.params["fc"][1].data[...] = 0
    assert net.forward(data=images)["prob"] == pytest.approx(np.full((4, 10), 0.1), rel=1e-6)
    net.save(tmp_path / "zero.caffemodel")
    net.copy_from(tmp_path / "tiny.caffemodel")
    assert (net.forward(data=images)["prob"] == before).all()
    net.copy_from(tmp_path / "zero.caffemodel")
    assert net.forward(data=images)["prob"] == pytest.approx(np.full((4, 10), 0.1), rel=1e-6)


def test_install_gives_scripts_their_caffe(files, request):
    request.addfinalizer(lambda: sys.modules.pop("caffe", None))
    nuq.pycaffe.install()
    import caffe

    caffe.set_mode_cpu()
    caffe.set_device(0)
    assert isinstance(caffe.Net(*files, caffe.TEST), nuq.Net)
    with pytest.raises(RuntimeFailure, match="onnxruntime-gpu"):
        caffe.set_mode_gpu()


def test_the_package_has_the_names_of_the_module_that_a_script_gets():
    from autonuq.pycaffe import module

    names = {}
    exec("from autonuq.pycaffe import *", names)
    assert {name for name in names if not name.startswith("__")} == set(module.__all__)
    assert nuq.pycaffe.__version__ == module.__version__


def test_numbers_of_blobs_and_layers(net):
    assert net._blob_names == list(net.blobs)
    assert net._blobs == list(net.blobs.values())
    assert [net._blob_names[index] for index in net._inputs] == net.inputs
    assert [net._blob_names[index] for index in net._outputs] == net.outputs
    for index, name in enumerate(net._layer_names):
        assert [net._blob_names[blob] for blob in net._bottom_ids(index)] == net.bottom_names[name]
        assert [net._blob_names[blob] for blob in net._top_ids(index)] == net.top_names[name]
    assert net._blob_loss_weights == [0] * len(net.blobs)


def test_losses_count_one_unless_their_layer_says_otherwise(tmp_path):
    (tmp_path / "n.prototxt").write_text("""
    layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "a" type: "EuclideanLoss" bottom: "x" bottom: "y" top: "a" }
    layer { name: "b" type: "EuclideanLoss" bottom: "x" bottom: "y" top: "b" loss_weight: 0.5 }
    layer { name: "c" type: "Reduction" bottom: "x" top: "c" loss_weight: 2 }
    """)
    net = nuq.Net(tmp_path / "n.prototxt", nuq.pycaffe.TEST)
    assert dict(net.blob_loss_weights) == {"x": 0, "y": 0, "a": 1, "b": 0.5, "c": 2}


def test_nets_share_parameters(files, images):
    one, other = nuq.Net(*files), nuq.Net(*files)
    one.params["fc"][0].data[...] *= 2
    other.share_with(one)
    np.testing.assert_array_equal(other.forward(data=images)["prob"], one.forward(data=images)["prob"])
    other.params["fc"][1].data[...] += 3
    np.testing.assert_array_equal(one.forward(data=images)["prob"], other.forward()["prob"])
    assert (one.params["fc"][1].data == other.params["fc"][1].data).all()


def test_training_is_refused_by_name(net):
    for call in (net.backward, net.forward_backward_all):
        with pytest.raises(RuntimeFailure, match="executed here, not trained"):
            call()


def test_a_parameter_that_is_reshaped_must_fit_its_layer(net, images):
    weights = net.params["fc"][0]
    before = weights.data.copy()
    weights.reshape(128, 10)
    assert (weights.num, weights.channels) == (128, 10)
    np.testing.assert_array_equal(weights.data.ravel(), before.ravel())
    with pytest.raises(nuq.ModelError, match=r"layer 'fc': .*blob 0 has shape \(128, 10\).*must be \(10, 128\)"):
        net.forward(data=images)
    weights.reshape(10, 128)
    net.forward(data=images)
