"""Activations, products, reductions: each against its formula."""

import numpy as np
import pytest

UNARY = {
    "ReLU relu_param { negative_slope: -0.5 }": lambda x: np.where(x > 0, x, -0.5 * x),
    "ELU elu_param { alpha: 2 }": lambda x: np.where(x > 0, x, 2 * np.expm1(x)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "TanH": np.tanh,
    "AbsVal": np.abs,
    "BNLL": lambda x: np.logaddexp(0, x),
    "Swish": lambda x: x / (1 + np.exp(-x)),
    "Swish swish_param { beta: -2 }": lambda x: x / (1 + np.exp(2 * x)),
    "Clip clip_param { min: -1 max: 0.5 }": lambda x: np.clip(x, -1, 0.5),
    "Threshold threshold_param { threshold: -0.25 }": lambda x: x > -0.25,
    "Power power_param { power: 3 scale: 2 shift: 1 }": lambda x: (2 * x + 1) ** 3,
    "Power power_param { power: 0 scale: 5 }": np.ones_like,
    "Power power_param { scale: 0 shift: 3 power: 2 }": lambda x: np.full_like(x, 9),
    "Exp exp_param { base: 3 scale: 0.5 shift: -1 }": lambda x: 3.0 ** (0.5 * x - 1),
    "Exp exp_param { shift: 2 }": lambda x: np.exp(x + 2),
    "Log log_param { base: 2 scale: 3 shift: 20 }": lambda x: np.log2(3 * x + 20),
    "Dropout dropout_param { dropout_ratio: 0.9 }": lambda x: x,
}


@pytest.mark.parametrize("text", UNARY)
def test_activation(run, rng, text):
    x = np.concatenate([rng.normal(size=20) * 2, [0, -0.25, 0.5, 5, -5]])
    kind, _, parameters = text.partition(" ")
    found = run(f'layer {{ name: "a" type: "{kind}" bottom: "x" top: "y" {parameters} }}', {"x": x})["y"]
    np.testing.assert_allclose(found, UNARY[text](x), rtol=1e-5, atol=1e-6)


def test_bnll_keeps_the_digits_of_small_results(run):
    layer = 'layer { name: "a" type: "BNLL" bottom: "x" top: "y" }'
    x = np.array([-20.0, -10, -3, 0, 30, 100])
    np.testing.assert_allclose(run(layer, {"x": x})["y"], np.logaddexp(0, x), rtol=1e-5)


def test_sigmoid_keeps_the_digits_of_small_results(run):
    layer = 'layer { name: "a" type: "Sigmoid" bottom: "x" top: "y" }'
    x = np.array([-100.0, -30, -17, -9, 0, 9, 100])
    np.testing.assert_allclose(run(layer, {"x": x})["y"], 1 / (1 + np.exp(-x)), rtol=1e-5, atol=1e-38)


def test_a_power_that_ignores_its_input_ignores_nan_too(run):
    layer = 'layer { name: "a" type: "Power" bottom: "x" top: "y" power_param { scale: 0 shift: 2 } }'
    np.testing.assert_array_equal(run(layer, {"x": np.array([np.nan, np.inf, 1])})["y"], [2, 2, 2])


@pytest.mark.parametrize("operation", ["SUM", "ASUM", "SUMSQ", "MEAN"])
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_reduction_of_the_last_axes(run, rng, operation, axis):
    x = rng.normal(size=(2, 3, 4))
    layer = (
        'layer { name: "r" type: "Reduction" bottom: "x" top: "y" '
        f"reduction_param {{ operation: {operation} axis: {axis} coeff: -1.5 }} }}"
    )
    flat = x.reshape(*x.shape[: axis % 3], -1)
    wanted = {
        "SUM": flat.sum(-1), "ASUM": abs(flat).sum(-1), "SUMSQ": (flat**2).sum(-1), "MEAN": flat.mean(-1)
    }[operation]  # fmt: skip
    np.testing.assert_allclose(run(layer, {"x": x})["y"], -1.5 * wanted, rtol=1e-5, atol=1e-6)


def ranked(values, top_k):
    """Return the indices of Caffe's partial_sort of (value, index) pairs, largest first."""
    pairs = sorted(((value, index) for index, value in enumerate(values)), reverse=True)
    return [index for _, index in pairs[:top_k]]


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("values", [True, False])
def test_arg_max_along_an_axis_with_ties(run, rng, top_k, axis, values):
    x = rng.integers(0, 4, size=(4, 5, 6))
    layer = (
        'layer { name: "m" type: "ArgMax" bottom: "x" top: "y" '
        f"argmax_param {{ axis: {axis} top_k: {top_k} out_max_val: {str(values).lower()} }} }}"
    )
    places = np.apply_along_axis(ranked, axis, x, top_k)
    wanted = np.take_along_axis(x, places, axis) if values else places
    np.testing.assert_array_equal(run(layer, {"x": x})["y"], wanted)


@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 4), (3, 2, 2, 2), (3, 1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("values", [True, False])
def test_arg_max_of_items(run, rng, shape, top_k, values):
    x = rng.integers(0, 3, size=shape)
    layer = (
        'layer { name: "m" type: "ArgMax" bottom: "x" top: "y" '
        f"argmax_param {{ top_k: {top_k} out_max_val: {str(values).lower()} }} }}"
    )
    rows = x.reshape(3, -1)
    places = np.array([ranked(row, top_k) for row in rows])
    parts = [places, np.take_along_axis(rows, places, 1)] if values else [places]
    wanted = np.stack(parts, axis=1).reshape(3, len(parts), top_k, *(1,) * (len(shape) - 3))
    np.testing.assert_array_equal(run(layer, {"x": x})["y"], wanted)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("transpose", [True, False])
def test_inner_product(run, rng, axis, transpose):
    x = rng.normal(size=(2, 3, 4))
    rows = x.reshape(int(np.prod(x.shape[: axis % 3])), -1)
    weights, bias = rng.normal(size=(5, rows.shape[1])), rng.normal(size=5)
    layer = (
        'layer { name: "p" type: "InnerProduct" bottom: "x" top: "y" '
        f"inner_product_param {{ num_output: 5 axis: {axis} transpose: {str(transpose).lower()} }} }}"
    )
    found = run(layer, {"x": x}, {"p": [weights.T if transpose else weights, bias]})["y"]
    wanted = (rows @ weights.T + bias).reshape(*x.shape[: axis % 3], 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_embed_truncates_its_indices(run, rng):
    weights, bias = rng.normal(size=(6, 3)), rng.normal(size=3)
    layer = 'layer { name: "e" type: "Embed" bottom: "x" top: "y" embed_param { num_output: 3 input_dim: 6 } }'
    found = run(layer, {"x": np.array([[0, 5.9], [2, 2]])}, {"e": [weights, bias]})["y"]
    np.testing.assert_allclose(found, weights[[[0, 5], [2, 2]]] + bias, rtol=1e-5, atol=1e-6)


def test_eltwise_with_coefficients(run, rng):
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    text = """
    layer { name: "s" type: "Eltwise" bottom: "a" bottom: "b" bottom: "a" top: "s"
            eltwise_param { coeff: 0 coeff: 2 coeff: -1 } }
    layer { name: "m" type: "Eltwise" bottom: "a" bottom: "b" top: "m" eltwise_param { operation: MAX } }
    layer { name: "p" type: "Eltwise" bottom: "a" bottom: "b" bottom: "b" top: "p" eltwise_param { operation: PROD } }
    """
    found = run(text, {"a": a, "b": b})
    np.testing.assert_allclose(found["s"], 2 * b - a, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["m"], np.float32(np.maximum(a, b)))
    np.testing.assert_allclose(found["p"], a * b * b, rtol=1e-5, atol=1e-6)
