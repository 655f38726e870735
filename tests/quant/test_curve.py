"""Curves: order, convexity, exact sizes and distortions."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant.codebook import build_codebooks, code_histogram, code_importance
from autonuq.quant.codec import CODECS
from autonuq.quant.curve import MAX_POINTS, Curve, build_curve
from autonuq.quant.uniform import quantize_weights

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@pytest.fixture(scope="module", params=[((20, 1, 5, 5), 0), ((50, 20, 5, 5), 0), ((100, 400), None), ((10, 500), None)])
def weights(request):
    shape, axis = request.param
    values = np.random.default_rng(5).laplace(size=shape).astype(np.float32)
    return values, quantize_weights(values, channel_axis=axis)


@every_codec
def test_every_point_is_exact_and_the_curve_is_convex(codec, weights):
    _, uniform = weights
    rng = np.random.default_rng(0)
    moments = rng.random((1, *uniform.codes.shape[1:]))
    curve = build_curve("ip", uniform.codes, codec, scale_like=uniform.scale_like(), second_moments=moments)
    assert 5 < len(curve.rates_bytes) <= MAX_POINTS
    assert np.all(np.diff(curve.rates_bytes) < 0) and np.all(np.diff(curve.distortions) > 0)
    slopes = np.diff(curve.distortions) / -np.diff(curve.rates_bytes)
    assert np.all(np.diff(slopes) > 0)
    importance = uniform.scale_like().astype(float) ** 2 * moments
    for rate, loss, codebook in zip(curve.rates_bytes, curve.distortions, curve.codebooks, strict=True):
        kept = codebook.apply(uniform.codes)
        assert len(codec.encode(kept)) == rate
        assert np.sum(importance * (kept.astype(float) - uniform.codes) ** 2) == pytest.approx(loss, rel=1e-9)


@every_codec
def test_point_0_is_the_uniform_layer(codec, weights):
    _, uniform = weights
    for nuq in (True, False):
        curve = build_curve("c", uniform.codes, codec, scale_like=uniform.scale_like(), nuq=nuq)
        assert curve.distortions[0] == 0
        assert curve.rates_bytes[0] == codec.size_bytes(uniform.codes)
        assert np.array_equal(curve.codebooks[0].apply(uniform.codes), uniform.codes)
        assert curve.levels[0] == len(np.unique(uniform.codes))
    assert len(curve.rates_bytes) == 1


def test_entropy_constrained_codebooks_pay(weights):
    """At the bytes of any plain codebook of some sizes, the curve loses no more."""
    _, uniform = weights
    codec = CODECS["entropy"]
    curve = build_curve("c", uniform.codes, codec, scale_like=uniform.scale_like())
    importance = code_importance(uniform.codes, uniform.scale_like().astype(float) ** 2)
    family = build_codebooks(code_histogram(uniform.codes), importance=importance)
    for k in (8, 16, 32):
        size = codec.size_bytes(family.codebook(k).apply(uniform.codes))
        on_curve = np.interp(size, curve.rates_bytes[::-1], curve.distortions[::-1])
        assert on_curve <= family.distortions[k - 1] * 1.001


@every_codec
@pytest.mark.parametrize("codes", [[3, 3, 3], [0, 0, 5], [0], [-128, 127]])
def test_layers_with_few_codes(codec, codes):
    curve = build_curve("c", np.array(codes, np.int8), codec, scale_like=np.ones(1))
    assert curve.distortions[0] == 0 and curve.levels[0] == len(set(codes))


@every_codec
def test_weights_without_importance_cost_nothing(codec):
    codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128).repeat(4, axis=1)
    curve = build_curve("c", codes, codec, scale_like=np.ones((2, 1)), second_moments=np.zeros((2, 1)))
    assert np.all(curve.distortions == 0) and curve.levels[0] == 256


def test_unusable_layers_are_named():
    with pytest.raises(QuantizationError, match="'conv1'"):
        build_curve("conv1", np.empty(0, np.int8), CODECS["fixed"], scale_like=np.ones(1))
    with pytest.raises(QuantizationError, match="'conv1'"):
        build_curve("conv1", np.ones(3, np.int8), CODECS["fixed"], scale_like=np.array([np.nan]))


@pytest.mark.parametrize(
    ("rates", "distortions"),
    [([], []), ([3, 2], [0]), ([2, 3], [0, 1]), ([3, 3], [0, 1]), ([3, 2], [1, 0]), ([3, np.nan], [0, 1])],
)
def test_a_curve_checks_its_order(rates, distortions):
    with pytest.raises(ValueError, match="'fc'"):
        Curve("fc", np.array(rates), np.array(distortions))
    assert Curve("fc", np.array([3.0, 2.0]), np.array([0.0, 1.0])).levels == ()


def test_the_sizes_of_a_curve_may_be_unsigned():
    """Their differences would not be negative."""
    assert Curve("fc", np.array([200, 40, 10], np.uint8), np.array([0, 1, 9], np.uint16)).levels == ()
    with pytest.raises(ValueError, match="falling rates"):
        Curve("fc", np.array([10, 40], np.uint8), np.array([0, 1], np.uint8))
