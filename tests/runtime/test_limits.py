"""What memory does not hold is refused with what it takes and what is left, before the system has to act."""

import sys
from pathlib import Path

import pytest

from autonuq.errors import RuntimeFailure
from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.runtime import limits
from autonuq.runtime.limits import pass_bytes
from autonuq.runtime.memory import available_memory
from autonuq.runtime.net import Net

NETWORK = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 100000 dim: 10 dim: 10 dim: 10 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 10 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "wide" type: "Tile" bottom: "conv" top: "wide" tile_param { tiles: 4 } }
layer { name: "end" type: "Reduction" bottom: "wide" top: "end" reduction_param { axis: 0 } }
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "net.prototxt").write_text(NETWORK)
    return tmp_path


@pytest.fixture
def left(monkeypatch):
    """Say how much memory is left, in a process that has run nothing yet."""
    monkeypatch.setattr(limits, "_arena", limits._Arena())
    return lambda count: monkeypatch.setattr(limits, "available_memory", lambda: count)


def test_a_pass_counts_what_is_there_at_once(files):
    """What is fed is there twice, 1e8 values each; `conv` goes when `wide` is made, and `wide` behind `end`."""
    graph = load_graph(files / "net.prototxt")
    assert pass_bytes(graph, infer_shapes(graph)) == ("wide", 4 * (2 * 10**8 + 5 * 10**5 + 2 * 10**6))


def test_a_pass_counts_what_a_deconvolution_makes(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 10 dim: 10 } } }\n'
        'layer { name: "up" type: "Deconvolution" bottom: "data" top: "up" '
        "convolution_param { num_output: 3 kernel_size: 7 stride: 2 } }"
    )
    graph = load_graph(path)
    top = 3 * 25 * 25
    assert pass_bytes(graph, infer_shapes(graph)) == ("up", 4 * (2 * 200 + top + 3 * 49 * 100))


def test_a_pass_that_memory_does_not_hold_is_refused(files, left):
    net = Net(files / "net.prototxt")
    left(0.7e9)
    message = "net.prototxt, layer 'wide': a pass takes 0.8 GB at least where this layer runs, but 0.7 GB of memory are"
    with pytest.raises(RuntimeFailure, match=message):
        net.forward()
    left(0.9e9)
    limits.refuse_pass(load_graph(files / "net.prototxt"))
    left(0.1e9)
    limits.refuse_pass(load_graph(files / "net.prototxt"))  # what the last pass took is there for the next one
    net.blobs["data"].reshape(1, 10, 10, 10)
    assert net.forward()["end"].shape == ()


def test_a_blob_that_memory_does_not_hold_is_refused(files, left):
    net = Net(files / "net.prototxt")
    left(0.3e9)
    with pytest.raises(RuntimeFailure, match=r"blob 'data' of shape \(100000, 10, 10, 10\) takes 0.4 GB, but 0.3 GB"):
        net.blobs["data"].data  # noqa: B018 - looked at, it is made


def test_weights_that_memory_does_not_hold_are_refused(tmp_path, left):
    path = tmp_path / "net.prototxt"
    path.write_text(
        NETWORK[: NETWORK.index("layer", 10)].replace("100000", "1")
        + 'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 50000 } }'
    )
    left(0.1e9)
    with pytest.raises(RuntimeFailure, match="layer 'fc': the network's weights take 0.2 GB, most of them this"):
        Net(path)


def test_where_nobody_says_what_is_left_nothing_is_refused(files, left):
    left(None)
    limits.refuse_weights(load_graph(files / "net.prototxt"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is left")
def test_a_limit_of_the_process_counts():
    import resource  # not on Windows

    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), before[1]))
    try:
        assert available_memory() <= 64 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
