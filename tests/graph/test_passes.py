"""Passes: folding keeps the outputs, capabilities have their reasons, inserted layers their names and factors."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import load_graph
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.passes import (
    QuantizedBlobs,
    capabilities,
    device_parameters,
    fold_batch_norm,
    foldable_chains,
    insert_observers,
    insert_quantizers,
)
from autonuq.graph.record import Factors
from autonuq.quant.config import ActivationSettings
from autonuq.runtime.session import Session

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 6 dim: 6 } } }\n'
BATCH_NORM = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }\n'
SCALE = 'layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param { bias_term: true } }\n'
RELU = 'layer { name: "relu" type: "ReLU" bottom: "scale" top: "out" }\n'


def layer(kind, parameters, bottom="data", name="conv"):
    part = "inner_product_param" if kind == "InnerProduct" else "convolution_param"
    if kind == "Pooling":
        part = "pooling_param"
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {part} {{ {parameters} }} }}\n'


@pytest.fixture
def load(tmp_path):
    """Make a graph with random blobs from text; variances and the moving-average factor are positive."""

    def make(text, seed=0):
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        graph = load_graph(path)
        shapes, rng = infer_shapes(graph), np.random.default_rng(seed)

        def blobs(layer):
            arrays = [rng.normal(size=shape).astype(np.float32) for shape in blob_shapes(graph, layer, shapes)]
            if layer.type == "BatchNorm":
                arrays[1] = np.abs(arrays[1]) + np.float32(0.1)
                arrays[2] = np.array([0.98], np.float32)
            return arrays

        return graph.with_layers(layer.with_(blobs=blobs(layer)) for layer in graph.layers)

    return make


def outputs(graph):
    images = np.random.default_rng(1).standard_normal(graph.inputs["data"], np.float32)
    return Session(lower(graph), threads=1).run({"data": images})


def assert_same_outputs(before, after):
    found, expected = outputs(after), outputs(before)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5)


# folding


@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_folding_keeps_the_outputs(load, kind, group, bias):
    graph = load(
        INPUT
        + layer(kind, f"num_output: 8 kernel_size: 3 group: {group} bias_term: {bias}")
        + BATCH_NORM
        + SCALE
        + RELU
    )
    folded = fold_batch_norm(graph)
    assert [each.name for each in folded.layers] == ["data", "conv", "relu"]
    assert folded.by_name["conv"].tops == ("scale",)
    assert folded.by_name["conv"].message.convolution_param.bias_term
    assert [blob.dtype for blob in folded.by_name["conv"].blobs] == [np.float32] * 2
    assert_same_outputs(graph, folded)


FOLDED = {
    "BatchNorm alone": (BATCH_NORM, ["data", "conv"]),
    "Scale alone": (SCALE.replace('"bn"', '"conv"'), ["data", "conv"]),
    "Scale without bias": (SCALE.replace('"bn"', '"conv"').replace("true", "false"), ["data", "conv"]),
    "in place": (BATCH_NORM.replace('"bn"', '"conv"').replace('name: "conv"', 'name: "bn"'), ["data", "conv"]),
    "two Scales": (
        SCALE.replace('"bn"', '"conv"') + SCALE.replace('"scale"', '"again"').replace('"bn"', '"scale"'),
        ["data", "conv"],
    ),
    "BatchNorm with its batch's statistics": (
        BATCH_NORM.replace("} ", "").replace('top: "bn" }', 'top: "bn" batch_norm_param { use_global_stats: false } }'),
        ["data", "conv", "bn"],
    ),
    "Scale of another axis": (
        SCALE.replace('"bn"', '"conv"').replace("bias_term", "axis: 2 bias_term"),
        ["data", "conv", "scale"],
    ),
    "two readers": (BATCH_NORM + RELU.replace('"scale"', '"conv"'), ["data", "conv", "bn", "relu"]),
    "ReLU between": (
        RELU.replace('"scale"', '"conv"') + BATCH_NORM.replace('"conv"', '"out"'),
        ["data", "conv", "relu", "bn"],
    ),
}


@pytest.mark.parametrize(("text", "names"), FOLDED.values(), ids=FOLDED)
def test_what_folds_and_what_does_not(load, text, names):
    graph = load(INPUT + layer("Convolution", "num_output: 8 kernel_size: 3") + text)
    folded = fold_batch_norm(graph)
    assert [each.name for each in folded.layers] == names
    assert_same_outputs(graph, folded)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_a_batch_norm_of_nvidia_folds_whole(load, kind):
    norm = BATCH_NORM.replace('top: "bn"', 'top: "bn" batch_norm_param { scale_bias: true }')
    graph = load(INPUT + layer(kind, "num_output: 6 kernel_size: 3 group: 2") + norm)
    folded = fold_batch_norm(graph)
    assert [found.name for found in folded.layers] == ["data", "conv"]
    assert_same_outputs(graph, folded)


@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("transpose", ["true", "false"])
def test_folding_into_an_inner_product_keeps_the_outputs(load, transpose, bias):
    product = layer("InnerProduct", f"num_output: 8 transpose: {transpose} bias_term: {bias}", name="fc")
    graph = load(INPUT + product + BATCH_NORM.replace('"conv"', '"fc"') + SCALE + RELU)
    folded = fold_batch_norm(graph)
    assert [each.name for each in folded.layers] == ["data", "fc", "relu"]
    assert folded.by_name["fc"].message.inner_product_param.bias_term
    assert_same_outputs(graph, folded)


def before(*chain):
    """Return BatchNorm and Scale layers on the input, one after the other, and the blob that they end in."""
    text, blob = "", "data"
    for index, (kind, parameters) in enumerate(chain):
        text += f'layer {{ name: "{kind}{index}" type: "{kind}" bottom: "{blob}" top: "b{index}" {parameters} }}\n'
        blob = f"b{index}"
    return text, blob


NORM, PLAIN = ("BatchNorm", ""), ("Scale", "")
SHIFT = ("Scale", "scale_param { bias_term: true }")

TAKEN = [
    ("Convolution", "num_output: 8 kernel_size: 3", (NORM, SHIFT), 2),
    ("Convolution", "num_output: 8 kernel_size: 3 bias_term: false", (NORM, SHIFT), 2),
    ("Convolution", "num_output: 8 kernel_size: 3 bias_term: false", (PLAIN,), 1),
    ("Convolution", "num_output: 8 kernel_size: 3 group: 2", (NORM,), 1),
    ("Convolution", "num_output: 4 kernel_size: 3 group: 4 stride: 2", (SHIFT, PLAIN), 2),
    ("Convolution", "num_output: 8 kernel_size: 2 dilation: 2", (SHIFT,), 1),
    ("DepthwiseConvolution", "num_output: 4 kernel_size: 3", (NORM, SHIFT), 2),
    ("InnerProduct", "num_output: 8", (NORM, SHIFT), 2),
    ("InnerProduct", "num_output: 8 transpose: true", (NORM, SHIFT), 2),
    ("InnerProduct", "num_output: 8 transpose: true bias_term: false", (PLAIN,), 1),
    ("Convolution", "num_output: 8 kernel_size: 3 pad: 1", (NORM, SHIFT), 0),
    ("Convolution", "num_output: 8 kernel_size: 3 pad_h: 1 pad_w: 0", (NORM,), 0),
    ("Convolution", "num_output: 8 kernel_size: 3 pad: 1", (NORM, PLAIN), 1),
    ("Convolution", "num_output: 8 kernel_size: 3 pad: 1", (PLAIN, NORM), 0),
    ("Convolution", "num_output: 8 kernel_size: 3 pad: 1 group: 2", (PLAIN, PLAIN), 2),
    ("Deconvolution", "num_output: 6 kernel_size: 3 stride: 2", (PLAIN,), 1),
    ("Deconvolution", "num_output: 6 kernel_size: 3 group: 2 bias_term: false", (PLAIN,), 1),
    ("Deconvolution", "num_output: 6 kernel_size: 3 stride: 2", (SHIFT,), 0),
    ("InnerProduct", "num_output: 8 axis: 2", (NORM,), 0),
    ("Convolution", "num_output: 8 kernel_size: 3 axis: 2", (NORM,), 0),
    ("Convolution", "num_output: 8 kernel_size: 3", (("Scale", "scale_param { axis: 0 num_axes: 1 }"),), 0),
    ("Convolution", "num_output: 8 kernel_size: 3", (("Scale", "scale_param { axis: 1 num_axes: 2 }"),), 0),
    (
        "Convolution",
        "num_output: 8 kernel_size: 3",
        (("BatchNorm", "batch_norm_param { use_global_stats: false }"),),
        0,
    ),
    ("Convolution", "num_output: 8 kernel_size: 3", (SHIFT, ("ReLU", "")), 0),
]


@pytest.mark.parametrize(("kind", "parameters", "chain", "taken"), TAKEN)
def test_what_folds_into_the_layer_behind_it(load, kind, parameters, chain, taken):
    text, blob = before(*chain)
    graph = load(INPUT + text + layer(kind, parameters, blob))
    folded = fold_batch_norm(graph)
    assert len(folded.layers) == len(graph.layers) - taken
    assert_same_outputs(graph, folded)
    reasons = [each.reason for each in capabilities(graph)]
    assert reasons.count("is folded into 'conv'") == taken
    assert capabilities(graph)[-1].fusible == bool(taken)
    assert len(fold_batch_norm(graph, ["conv"]).layers) == len(graph.layers)


CONV = layer("Convolution", "num_output: 8 kernel_size: 3", "x")
KEPT = {
    "read by two": 'layer { name: "s" type: "Scale" bottom: "data" top: "x" }' + RELU.replace('"scale"', '"x"'),
    "its input is overwritten": 'layer { name: "s" type: "Scale" bottom: "data" top: "x" }'
    'layer { name: "r" type: "ReLU" bottom: "data" top: "data" }',
    "two bottoms": 'layer { name: "f" type: "Reduction" bottom: "data" top: "f" reduction_param { axis: 2 } }'
    'layer { name: "s" type: "Scale" bottom: "data" bottom: "f" top: "x" scale_param { axis: 0 } }',
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_others_need_stays_before_a_layer(load, text):
    graph = load(INPUT + text + CONV)
    assert fold_batch_norm(graph) == graph
    assert not capabilities(graph)[-1].fusible


def test_layers_in_place_fold_into_the_layer_behind_them(load):
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "data" }'
    scale = 'layer { name: "s" type: "Scale" bottom: "data" top: "data" scale_param { bias_term: true } }'
    graph = load(
        INPUT + norm + scale + layer("Convolution", "num_output: 8 kernel_size: 3") + RELU.replace("scale", "conv")
    )
    folded = fold_batch_norm(graph)
    assert [each.name for each in folded.layers] == ["data", "conv", "relu"]
    assert_same_outputs(graph, folded)


def test_between_two_layers_the_first_one_takes_them_and_skipping_it_leaves_them(load):
    second = layer("Convolution", "num_output: 3 kernel_size: 2", "scale", "second")
    graph = load(INPUT + layer("Convolution", "num_output: 8 kernel_size: 3") + BATCH_NORM + SCALE + second)
    assert foldable_chains(graph) == {1: [2, 3]}
    assert foldable_chains(graph, ["conv"]) == {}
    assert [each.fusible for each in capabilities(graph)] == [False, True, False, False, False]


KINDS = [
    ("Convolution", "num_output: {n} kernel_size: 1"),
    ("Convolution", "num_output: {n} kernel_size: 3 pad: 1"),
    ("Convolution", "num_output: {n} kernel_size: 1 group: 2 bias_term: false"),
    ("Deconvolution", "num_output: {n} kernel_size: 3 pad: 1 group: 2"),
    ("BatchNorm", ""),
    ("Scale", ""),
    ("Scale", "bias_term: true"),
    ("ReLU", ""),
]
PARTS = {"Convolution": "convolution_param", "Deconvolution": "convolution_param", "Scale": "scale_param"}


def random_network(rng):
    """Draw layers that read any blob, some of them in place, and an InnerProduct behind the last."""
    text, blobs = INPUT, ["data"]
    for index in range(12):
        kind, parameters = KINDS[rng.integers(len(KINDS))]
        bottom = blobs[-1] if rng.random() < 0.8 else blobs[rng.integers(len(blobs))]
        top = bottom if kind in ("ReLU", "Scale", "BatchNorm") and rng.random() < 0.5 else f"t{index}"
        part = f"{PARTS[kind]} {{ {parameters.format(n=rng.choice([2, 4, 6]))} }}" if parameters else ""
        text += f'layer {{ name: "l{index}" type: "{kind}" bottom: "{bottom}" top: "{top}" {part} }}\n'
        blobs.append(top)
    last = BATCH_NORM.replace('"conv"', '"fc"')
    return text + layer("InnerProduct", "num_output: 3", blobs[-1], "fc") + last + SCALE


@pytest.mark.parametrize("seed", range(40))
def test_folding_keeps_the_outputs_of_any_network(load, seed):
    graph = load(random_network(np.random.default_rng(seed)), seed)
    folded = fold_batch_norm(graph)
    assert len(folded.layers) < len(graph.layers)
    found, expected = outputs(folded), outputs(graph)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-4 * np.abs(values).max()
    kept = [each.name for each in capabilities(graph) if not each.reason.startswith("is folded into")]
    assert [each.name for each in folded.layers] == kept


def test_skipped_layers_stay(load):
    graph = load(INPUT + layer("Convolution", "num_output: 8 kernel_size: 3") + BATCH_NORM + SCALE)
    assert foldable_chains(graph) == {1: [2, 3]}
    assert fold_batch_norm(graph, ["conv"]) == graph


def test_folding_leaves_the_given_graph_alone(load):
    graph = load(INPUT + layer("Convolution", "num_output: 8 kernel_size: 3 bias_term: false") + BATCH_NORM)
    before = [blob.copy() for each in graph.layers for blob in each.blobs]
    fold_batch_norm(graph)
    after = [blob for each in graph.layers for blob in each.blobs]
    assert all((old == new).all() for old, new in zip(before, after, strict=True))
    assert not graph.by_name["conv"].message.convolution_param.bias_term


# capabilities

CAPABILITIES = [
    ("Convolution", "num_output: 8 kernel_size: 3", True, True, ""),
    ("Convolution", "num_output: 8 kernel_h: 1 kernel_w: 5 stride: 2", True, True, ""),
    ("Convolution", "num_output: 8 kernel_size: 3 dilation: 2", True, False, "needs dilation 1, not 2x2"),
    ("Convolution", "num_output: 8 kernel_size: 3 group: 2", True, False, "needs group 1, not 2"),
    ("Convolution", "num_output: 8 kernel_size: 3 axis: 2", False, False, "3 dimensions instead of 4"),
    ("Deconvolution", "num_output: 8 kernel_size: 3", True, False, "needs a Convolution or InnerProduct"),
    ("Deconvolution", "num_output: 8 kernel_size: 3 group: 2", False, False, "dilation 1 and group 1"),
    ("Deconvolution", "num_output: 8 kernel_size: 3 dilation: 2", False, False, "dilation 1 and group 1"),
    ("InnerProduct", "num_output: 8", True, True, ""),
    ("InnerProduct", "num_output: 8 transpose: true", False, False, "transpose false and axis 1"),
    ("InnerProduct", "num_output: 8 axis: 2", False, False, "transpose false and axis 1"),
    ("Pooling", "pool: AVE kernel_size: 2", True, False, "has no weights"),
    ("Pooling", "pool: AVE global_pooling: true", False, False, "global pooling"),
    ("Pooling", "pool: MAX kernel_size: 2", False, False, "only AVE"),
]


@pytest.mark.parametrize(("kind", "parameters", "quantizable", "nuq", "reason"), CAPABILITIES)
def test_capabilities_have_their_reasons(load, kind, parameters, quantizable, nuq, reason):
    _, found = capabilities(load(INPUT + layer(kind, parameters)))
    assert (found.quantizable, found.nuq) == (quantizable, nuq)
    assert reason in found.reason
    assert bool(found.reason) == (not nuq)


def test_layers_that_fold_away_say_where(load):
    graph = load(INPUT + layer("Convolution", "num_output: 8 kernel_size: 3") + BATCH_NORM + SCALE + RELU)
    reasons = {each.name: each.reason for each in capabilities(graph)}
    assert reasons["bn"] == reasons["scale"] == "is folded into 'conv'"
    assert reasons["relu"] == "type 'ReLU' is not quantized"
    assert capabilities(graph, do_fusion=False)[2].reason == "type 'BatchNorm' is not quantized"
    conv = capabilities(graph)[1]
    assert (conv.weights, conv.shape, conv.fusible) == (8 * 4 * 9, (8, 4, 3, 3), True)
    assert [(each.name, each.nuq) for each in capabilities(fold_batch_norm(graph))] == [
        ("data", False),
        ("conv", True),
        ("relu", False),
    ]


# quantizers

TWO = layer("Convolution", "num_output: 8 kernel_size: 3", name="a") + layer("InnerProduct", "num_output: 3", name="b")
FACTORS = Factors(scale_d=0.5, offset_d=-3, scale_w=(0.25,) * 8, offset_w=(0,) * 8)


def quantized(graph, factors):
    return {name: QuantizedBlobs(graph.by_name[name].blobs, found) for name, found in factors.items()}


def test_quantizers_stand_around_their_layer(load):
    graph = load(INPUT + TWO)
    found = insert_quantizers(graph, quantized(graph, {"a": FACTORS}))
    assert [each.name for each in found.layers] == ["data", "a_0_quant_layer", "a", "a_dequant_layer", "b"]
    quant, conv, dequant = found.layers[1:4]
    assert (quant.bottoms, quant.tops) == (("data",), ("a_0_quant_layer",))
    assert (conv.bottoms, dequant.bottoms, dequant.tops) == (("a_0_quant_layer",), ("a",), ("a",))
    assert quant.message.quant_param.scale == 2.0
    assert quant.message.quant_param.offset == b"\xfd"
    assert quant.message.quant_param.object_layer == "a"
    assert dequant.message.dequant_param.channel_wise
    assert [blob.tolist() for blob in dequant.blobs] == [[0.125] * 8, [0.0] * 8, [0.0] * 8]
    assert found.by_name["b"].bottoms == ("data",)


@pytest.mark.parametrize(("offset", "quantizers"), [(-3, 1), (0, 2)], ids=["same factors", "other factors"])
def test_layers_that_read_the_same_with_the_same_factors_share_a_quantizer(load, offset, quantizers):
    graph = load(INPUT + TWO)
    factors = {"a": FACTORS, "b": Factors(scale_d=0.5, offset_d=offset, scale_w=(0.5,), offset_w=(0,))}
    found = insert_quantizers(graph, quantized(graph, factors))
    assert sum(each.type == "Quant" for each in found.layers) == quantizers
    assert found.by_name["b"].bottoms == (("a_0_quant_layer",) if quantizers == 1 else ("b_0_quant_layer",))


def test_a_value_that_was_changed_in_place_is_another_value(load):
    between = 'layer { name: "r" type: "ReLU" bottom: "data" top: "data" }\n'
    graph = load(
        INPUT
        + layer("InnerProduct", "num_output: 3", name="a")
        + between
        + layer("InnerProduct", "num_output: 3", name="b")
    )
    factors = Factors(scale_d=0.5, offset_d=0, scale_w=(0.5,), offset_w=(0,))
    found = insert_quantizers(graph, quantized(graph, {"a": factors, "b": factors}))
    assert [each.name for each in found.layers if each.type == "Quant"] == ["a_0_quant_layer", "b_0_quant_layer"]


def test_deploy_models_carry_device_parameters(load):
    graph = load(INPUT + TWO)
    found = insert_quantizers(graph, quantized(graph, {"a": FACTORS}), deploy=True)
    (blob,) = found.by_name["a_dequant_layer"].blobs
    assert blob.dtype == np.uint64
    assert (blob & 0xFFFFFFFF).astype(np.uint32).view(np.float32).tolist() == [0.125] * 8


def test_device_parameters_pack_scale_and_shift():
    (packed,) = device_parameters(np.array([1.0], np.float32), np.array([5.0]))
    assert packed == 0x05_3F800000


def test_layers_without_activation_factors_are_refused(load):
    graph = load(INPUT + TWO)
    with pytest.raises(QuantizationError, match="calibration") as caught:
        insert_quantizers(graph, quantized(graph, {"a": Factors(scale_w=(1.0,), offset_w=(0,))}))
    assert caught.value.layer == "a"


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_observers_stand_before_their_layer_and_change_nothing(load, tmp_path, algorithm):
    graph = load(INPUT + TWO)
    settings = ActivationSettings(algorithm=algorithm)
    found = insert_observers(graph, {"b": settings}, batch_num=3, with_offset=True, record_file=tmp_path / "record")
    assert [each.name for each in found.layers] == ["data", "a", f"b_0_{algorithm}_layer", "b"]
    message = found.layers[2].message
    parameters = message.hfmg_param if algorithm == "hfmg" else message.ifmr_param
    assert isinstance(message, caffe_pb2.LayerParameter)
    assert (message.type, list(message.bottom), list(message.top)) == (algorithm.upper(), ["data"], [])
    assert (parameters.batch_num, parameters.with_offset, list(parameters.object_layer)) == (3, True, ["b"])
    assert parameters.record_file_path == str(tmp_path / "record")
    assert_same_outputs(graph, found)
