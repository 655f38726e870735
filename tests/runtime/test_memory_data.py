"""MemoryData: its shape is in the prototxt, a script hands over arrays, every pass takes the next batch."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import ModelError, RuntimeFailure

TEXT = """
layer { name: "in" type: "MemoryData" top: "x" top: "label"
        memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 } }
layer { name: "double" type: "Power" bottom: "x" top: "y" power_param { scale: 2 } }
layer { name: "loss" type: "Power" bottom: "label" top: "l" }
"""


def build(folder, text=TEXT):
    (folder / "n.prototxt").write_text(text)
    return nuq.Net(folder / "n.prototxt", nuq.pycaffe.TEST)


@pytest.fixture
def net(tmp_path):
    return build(tmp_path)


def items(count):
    return np.random.default_rng(0).random((count, 3, 4, 5), np.float32)


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1, 1)])
def test_every_pass_takes_the_next_batch_and_begins_again(net, shape):
    data, labels = items(6), np.arange(6, dtype=np.float32)
    net.set_input_arrays(data, labels.reshape(shape))
    for begin in (0, 2, 4, 0, 2):
        out = net.forward()
        np.testing.assert_array_equal(out["y"], 2 * data[begin : begin + 2])
        np.testing.assert_array_equal(out["l"], labels[begin : begin + 2])
        np.testing.assert_array_equal(net.blobs["x"].data, data[begin : begin + 2])


def test_new_arrays_begin_with_their_first_batch(net):
    net.set_input_arrays(items(4), np.zeros(4, np.float32))
    net.forward()
    net.set_input_arrays(items(2) + 1, np.zeros(2, np.float32))
    np.testing.assert_array_equal(net.forward()["y"], 2 * (items(2) + 1))


def test_a_pass_that_starts_behind_takes_no_batch(net):
    net.set_input_arrays(items(4), np.zeros(4, np.float32))
    net.forward()
    net.blobs["x"].data[...] = 7
    assert (net.forward(start="double")["y"] == 14).all()
    np.testing.assert_array_equal(net.forward()["y"], 2 * items(4)[2:])


def test_shapes_are_the_prototxts_and_the_layer_is_no_input(net):
    assert net.inputs == []
    assert net.blobs["x"].shape == (2, 3, 4, 5)
    assert net.blobs["label"].shape == (2,)
    net.blobs["x"].reshape(9, 3, 4, 5)
    net.set_input_arrays(items(2), np.zeros(2, np.float32))
    assert net.forward()["y"].shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (items(3), np.zeros(3, np.float32), "3 items are no multiple of batch_size 2"),
        (items(0), np.zeros(0, np.float32), "0 items are no multiple"),
        (items(4), np.zeros(2, np.float32), "4 items, but 2 labels"),
        (items(4)[:, :2], np.zeros(4, np.float32), "C-contiguous"),
        (items(4)[:, :2].copy(), np.zeros(4, np.float32), r"data must have shape \(n, 3, 4, 5\)"),
        (items(4)[0], np.zeros(4, np.float32), r"data must have shape"),
        (items(4).astype(np.float64), np.zeros(4, np.float32), "float32. Got float64"),
        (items(4), np.zeros(4, int), "labels must be .* float32. Got int64"),
        (items(4), [0.0] * 4, "labels must be .* Got list"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(net, data, labels, message):
    with pytest.raises(ValueError, match=f"layer 'in': .*{message}"):
        net.set_input_arrays(data, labels)


def test_without_arrays_a_pass_says_what_to_do(net):
    with pytest.raises(RuntimeFailure, match=r"layer 'in': .*set_input_arrays\(data, labels\)"):
        net.forward()


def test_other_nets_take_no_arrays(tiny):
    net = nuq.Net(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    with pytest.raises(RuntimeFailure, match="first layer is a MemoryData"):
        net.set_input_arrays(items(2), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 2 ", "", "must be positive"),
        ('top: "label"', "", "makes 2 tops"),
    ],
)
def test_a_layer_without_a_size_is_refused(tmp_path, old, new, message):
    text = TEXT.replace(old, new).partition('layer { name: "loss"')[0]
    with pytest.raises(ModelError, match=f"layer 'in': .*{message}"):
        build(tmp_path, text)


def test_the_old_spelling(tmp_path):
    net = build(
        tmp_path,
        """layers { name: "in" type: MEMORY_DATA top: "x" top: "label"
                    memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 } }
           layers { name: "double" type: POWER bottom: "x" top: "y" power_param { scale: 2 } }""",
    )
    net.set_input_arrays(items(2), np.float32([5, 6]))
    out = net.forward()
    np.testing.assert_array_equal(out["y"], 2 * items(2))
    np.testing.assert_array_equal(out["label"], [5, 6])
