"""Sessions share what onnxruntime makes of a structure, and nothing else: results never depend on what was cached."""

import gc
import threading
import weakref

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import RuntimeFailure
from autonuq.graph import caffemodel
from autonuq.graph.detached import Weights
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.lowering import lower
from autonuq.runtime import session as engine
from autonuq.runtime.device import Device
from autonuq.runtime.session import Session

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } } }\n'


def chain(*layers):
    """Make a prototxt of layers that work one behind the other."""
    text, bottom = INPUT, "data"
    for index, (kind, parameters) in enumerate(layers):
        text += f'layer {{ name: "l{index}" type: "{kind}" bottom: "{bottom}" top: "b{index}" {parameters} }}\n'
        bottom = f"b{index}"
    return text


def conv(outputs, more=""):
    return "Convolution", f"convolution_param {{ num_output: {outputs} kernel_size: 3 {more} }}"


ALONE = "statistics that stand alone, blocks not full"  # from onnxruntime 1.25 on, they are optimized for each net
NETWORKS = {
    "whole blocks": chain(conv(32), ("ReLU", ""), conv(16), ("Softmax", "")),
    "padded blocks": chain(conv(20), conv(10), ("InnerProduct", "inner_product_param { num_output: 7 }")),
    "folded": chain(conv(32), ("BatchNorm", ""), ("Scale", "scale_param { bias_term: true }"), conv(5)),
    "folded groups": chain(conv(48), conv(32, "group: 2"), ("BatchNorm", ""), ("Scale", ""), ("Bias", "")),
    "depthwise": chain(conv(32), conv(32, "group: 32"), ("BatchNorm", ""), ("ReLU", "")),
    "deconvolution": chain(("Deconvolution", "convolution_param { num_output: 16 kernel_size: 2 stride: 2 }"), conv(4)),
    ALONE: chain(conv(20), ("ReLU", ""), ("BatchNorm", ""), ("Scale", ""), conv(16)),
    "statistics of whole blocks": chain(conv(16), ("ReLU", ""), ("BatchNorm", ""), ("Scale", ""), conv(16)),
    "slopes": chain(conv(16), ("PReLU", ""), conv(3), ("Scale", "scale_param { axis: 0 num_axes: -1 }")),
    "recurrent": chain(
        ("Reshape", "reshape_param { shape { dim: 4 dim: 2 dim: -1 } }"),
        ("InnerProduct", "inner_product_param { num_output: 6 axis: 2 transpose: true }"),
    ),
    "pooled": chain(conv(24), ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }"), conv(24)),
}
WEIGHTS_OF_SUMS = (
    INPUT
    + """
layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 1.5 } } }
layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 dim: 3 } } }
layer { name: "e" type: "Eltwise" bottom: "d" bottom: "p" top: "e" }
layer { name: "q" type: "Silence" bottom: "data" }
"""
)


def random(rng, index, shape):
    """Return weights around 0, and further blobs (variances among them) around 1."""
    return rng.uniform(0.5, 1.5, shape).astype(np.float32) - (index == 0)


@pytest.fixture
def network(tmp_path):
    """Make graphs of one prototxt with random weights."""

    def make(text, seed):
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        graph = load_graph(path)
        rng, shapes = np.random.default_rng(seed), infer_shapes(graph)
        return graph.with_layers(
            layer.with_(blobs=[random(rng, *blob) for blob in enumerate(blob_shapes(graph, layer, shapes))])
            for layer in graph.layers
        )

    return make


@pytest.fixture(autouse=True)
def nothing_cached():
    engine._cache.clear()
    engine._spare.clear()


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32)


def run(graph, images):
    session = Session(lower(graph))
    return session.run({name: images for name in session.inputs})


