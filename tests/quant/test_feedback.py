"""Error feedback never does worse than rounding, and its distortion is the one that the weights really have."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant.codec import CODECS
from autonuq.quant.codecs import make_codec
from autonuq.quant.feedback import assign, build_feedback, output_energy
from autonuq.quant.points import InputMoments, build_points
from autonuq.quant.uniform import quantize_weights

LEVELS = np.array([-60, -21, 0, 20, 70], np.int8)


def inputs(samples, columns, seed=0):
    """Correlated, positive inputs as a ReLU makes them."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, columns)) @ rng.standard_normal((columns, columns)) / columns**0.5
    return np.maximum(mixed + 0.5, 0)


def nearest(steps):
    return LEVELS[np.abs(steps[..., None] - LEVELS).argmin(-1)]


def damped_error(moments, feedback, difference, scale):
    """Squared output error under the damped moments, computed from the definition."""
    order = feedback.order
    damped = feedback.factor @ feedback.factor.T
    assert np.allclose(damped - np.diag(np.diag(damped)), (moments - np.diag(np.diag(moments)))[np.ix_(order, order)])
    rows = difference[:, order]
    return float((((rows @ damped) * rows).sum(1) * scale**2).sum())


@pytest.mark.parametrize(("samples", "columns"), [(2000, 1), (2000, 7), (2000, 150), (40, 150)])
def test_distortion_is_exact_and_below_that_of_rounding(samples, columns):
    rng = np.random.default_rng(1)
    x = inputs(samples, columns)
    moments = x.T @ x
    feedback = build_feedback(moments, samples)
    steps, scale = rng.laplace(scale=25, size=(30, columns)), rng.uniform(0.5, 2, 30)
    found = assign(feedback, steps, LEVELS, row_scale=scale)
    assert set(np.unique(found.codes)) <= set(LEVELS)
    assert found.distortion == pytest.approx(damped_error(moments, feedback, steps - found.codes, scale))
    rounded = damped_error(moments, feedback, steps - nearest(steps), scale)
    assert found.distortion <= rounded * (1 + 1e-12)
    if columns == 150:
        assert found.distortion < 0.7 * rounded


@pytest.mark.parametrize("size", [1, 5, 6, 17])
def test_the_factor_is_choleskys(size, monkeypatch):
    monkeypatch.setattr("autonuq.quant.feedback._PANEL", 5)
    x = inputs(60, size)
    feedback = build_feedback(x.T @ x, 60)
    assert (np.triu(feedback.factor, 1) == 0).all()
    damped = (x.T @ x)[np.ix_(feedback.order, feedback.order)]
    share = 0.03 + 0.07 * size / 60
    expected = np.linalg.cholesky(damped + share * np.mean(np.diag(damped)) * np.eye(size))
    assert feedback.factor == pytest.approx(expected)


def test_weights_that_are_levels_stay():
    x = inputs(500, 20)
    steps = LEVELS[np.random.default_rng(0).integers(5, size=(8, 20))].astype(float)
    found = assign(build_feedback(x.T @ x, 500), steps, LEVELS, row_scale=np.ones(1))
    assert (found.codes == steps).all()
    assert found.distortion == 0


def test_independent_inputs_make_it_plain_rounding():
    steps = np.random.default_rng(0).normal(scale=40, size=(8, 20))
    feedback = build_feedback(np.diag(np.arange(1.0, 21.0)), 10**9)
    assert (assign(feedback, steps, LEVELS, row_scale=np.ones(8)).codes == nearest(steps)).all()


def test_energy_is_the_distortion_of_nothing():
    x = inputs(300, 12)
    steps = np.random.default_rng(0).normal(scale=20, size=(5, 12))
    feedback = build_feedback(x.T @ x, 300)
    zero = assign(feedback, steps, np.zeros(1, np.int8), row_scale=np.full(5, 0.5))
    assert output_energy(feedback, steps, row_scale=np.full(5, 0.5)) == pytest.approx(zero.distortion)


