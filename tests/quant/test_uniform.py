"""ARQ, rounding and bias quantization."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autonuq.errors import QuantizationError
from autonuq.quant.uniform import dequantize, quantize_bias, quantize_weights, round_half_away


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.49999997, 0), (-0.49999997, 0), (0.5, 1), (-0.5, -1), (2.5, 3), (-2.5, -3), (8388607.5, 8388608), (3e38, 3e38)],
)
def test_halves_go_away_from_zero(value, rounded):
    assert round_half_away(np.array([value], np.float32))[0] == np.float32(rounded)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_equals_exact_arithmetic_on_any_float32(value):
    exact = math.copysign(math.floor(abs(value) + 0.5), value)  # exact: a float64 holds a float32 plus one half
    exact = value if abs(value) >= 2**24 else exact
    assert float(round_half_away(np.array([value], np.float32))[0]) == exact


def test_rounding_around_every_half():
    halves = np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)
    for x in (np.nextafter(halves, np.float32(-1e9)), halves, np.nextafter(halves, np.float32(1e9))):
        exact = np.copysign(np.floor(np.abs(x.astype(np.float64)) + 0.5), x)
        assert np.array_equal(round_half_away(x), exact)


def test_a_larger_positive_side_ends_at_127():
    found = quantize_weights(np.array([-1.0, 0.0, 1.27], np.float32), channel_axis=None)
    assert found.codes.tolist() == [-100, 0, 127]
    assert found.scale.tolist() == [np.float32(1.27) / np.float32(127)]


def test_a_larger_or_equal_negative_side_ends_at_minus_128():
    assert quantize_weights(np.array([-1.28, 1.0]), channel_axis=None).codes.tolist() == [-128, 100]
    assert quantize_weights(np.array([-1.0, 1.0]), channel_axis=None).codes.tolist() == [-128, 127]


def test_channels_have_their_own_scale_and_zero_channels_scale_one():
    weights = np.array([[1.27, 0.01], [0, 0], [-256, 2]], np.float32)
    found = quantize_weights(weights, channel_axis=0)
    assert found.codes.tolist() == [[127, 1], [0, 0], [-128, 1]]
    np.testing.assert_allclose(found.scale, [0.01, 1, 2], rtol=1e-6)
    across = quantize_weights(weights.T, channel_axis=1)
    assert np.array_equal(across.codes, found.codes.T)
    assert across.scale_like().shape == (1, 3)


def test_scales_below_float_epsilon_become_one():
    assert quantize_weights(np.full(3, 1e-6), channel_axis=None).scale.tolist() == [1.0]


def test_weights_on_the_grid_survive_exactly():
    codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 1, 8, 16)
    weights = dequantize(codes, np.array([0.25, 0.5], np.float32), 0)
    found = quantize_weights(weights, channel_axis=None)
    assert found.dequantize().dtype == np.float32
    again = quantize_weights(found.dequantize(), channel_axis=None)
    assert np.array_equal(again.dequantize(), found.dequantize())


@pytest.mark.parametrize("weights", [[np.nan, 1], [np.inf, 1], [-np.inf], [3e38], []])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(QuantizationError):
        quantize_weights(np.array(weights, np.float32), channel_axis=None)


def test_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="channel_axis"):
        quantize_weights(np.ones(3), channel_axis=1)


def test_bias_in_units_of_both_scales():
    assert quantize_bias(np.array([1.0, -0.75]), 0.5, np.array([0.25, 0.5], np.float32)).tolist() == [8, -3]
    assert quantize_bias(np.array([0.25, -0.25]), 0.5, np.array([1.0], np.float32)).tolist() == [1, -1]


@pytest.mark.parametrize("bias", [2.0**31, -(2.0**31) - 1, np.nan])
def test_a_bias_outside_int32_names_the_remedy(bias):
    with pytest.raises(QuantizationError, match="skip this layer"):
        quantize_bias(np.array([bias]), 1.0, np.ones(1, np.float32))