def plain(graph, images):
    """Run a graph as onnxruntime would by itself."""
    lowered = lower(graph)
    weights = {name: np.array(weights.values) for name, weights in lowered.initializers.items()}
    session = engine._load(lowered.model, weights, engine._options(0), Device(), lowered.layers)
    names = list(lowered.outputs.values())
    return dict(zip(lowered.outputs, session.run(names, {name: images for name in lowered.inputs}), strict=True))


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("text", [*NETWORKS.values(), WEIGHTS_OF_SUMS], ids=[*NETWORKS, "sums of weights"])
def test_other_weights_give_the_other_networks_results(network, images, text):
    one, other = network(text, 1), network(text, 2)
    fresh = run(other, images)
    engine._cache.clear()
    engine._spare.clear()
    first = run(one, images)
    assert_same(run(other, images), fresh)
    assert_same(run(one, images), first)
    assert len(engine._cache) == 1
    assert any((first[name] != fresh[name]).any() for name in first)
    for name, values in plain(other, images).items():
        np.testing.assert_allclose(fresh[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != ALONE])
def test_all_but_statistics_that_stand_alone_are_optimized_once(network, name):
    assert engine._prepared(lower(network(NETWORKS[name], 1)))


def test_constants_of_weights_are_not_baked_in(network, images):
    graph = network(WEIGHTS_OF_SUMS, 3)
    parameter = graph.by_name["p"].blobs[0]
    np.testing.assert_array_equal(run(graph, images)["e"], parameter + np.float32(1.5))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((96,), (1,)), ((2, 12, 4), (48, 1, 12)), ((8, 12), (12, 1)), ((12, 8), (1, 12)), ((48, 2), (1, 48))],
    ids=str,
)
def test_factors_are_multiplied_on_the_way(shape, strides):
    """Rows of 12 values with a factor each; a view whose axes run through rows once took the first row's for all."""
    rng = np.random.default_rng(4)
    weights = Weights(rng.standard_normal((8, 12), np.float32), rng.standard_normal(8, np.float32))
    out = np.empty(shape, np.float32)
    engine._Move("w", shape, (shape, strides)).apply(weights, out)
    np.testing.assert_array_equal(out, engine._strided(weights.values.reshape(-1), shape, strides))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)], ids=str)
def test_permuted_axes_are_found_as_a_view(order):
    places = np.arange(1, 121, dtype=np.int32).reshape(2, 3, 4, 5).transpose(order).copy()
    view = engine._find_view(places.reshape(-1), 120)
    assert view is not None
    np.testing.assert_array_equal(engine._strided(np.arange(1, 121), *view).reshape(-1), places.reshape(-1))


def test_what_is_no_permutation_is_no_view():
    places = np.random.default_rng(5).permutation(120).astype(np.int32) + 1
    assert engine._find_view(places, 120) is None
    assert engine._find_view(np.ones(120, np.int32), 120) is None