def test_dead_inputs_and_bad_moments():
    steps = np.ones((2, 3)) * 20
    assert (assign(build_feedback(np.zeros((3, 3)), 5), steps, LEVELS, row_scale=np.ones(1)).codes == 20).all()
    with pytest.raises(QuantizationError, match="not finite"):
        build_feedback(np.full((3, 3), np.nan), 5)
    with pytest.raises(QuantizationError, match="no covariance"):
        build_feedback(np.array([[1.0, 5.0], [5.0, 1.0]]), 5)


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(2)
    weights = rng.laplace(size=(40, 8, 3, 3)).astype(np.float32)
    x = inputs(3000, 72)
    return weights, quantize_weights(weights, channel_axis=0), InputMoments(x.T @ x, 3000)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_points_are_exact_and_convex(codec, layer):
    weights, uniform, moments = layer
    points = build_points("conv", weights, uniform, codec, moments=moments)
    curve = points.curve
    assert (points.codes[0] == uniform.codes).all()
    assert [codec.size_bytes(codes) for codes in points.codes] == curve.rates_bytes.tolist()
    assert curve.levels == tuple(len(np.unique(codes)) for codes in points.codes)
    slopes = np.diff(curve.distortions) / -np.diff(curve.rates_bytes)
    assert len(slopes) > 4
    assert (np.diff(slopes) > 0).all()
    feedback = build_feedback(moments.sums, moments.samples)
    scale, rows = uniform.scale.astype(float), weights.reshape(40, -1).astype(float)
    energy = damped_error(moments.sums, feedback, rows, np.ones(40))
    for codes, loss in list(zip(points.codes, curve.distortions, strict=True))[1:]:
        difference = rows - codes.reshape(40, -1) * scale[:, None]
        assert damped_error(moments.sums, feedback, difference, np.ones(40)) / energy == pytest.approx(loss)


def test_feedback_pays(layer):
    """At equal bytes the output loses at most 0.7 of what it loses without feedback."""
    weights, uniform, moments = layer
    codec = CODECS["entropy"]
    with_feedback = build_points("conv", weights, uniform, codec, moments=moments).curve
    feedback = build_feedback(moments.sums, moments.samples)
    scale, rows = uniform.scale.astype(float), weights.reshape(40, -1).astype(float)
    energy = damped_error(moments.sums, feedback, rows, np.ones(40))
    plain = build_points("conv", weights, uniform, codec)
    for rate, codes in list(zip(plain.curve.rates_bytes, plain.codes, strict=True))[5:-1]:
        lost = damped_error(moments.sums, feedback, rows - codes.reshape(40, -1) * scale[:, None], np.ones(40)) / energy
        on_curve = np.interp(rate, with_feedback.rates_bytes[::-1], with_feedback.distortions[::-1])
        assert on_curve < 0.7 * lost


@pytest.mark.parametrize("known", [True, False], ids=["calibrated", "counts"])
@pytest.mark.parametrize("name", ["fixed", "entropy", "ascend"])
def test_numbers_of_levels_can_be_limited(name, known, layer):
    weights, uniform, moments = layer
    codec = make_codec(name, uniform.codes.shape)
    points = build_points("conv", weights, uniform, codec, moments=moments if known else None, sizes=(32, 16))
    levels = [len(np.unique(codes)) for codes in points.codes[1:]]
    assert set(levels) <= {32, 16} and 16 in levels
    assert [codec.size_bytes(codes) for codes in points.codes] == points.curve.rates_bytes.tolist()


def test_weights_that_are_all_zero(layer):
    _, _, moments = layer
    zero = np.zeros((40, 8, 3, 3), np.float32)
    points = build_points("c", zero, quantize_weights(zero, channel_axis=0), CODECS["entropy"], moments=moments)
    assert not points.codes.any()
    assert not points.curve.distortions.any()


def test_moments_of_another_layer_are_refused(layer):
    weights, uniform, _ = layer
    with pytest.raises(QuantizationError, match="layer 'conv'.*72 inputs.*of 5"):
        build_points("conv", weights, uniform, CODECS["entropy"], moments=InputMoments(np.eye(5), 10))
