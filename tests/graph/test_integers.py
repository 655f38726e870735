"""Fake-quantized layers in integers are what their emulation in float32 is, but for roundings."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantized_pair import quantized_candidate, random_feeds, with_random_weights

from autonuq.graph.files import parse_graph
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.lowering import lower
from autonuq.graph.operators.quantizers import quant_factors
from autonuq.runtime.session import Session


def layer(name, kind, bottoms, more="", tops=None):
    blobs = "".join(f' bottom: "{bottom}"' for bottom in bottoms.split())
    blobs += "".join(f' top: "{top}"' for top in (tops or name).split())
    return f'layer {{ name: "{name}" type: "{kind}"{blobs} {more} }}\n'


def data(channels=16, height=8, width=8, batch=4):
    shape = f"input_param {{ shape {{ dim: {batch} dim: {channels} dim: {height} dim: {width} }} }}"
    return layer("data", "Input", "", shape)


def conv(name, bottoms, more="kernel_size: 3 pad: 1", outputs=16, kind="Convolution"):
    return layer(name, kind, bottoms, f"convolution_param {{ num_output: {outputs} {more} }}")


def relu(blob, kind="ReLU", more=""):
    return layer(f"{blob}_relu", kind, blob, more, blob)


def dense(name, bottoms, outputs=5):
    return layer(name, "InnerProduct", bottoms, f"inner_product_param {{ num_output: {outputs} }}")


def chain(first, second="", channels=16):
    """Return two convolutions, the first and what stands between them as given, and an InnerProduct."""
    return data(channels) + conv("one", "data", first) + relu("one") + second + conv("two", "one") + dense("fc", "two")


def pooled(more):
    return chain("kernel_size: 3").replace(
        conv("two", "one"),
        layer("pool", "Pooling", "one", f"pooling_param {{ pool: MAX {more} }}") + conv("two", "pool"),
    )


def joined(bottoms, kind="Eltwise"):
    return layer("sum", kind, bottoms)


BRANCHES = data() + conv("stem", "data") + relu("stem")
POINT = "kernel_size: 1"
SLOPE = "relu_param { negative_slope: 0.1 }"
AVERAGE = layer("p", "Pooling", "a", "pooling_param { pool: AVE kernel_size: 2 stride: 2 }")
NETWORKS = {
    "chain": chain("kernel_size: 3 pad: 1"),
    "stride": chain("kernel_size: 3 pad: 1 stride: 2"),
    "odd width": chain("kernel_size: 4 pad: 1"),
    "dilation": chain("kernel_size: 3 pad: 2 dilation: 2"),
    "rectangle": chain("kernel_h: 1 kernel_w: 5 pad_w: 2"),
    "point": chain("kernel_size: 1"),
    "points apart": chain("kernel_size: 1 stride: 2"),
    "groups": chain("kernel_size: 3 group: 4"),
    "depthwise": chain("kernel_size: 3 group: 16"),
    "no bias": chain("kernel_size: 3 bias_term: false"),
    "one channel": chain("kernel_size: 5", channels=1),
    "dropout": chain("kernel_size: 3", layer("drop", "Dropout", "one", tops="one")),
    "relu6": data() + conv("one", "data") + relu("one", "ReLU6") + conv("two", "one") + dense("fc", "two"),
    "leaky": data() + conv("one", "data") + relu("one", "ReLU", SLOPE) + conv("two", "one"),
    "no relu": data() + conv("one", "data") + conv("two", "one") + dense("fc", "two"),
    "pool": pooled("kernel_size: 2 stride: 2"),
    "pool beyond the edge": pooled("kernel_size: 3 stride: 2 pad: 1"),
    "pool over all": pooled("global_pooling: true").replace(conv("two", "pool"), conv("two", "pool", POINT)),
    "two readers": BRANCHES
    + conv("a", "stem")
    + conv("b", "stem", POINT)
    + joined("a b", "Concat")
    + conv("two", "sum"),
    "concat of an input": data() + conv("a", "data") + joined("a data", "Concat") + conv("two", "sum"),
    "residual": BRANCHES
    + conv("a", "stem")
    + relu("a")
    + conv("b", "a")
    + joined("stem b")
    + relu("sum")
    + conv("two", "sum"),
    "residual of an odd width": data(width=7)
    + conv("a", "data", outputs=48)
    + conv("b", "a")
    + joined("data b")
    + conv("two", "sum"),
    "wide residual": data(64)
    + conv("a", "data", "kernel_size: 3 stride: 2", 64)
    + conv("b", "a", outputs=64)
    + joined("a b")
    + dense("fc", "sum"),
    "average": data() + conv("a", "data") + relu("a") + AVERAGE + conv("two", "p"),
    "two InnerProducts": data() + dense("one", "data", 32) + relu("one") + dense("two", "one"),
    "a float layer between": data() + conv("a", "data") + layer("s", "Sigmoid", "a") + conv("two", "s"),
    "split": data() + conv("a", "data") + layer("s", "Split", "a", tops="s1 s2") + conv("b", "s1") + conv("c", "s2"),
}


def graph_of(text, seed=0):
    return with_random_weights(parse_graph(text.encode(), Path("net.prototxt")), seed)


def fake_quant(text, **options):
    return quantized_candidate(graph_of(text), **options).fake_quant_graph()


def run(graph, outputs=None, **options):
    lowered = lower(graph, outputs=outputs, **options)
    feeds = random_feeds(graph)
    return Session(lowered).run({name: feeds[name] for name in lowered.inputs})


def with_whole_biases(graph):
    """Round biases to the units of the sums, as int32 holds them."""
    steps = {each.message.dequant_param.object_layer: each.blobs[0] for each in graph.layers if each.type == "DeQuant"}
    return graph.with_layers(
        each.with_(blobs=[each.blobs[0], np.rint(each.blobs[1] / steps[each.name]) * steps[each.name]])
        if each.name in steps and len(each.blobs) > 1
        else each
        for each in graph.layers
    )


def operators(lowered):
    return [node.op_type for node in onnx.ModelProto.FromString(lowered.model).graph.node]


@pytest.mark.parametrize("asymmetric", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("network", NETWORKS)
def test_codes_are_those_of_the_emulation(network, asymmetric):
    graph = with_whole_biases(fake_quant(NETWORKS[network], asymmetric=asymmetric))
    quantizers = [each for each in graph.layers if each.type == "Quant"]
    tops = [each.tops[0] for each in quantizers]
    wanted = [*tops, *graph.outputs]
    found, expected = run(graph, wanted, plan=IntegerPlan(graph)), run(graph, wanted)
    for each, top in zip(quantizers, tops, strict=True):
        steps = np.abs(np.rint((found[top] - expected[top]) * quant_factors(each)[0]))
        assert steps.max() <= 1
        assert steps.mean() < 0.005
    for blob in graph.outputs:  # a few codes of thousands that differ by one move each sum a little
        assert np.abs(found[blob] - expected[blob]).max() < 0.02 * np.abs(expected[blob]).max()


FLOAT_SOMEWHERE = ("one channel", "leaky", "a float layer between", "average")


@pytest.mark.parametrize("network", [name for name in NETWORKS if name not in FLOAT_SOMEWHERE])
def test_every_layer_runs_in_integers(network):
    graph = fake_quant(NETWORKS[network])
    found = operators(lower(graph, plan=IntegerPlan(graph)))
    weighted = sum(each.type in ("Convolution", "InnerProduct") for each in graph.layers)
    assert found.count("QLinearConv") + found.count("MatMulIntegerToFloat") == weighted
    assert "Conv" not in found
    assert "Gemm" not in found


@pytest.mark.parametrize("network", NETWORKS)
def test_uint8_weights_give_the_same_bits(network):
    graph = fake_quant(NETWORKS[network])
    plans = [IntegerPlan(graph, signed=signed) for signed in (True, False)]
    for plan, dtype in zip(plans, (np.int8, np.uint8), strict=True):
        stored = lower(graph, plan=plan).initializers
        assert {found.array.dtype for name, found in stored.items() if ":codes" in name} == {np.dtype(dtype)}
    signed, unsigned = (run(graph, plan=plan) for plan in plans)
    for blob in signed:
        np.testing.assert_array_equal(signed[blob], unsigned[blob])


@pytest.mark.parametrize("network", NETWORKS)
def test_looking_at_a_blob_changes_nothing(network):
    """Which layers run in integers is a matter of the network, not of what somebody wants to see."""
    graph = fake_quant(NETWORKS[network])
    plan = IntegerPlan(graph)
    every = list(dict.fromkeys(top for each in graph.layers for top in each.tops))
    alone, together = run(graph, plan=plan), run(graph, every, plan=plan)
    for blob, values in alone.items():
        np.testing.assert_array_equal(values, together[blob])


def test_a_skipped_blob_is_what_caffe_has_there():
    graph = fake_quant(NETWORKS["chain"])
    found, expected = (run(graph, ["one"], plan=plan)["one"] for plan in (IntegerPlan(graph), None))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert "QLinearConv" not in operators(lower(graph, outputs=["one"], plan=IntegerPlan(graph)))


def test_the_plan_finds_the_codes_that_were_written():
    candidate = quantized_candidate(graph_of(NETWORKS["residual"]))
    graph = candidate.fake_quant_graph()
    plan = IntegerPlan(graph)
    lower(graph, plan=plan)
    for name in candidate.model.weights:
        np.testing.assert_array_equal(plan.kernel(graph.by_name[name], None).codes, candidate.codes(name))


def test_weights_off_the_grid_stay_float():
    graph = fake_quant(NETWORKS["chain"])
    moved = graph.by_name["one"].blobs[0].copy()
    moved[0, 0, 0, 0] += 0.3 * np.abs(moved).max() / 127
    changed = graph.with_layers(
        each.with_(blobs=[moved, *each.blobs[1:]]) if each.name == "one" else each for each in graph.layers
    )
    found = operators(lower(changed, plan=IntegerPlan(changed)))
    assert (found.count("Conv"), found.count("QLinearConv")) == (1, 1)
    one, other = (run(changed, plan=plan)["fc"] for plan in (IntegerPlan(changed), None))
    np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())


@pytest.mark.parametrize("bias", [1e30, np.inf, np.nan])
def test_a_bias_beyond_int32_stays_float(bias):
    graph = fake_quant(NETWORKS["chain"])
    changed = graph.with_layers(
        each.with_(blobs=[each.blobs[0], np.full_like(each.blobs[1], bias)]) if each.name == "one" else each
        for each in graph.layers
    )
    assert operators(lower(changed, plan=IntegerPlan(changed))).count("Conv") == 1


def test_a_shift_stays_float():
    graph = fake_quant(NETWORKS["chain"])
    changed = graph.with_layers(
        each.with_(blobs=[each.blobs[0], np.full_like(each.blobs[1], 2), each.blobs[2]])
        if each.type == "DeQuant" and "one" in each.name
        else each
        for each in graph.layers
    )
    assert operators(lower(changed, plan=IntegerPlan(changed))).count("Conv") == 1


def test_a_network_without_quantizers_is_lowered_as_ever():
    graph = graph_of(NETWORKS["residual"])
    assert lower(graph, plan=IntegerPlan(graph)).model == lower(graph).model


def test_halves_are_rounded_away_from_zero():
    text = data(1, 1, 4, 1) + dense("fc", "data", 1)
    graph = quantized_candidate(graph_of(text)).fake_quant_graph()
    quantizer = next(each for each in graph.layers if each.type == "Quant")
    quantizer.message.quant_param.scale, quantizer.message.quant_param.offset = 1.0, b"\0"
    values = np.array([0.5, 1.5, -0.5, -2.5], np.float32).reshape(1, 1, 1, 4)
    top = quantizer.tops[0]
    session = Session(lower(graph, outputs=[top], plan=IntegerPlan(graph)))
    assert session.run({"data": values})[top].reshape(-1).tolist() == [1, 2, -1, -3]