def test_nets_that_live_together_keep_their_weights(network, images, tmp_path):
    graphs = [network(NETWORKS["folded"], seed) for seed in range(4)]
    expected = [run(graph, images)["b3"] for graph in graphs]
    paths = [(tmp_path / "net.prototxt", tmp_path / f"{index}.caffemodel") for index in range(4)]
    for graph, pair in zip(graphs, paths, strict=True):
        write_model(graph, *pair)
    nets = [nuq.Net(*pair) for pair in paths]
    for _ in range(2):
        for net, values in zip(nets, expected, strict=True):
            np.testing.assert_array_equal(net.forward(data=images)["b3"], values)
    nets[0].params["l0"][0].data[...] *= 2
    changed = nets[0].forward(data=images)["b3"].copy()
    assert (changed != expected[0]).any()
    for net, values in zip(nets[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(net.forward(data=images)["b3"], values)
    nets[0].save(tmp_path / "saved.caffemodel")
    np.testing.assert_array_equal(
        nuq.Net(paths[0][0], tmp_path / "saved.caffemodel").forward(data=images)["b3"], changed
    )


def test_reshaped_nets_keep_their_weights(network, images, tmp_path):
    write_model(network(NETWORKS["whole blocks"], 1), tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    net = nuq.Net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    whole = net.forward(data=images)["b3"].copy()
    net.blobs["data"].reshape(1, 3, 12, 12)
    np.testing.assert_allclose(net.forward(data=images[1:])["b3"], whole[1:], rtol=1e-5)
    net.blobs["data"].reshape(2, 3, 12, 12)
    np.testing.assert_array_equal(net.forward(data=images)["b3"], whole)


def test_a_net_that_nobody_holds_is_gone_and_its_memory_serves_the_next(network, images, tmp_path):
    write_model(network(NETWORKS["whole blocks"], 1), tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    gc.collect()
    gc.disable()
    try:
        net = nuq.Net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
        kept = net.forward(data=images)["b3"]
        before = kept.copy()
        gone = weakref.ref(net)
        del net
        assert gone() is None
    finally:
        gc.enable()
    assert len(engine._spare) == 1
    memory = engine._spare[0]
    other = network(NETWORKS["whole blocks"], 2)
    session = Session(lower(other))
    assert not engine._spare
    assert any(np.shares_memory(memory, array) for array in session._weights.values())
    np.testing.assert_array_equal(kept, before)


def test_a_files_memory_is_not_reused_while_a_view_lives(tmp_path):
    caffemodel._spare.clear()
    (tmp_path / "one").write_bytes(b"1" * 1000)
    (tmp_path / "two").write_bytes(b"2" * 900)
    view = np.frombuffer(caffemodel._read_into_spare(tmp_path / "one").data[10:20], np.uint8)[2:4].reshape(2, 1)
    assert not caffemodel._spare
    other = caffemodel._read_into_spare(tmp_path / "two")
    assert (view == ord("1")).all()
    assert other.tobytes() == b"2" * 900
    del view
    again = caffemodel._read_into_spare(tmp_path / "two")
    assert not caffemodel._spare
    assert again.tobytes() == b"2" * 900


def test_few_structures_are_kept(network, monkeypatch):
    monkeypatch.setattr(engine, "_MAX_PREPARED", 2)
    for outputs in (1, 2, 3):
        Session(lower(network(chain(conv(outputs)), 0)))
    assert len(engine._cache) == 2


def test_threads_make_sessions_at_once(network, images):
    graphs = [network(NETWORKS["folded"], seed) for seed in range(6)]
    expected = [run(graph, images)["b3"] for graph in graphs]
    engine._cache.clear()
    found = {}
    threads = [
        threading.Thread(target=lambda index=index: found.update({index: run(graphs[index], images)["b3"]}))
        for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, values in enumerate(expected):
        np.testing.assert_array_equal(found[index], values)


@pytest.mark.parametrize("offset", [-128, -5, 0, 7])
def test_quantizers_round_halves_away_from_zero(network, offset):
    """All halves with their neighbours, and values beyond both ends."""
    text = chain(("Quant", f'quant_param {{ scale: 4 offset: "\\{offset % 256:03o}" with_offset: true }}'))
    halves = np.arange(-300.5, 301, 0.5, dtype=np.float32) / 4
    values = np.concatenate([halves, np.nextafter(halves, np.float32(-1e9)), np.nextafter(halves, np.float32(1e9))])
    feed = np.resize(values, (9, 3, 12, 12))
    net = Session(lower(network(text, 0), {"data": feed.shape}))
    exact = np.clip(feed.astype(np.float64) * 4, -128 - offset, 127 - offset)
    steps = np.trunc(exact + np.copysign(0.5, exact))
    np.testing.assert_array_equal(net.run({"data": feed})["b0"], steps.astype(np.float32) / np.float32(4))


def test_errors_of_the_engine_are_runtime_failures(network, images):
    lowered = lower(network(NETWORKS["whole blocks"], 1))
    session = Session(lowered)
    with pytest.raises(RuntimeFailure, match=r"blob 'data' has shape \(2, 3, 5, 12\) instead of \(2, 3, 12, 12\)"):
        session.run({"data": images[:, :, :5]})
    broken = type(lowered)(b"no model", lowered.initializers, lowered.inputs, lowered.outputs)
    with pytest.raises(RuntimeFailure, match="the engine cannot prepare the network"):
        Session(broken)
