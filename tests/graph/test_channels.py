"""Statistics, factors and offsets per channel, beyond what was recorded."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import ModelError
from autonuq.graph.files import load_graph


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 2, 2, 3), (2, 3, 4, 5), (2, 16, 4, 5)], ids=str)
def test_batch_norm_of_any_number_of_axes(run, rng, shape):
    channels = shape[1]
    x, mean, variance = rng.normal(size=shape), rng.normal(size=channels), rng.uniform(0.5, 2, size=channels)
    layer = 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { eps: 0.02 } }'
    found = run(layer, {"x": x}, {"b": [mean * 4, variance * 4, [4]]})["y"]
    across = (-1, *(1,) * (len(shape) - 2))
    wanted = (x - mean.reshape(across)) / np.sqrt(variance.reshape(across) + 0.02)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_batch_norm_with_factor_zero_takes_statistics_as_zero(run, rng):
    x = rng.normal(size=(2, 3, 2, 2))
    layer = 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { eps: 0.25 } }'
    found = run(layer, {"x": x}, {"b": [np.ones(3), np.ones(3), [0]]})["y"]
    np.testing.assert_allclose(found, x * 2, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5)], ids=str)
def test_batch_norm_with_statistics_of_the_batch(run, rng, shape):
    x = rng.normal(size=shape) * 3 + 10
    layer = 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { use_global_stats: false } }'
    found = run(layer, {"x": x}, {"b": [np.ones(3), np.ones(3), [1]]})["y"]
    axes = (0, *range(2, len(shape)))
    wanted = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("axis", "num_axes", "blob"),
    [(1, 1, (3,)), (0, 1, (2,)), (-1, 1, (5,)), (-2, -1, (4, 5)), (0, -1, (2, 3, 4, 5)), (1, 2, (3, 4)), (3, 0, ())],
)
@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_own_factors_lie_along_axis_and_num_axes(run, rng, kind, axis, num_axes, blob):
    x, factor = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=blob)
    text = f"{kind.lower()}_param {{ axis: {axis} num_axes: {num_axes} }}"
    layer = f'layer {{ name: "s" type: "{kind}" bottom: "x" top: "y" {text} }}'
    found = run(layer, {"x": x}, {"s": [factor]})["y"]
    first = axis % 4 if blob else 0
    beside = np.asarray(factor).reshape(*blob, *(1,) * (4 - first - len(blob)))
    np.testing.assert_allclose(found, x * beside if kind == "Scale" else x + beside, rtol=1e-5, atol=1e-6)


def test_scale_by_a_second_input_adds_its_bias_along_the_same_axes(run, rng):
    x, factor, bias = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    layer = (
        'layer { name: "s" type: "Scale" bottom: "x" bottom: "f" top: "y" '
        "scale_param { axis: -2 num_axes: 1 bias_term: true } }"
    )
    found = run(layer, {"x": x, "f": factor}, {"s": [bias]})["y"]
    np.testing.assert_allclose(found, x * factor + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("across", [True, False])
def test_mvn_gives_four_axes(run, rng, shape, across):
    x = rng.normal(size=shape) * 2 + 1
    layer = (
        'layer { name: "m" type: "MVN" bottom: "x" top: "y" '
        f"mvn_param {{ across_channels: {str(across).lower()} eps: 0.125 }} }}"
    )
    wide = x.reshape(*shape, *(1,) * (4 - len(shape)))
    axes = (1, 2, 3) if across else (2, 3)
    wanted = (wide - wide.mean(axes, keepdims=True)) / (wide.std(axes, keepdims=True) + 0.125)
    np.testing.assert_allclose(run(layer, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 2, 2), (2, 3, 4, 5), (2, 32, 4, 5)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_prelu(run, rng, shape, shared):
    x, slope = rng.normal(size=shape), rng.normal(size=() if shared else shape[1])
    layer = (
        'layer { name: "p" type: "PReLU" bottom: "x" top: "y" '
        f"prelu_param {{ channel_shared: {str(shared).lower()} }} }}"
    )
    beside = slope if shared else slope.reshape(-1, *(1,) * (len(shape) - 2))
    np.testing.assert_allclose(
        run(layer, {"x": x}, {"p": [slope]})["y"], np.where(x > 0, x, x * beside), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("channels", [3, 16], ids=["padded", "whole blocks"])
@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_factors_of_channels_that_are_no_convolutions(run, rng, kind, channels):
    x, factor, shift = rng.normal(size=(2, channels, 4, 5)), rng.normal(size=channels), rng.normal(size=channels)
    text = (
        'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }'
        f'layer {{ name: "s" type: "{kind}" bottom: "r" top: "s" scale_param {{ bias_term: true }} }}'
        'layer { name: "b" type: "Bias" bottom: "s" top: "b" } layer { name: "y" type: "ReLU" bottom: "b" top: "y" }'
    )
    found = run(text, {"x": x}, {"s": [factor, shift] if kind == "Scale" else [factor], "b": [shift]})
    factor, shift = factor.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)
    wanted = np.maximum(x, 0) * factor + shift if kind == "Scale" else np.maximum(x, 0) + factor
    for name, values in {"s": wanted, "b": wanted + shift, "y": np.maximum(wanted + shift, 0)}.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6)


def test_prelu_keeps_what_is_no_number(run):
    values = np.array([np.nan, np.inf, -np.inf, 3.0, -3.0])
    x = np.broadcast_to(values, (1, 16, 1, 5))
    found = run('layer { name: "p" type: "PReLU" bottom: "x" top: "y" }', {"x": x}, {"p": [np.full(16, 0.25)]})["y"]
    np.testing.assert_array_equal(found[0, 0, 0], [np.nan, np.inf, -np.inf, 3.0, -0.75])


NVIDIA = 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { eps: 0.02 PARAMETERS } }'


@pytest.mark.parametrize("parameters", ["scale_bias: true", "scale_filler { value: 1 }", "bias_filler { }"])
@pytest.mark.parametrize("statistics", ["", "use_global_stats: false"], ids=["stored", "batch"])
def test_batch_norm_of_nvidia_scales_and_shifts(run, rng, parameters, statistics):
    x, mean, variance = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=3), rng.uniform(0.5, 2, size=3)
    factor, shift = rng.normal(size=3), rng.normal(size=3)
    layer = NVIDIA.replace("PARAMETERS", f"{parameters} {statistics}")
    found = run(layer, {"x": x}, {"b": [mean, variance, [7], factor, shift]})["y"]  # averages; the 7 means nothing
    mean, variance, factor, shift = (values.reshape(3, 1, 1) for values in (mean, variance, factor, shift))
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(variance + 0.02) * factor + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias_term", [True, False])
def test_batch_norm_of_intel_scales_sums(run, rng, bias_term):
    x, mean, variance = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=3), rng.uniform(0.5, 2, size=3)
    factor, shift = rng.normal(size=3), rng.normal(size=3) * bias_term
    text = f"use_weight_bias: true engine: MKL2017 bias_term: {str(bias_term).lower()}"
    blobs = [mean * 7, variance * 7, [7], factor, *([shift] if bias_term else [])]
    found = run(NVIDIA.replace("PARAMETERS", text), {"x": x}, {"b": blobs})["y"]
    mean, variance, factor, shift = (values.reshape(3, 1, 1) for values in (mean, variance, factor, shift))
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(variance + 0.02) * factor + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("text", "share"), [("", 1), ("scale_train: true", 1), ("scale_train: false", 0.25)])
def test_dropout_scales_where_training_did_not(run, rng, text, share):
    x = rng.normal(size=(2, 3))
    layer = f'layer {{ name: "d" type: "Dropout" bottom: "x" top: "y" dropout_param {{ dropout_ratio: 0.75 {text} }} }}'
    np.testing.assert_allclose(run(layer, {"x": x})["y"], x * share, rtol=1e-6)


def test_blobs_of_a_batch_norm_that_the_prototxt_does_not_mention(tmp_path):
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
    layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { SCALE } }"""
    for name, scale in (("plain", ""), ("scaled", "scale_bias: true")):
        (tmp_path / name).write_text(text.replace("SCALE", scale))
    nuq.Net(tmp_path / "scaled", nuq.pycaffe.TEST).save(tmp_path / "weights")
    with pytest.raises(ModelError, match="layer 'b': has 5 blobs.*asks for 3.*say scale_bias .* or use_weight_bias"):
        load_graph(tmp_path / "plain", tmp_path / "weights")
