"""Error feedback never does worse than rounding, and its distortion is the one that the weights really have."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant import feedback as rounding
from autonuq.quant.codec import CODECS
from autonuq.quant.codecs import make_codec
from autonuq.quant.feedback import build_feedback, targets_of
from autonuq.quant.inputs import InputMoments, InputRows, sampling_of
from autonuq.quant.points import PackedCodes, build_points
from autonuq.quant.uniform import quantize_weights

LEVELS = np.array([-60, -21, 0, 20, 70], np.int8)


def inputs(samples, columns, seed=0):
    """Correlated, positive inputs as a ReLU makes them."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, columns)) @ rng.standard_normal((columns, columns)) / columns**0.5
    return np.maximum(mixed + 0.5, 0)


def moments_of(x):
    return InputMoments(x.T @ x, len(x), x.sum(axis=0))


def assign_each(feedback, steps, level_sets, *, row_scale):
    weights = steps * np.broadcast_to(row_scale, len(steps))[:, None]
    return rounding.assign(feedback, targets_of(feedback, weights, row_scale), level_sets)


def assign(feedback, steps, levels, *, row_scale):
    return assign_each(feedback, steps, [levels], row_scale=row_scale)[0]


def nearest(steps):
    return LEVELS[np.abs(steps[..., None] - LEVELS).argmin(-1)]


def damped_moments(moments, feedback):
    damped = moments[np.ix_(feedback.order, feedback.order)].copy()
    damped[np.diag_indices_from(damped)] += feedback.diagonal[0] ** 2 - damped[0, 0]
    return damped


def damped_error(moments, feedback, difference, scale):
    """Squared output error under the damped moments, computed from the definition."""
    order = feedback.order
    damped = moments[np.ix_(order, order)].copy()
    damped[np.diag_indices_from(damped)] += feedback.diagonal[0] ** 2 - damped[0, 0]
    rows = difference[:, order]
    return float((((rows @ damped) * rows).sum(1) * scale**2).sum())


@pytest.mark.parametrize(("samples", "columns"), [(2000, 1), (2000, 7), (2000, 150), (40, 150)])
def test_distortion_is_exact_and_below_that_of_rounding(samples, columns):
    rng = np.random.default_rng(1)
    x = inputs(samples, columns)
    moments = x.T @ x
    feedback = build_feedback(moments_of(x))
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
    feedback = build_feedback(moments_of(x))
    damped = (x.T @ x)[np.ix_(feedback.order, feedback.order)]
    share = 0.03 + 0.07 * size / 60
    expected = np.linalg.cholesky(damped + share * np.mean(np.diag(damped)) * np.eye(size))
    assert feedback.diagonal == pytest.approx(np.diag(expected))
    assert feedback.factor.factor * feedback.diagonal == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("samples", "columns"), [(1, 3), (7, 64), (20, 150), (90, 300), (400, 150)])
def test_samples_give_the_codes_of_their_moments(samples, columns):
    rng = np.random.default_rng(3)
    x = inputs(samples, columns).astype(np.float32)
    steps = rng.laplace(scale=25, size=(30, columns))
    sets = [LEVELS, np.arange(-126, 127, 9).astype(np.int8)]
    own, others = (
        assign_each(build_feedback(found), steps, sets, row_scale=np.full(30, scale))
        for found, scale in ((InputRows(x), samples**0.5), (moments_of(x.astype(float)), 1.0))
    )
    for one, other in zip(own, others, strict=True):
        assert (one.codes == other.codes).mean() > 0.995
        assert one.distortion == pytest.approx(other.distortion, rel=1e-3)


def test_sets_side_by_side_are_sets_alone():
    x = inputs(200, 150)
    steps = np.random.default_rng(0).laplace(scale=25, size=(9, 150))
    sets = [LEVELS, np.array([-128, 127], np.int8), np.arange(-128, 128).astype(np.int8)]
    feedback, scale = build_feedback(moments_of(x)), np.random.default_rng(1).uniform(0.5, 2, 9)
    for together, levels in zip(assign_each(feedback, steps, sets, row_scale=scale), sets, strict=True):
        alone = assign(feedback, steps, levels, row_scale=scale)
        assert (together.codes == alone.codes).all()
        assert together.distortion == pytest.approx(alone.distortion)


def test_targets_go_to_the_nearest_level_and_to_the_lower_of_two():
    steps = np.array([[-300, -60, -40.5, -40.4, 0, 10, 10.1, 45, 45.1, 400]]).T
    feedback = build_feedback(InputMoments(np.eye(1), 10**9, np.zeros(1)))
    found = assign(feedback, steps, LEVELS, row_scale=np.ones(1)).codes
    assert found.ravel().tolist() == [-60, -60, -60, -21, 0, 0, 20, 20, 70, 70]


@pytest.mark.parametrize(
    ("columns", "seen", "kept"),
    [
        (25088, 64, (64, True)),
        (66560, 10**6, (1008, True)),
        (9216, 5000, (5000, False)),
        (9217, 5000, (2048, True)),
        (4608, 10**6, (92160, False)),
        (9, 10**6, (4096, False)),
        (800, 200, (200, True)),
        (800, 201, (201, False)),
    ],
)
def test_what_is_kept_of_the_inputs(columns, seen, kept):
    assert sampling_of(columns).expected(seen) == kept


def test_weights_that_are_levels_stay():
    x = inputs(500, 20)
    steps = LEVELS[np.random.default_rng(0).integers(5, size=(8, 20))].astype(float)
    found = assign(build_feedback(moments_of(x)), steps, LEVELS, row_scale=np.ones(1))
    assert (found.codes == steps).all()
    assert found.distortion == 0


def test_independent_inputs_make_it_plain_rounding():
    steps = np.random.default_rng(0).normal(scale=40, size=(8, 20))
    feedback = build_feedback(InputMoments(np.diag(np.arange(1.0, 21.0)), 10**9, np.zeros(20)))
    assert (assign(feedback, steps, LEVELS, row_scale=np.ones(8)).codes == nearest(steps)).all()


def test_energy_is_the_distortion_of_nothing():
    x = inputs(300, 12)
    steps = np.random.default_rng(0).normal(scale=20, size=(5, 12))
    feedback = build_feedback(moments_of(x))
    zero = assign(feedback, steps, np.zeros(1, np.int8), row_scale=np.full(5, 0.5))
    rotated = np.linalg.cholesky(damped_moments(x.T @ x, feedback)).T @ steps[:, feedback.order].T
    assert zero.distortion == pytest.approx(np.square(rotated * 0.5).sum())


def test_dead_inputs_and_bad_moments():
    steps = np.ones((2, 3)) * 20
    assert (
        assign(
            build_feedback(InputMoments(np.zeros((3, 3)), 5, np.zeros(3))), steps, LEVELS, row_scale=np.ones(1)
        ).codes
        == 20
    ).all()
    with pytest.raises(QuantizationError, match="not finite"):
        build_feedback(InputMoments(np.full((3, 3), np.nan), 5, np.zeros(3)))
    with pytest.raises(QuantizationError, match="no covariance"):
        build_feedback(InputMoments(np.array([[1.0, 5.0], [5.0, 1.0]]), 5, np.zeros(2)))


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(2)
    weights = rng.laplace(size=(40, 8, 3, 3)).astype(np.float32)
    x = inputs(3000, 72)
    return weights, quantize_weights(weights, channel_axis=0), moments_of(x)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_points_are_exact_and_convex(codec, layer):
    weights, uniform, moments = layer
    points = build_points("conv", weights, uniform, codec, inputs=(moments,))
    curve = points.curve
    assert [codec.size_bytes(codes) for codes in points.codes] == curve.rates_bytes.tolist()
    assert curve.levels == tuple(len(np.unique(codes)) for codes in points.codes)
    slopes = np.diff(curve.distortions) / -np.diff(curve.rates_bytes)
    assert len(slopes) > 4
    assert (np.diff(slopes) > 0).all()
    feedback = build_feedback(moments)
    scale, rows = uniform.scale.astype(float), weights.reshape(40, -1).astype(float)
    energy = damped_error(moments.sums, feedback, rows, np.ones(40))
    for codes, loss in list(zip(points.codes, curve.distortions, strict=True))[1:]:
        difference = rows - codes.reshape(40, -1) * scale[:, None]
        assert damped_error(moments.sums, feedback, difference, np.ones(40)) / energy == pytest.approx(loss)


def test_feedback_pays(layer):
    """At equal bytes the output loses at most 0.7 of what it loses without feedback."""
    weights, uniform, moments = layer
    codec = CODECS["entropy"]
    with_feedback = build_points("conv", weights, uniform, codec, inputs=(moments,)).curve
    feedback = build_feedback(moments)
    scale, rows = uniform.scale.astype(float), weights.reshape(40, -1).astype(float)
    energy = damped_error(moments.sums, feedback, rows, np.ones(40))
    plain = build_points("conv", weights, uniform, codec)
    for rate, codes in list(zip(plain.curve.rates_bytes, plain.codes, strict=True))[5:-1]:
        lost = damped_error(moments.sums, feedback, rows - codes.reshape(40, -1) * scale[:, None], np.ones(40)) / energy
        on_curve = np.interp(rate, with_feedback.rates_bytes[::-1], with_feedback.distortions[::-1])
        assert on_curve < 0.7 * lost


def test_point_0_is_the_best_int8(layer):
    weights, uniform, moments = layer
    points = build_points("conv", weights, uniform, CODECS["entropy"], inputs=(moments,))
    alone = build_points("conv", weights, uniform, CODECS["entropy"], inputs=(moments,), nuq=False)
    assert (points.codes[0] == alone.codes[0]).all()
    rows, scale = weights.reshape(40, -1), uniform.scale[:, None]
    found, rounded = (rows - codes.reshape(40, -1) * scale for codes in (points.codes[0], uniform.codes))
    energy = np.array([((error @ moments.sums) * error).sum() for error in (found, rounded)])
    assert energy[0] < 0.5 * energy[1]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("output_axis", [0, 1])
def test_groups_and_their_bias(output_axis, has_bias):
    """Each group is rounded by its own inputs, and the mean of what the output then lacks is said."""
    rng = np.random.default_rng(0)
    by_output = rng.laplace(size=(6, 2, 3, 3)).astype(np.float32)
    weights = np.moveaxis(by_output, 0, output_axis)
    uniform = quantize_weights(weights, channel_axis=output_axis)
    seen = [inputs(500, 18, seed) for seed in range(3)]
    given = {"inputs": [moments_of(x) for x in seen], "has_bias": has_bias, "nuq": False, "output_axis": output_axis}
    points = build_points("dw", weights, uniform, CODECS["entropy"], **given)
    codes, every = np.moveaxis(points.codes[0], output_axis, 0).reshape(6, 18), np.arange(-128, 128).astype(np.int8)
    assert (points.bias is not None) == has_bias
    for group, x in enumerate(seen):
        own = slice(2 * group, 2 * group + 2)
        steps, scale = by_output[own].reshape(2, 18) / uniform.scale[own, None], uniform.scale[own]
        shown = moments_of(x - 0.7 * x.mean(axis=0)) if has_bias else moments_of(x)
        expected = assign(build_feedback(shown), steps, every, row_scale=scale).codes
        assert (codes[own] == expected).mean() > 0.95
        if has_bias:
            lacking = (x @ ((steps - codes[own]) * scale[:, None]).T).mean(axis=0)
            assert points.bias[0, own] == pytest.approx(lacking, abs=1e-6)


def test_a_bias_takes_up_the_mean_error_of_each_point(layer):
    weights, uniform, _ = layer
    x = inputs(3000, 72) + np.linspace(0, 3, 72)
    points = build_points("c", weights, uniform, CODECS["entropy"], inputs=(moments_of(x),), has_bias=True)
    plain = build_points("c", weights, uniform, CODECS["entropy"], inputs=(moments_of(x),))
    assert plain.bias is None
    rows, scale = weights.reshape(40, -1), uniform.scale[:, None]

    def error(codes, bias):
        lacking = x @ (rows - codes.reshape(40, -1) * scale).T - bias
        return np.square(lacking).mean()

    for codes, bias in zip(points.codes, points.bias, strict=True):
        lacking = (x @ (rows - codes.reshape(40, -1) * scale).T).mean(axis=0)
        assert bias == pytest.approx(lacking, abs=1e-3)
    coarse = error(points.codes[-1], points.bias[-1]), error(plain.codes[-1], 0)
    assert points.curve.rates_bytes[-1] < 1.1 * plain.curve.rates_bytes[-1]
    assert coarse[0] < coarse[1]


def test_centred_moments_are_those_of_centred_samples():
    x = inputs(300, 40).astype(np.float32) + 1
    rows, moments = InputRows(x).centred(), moments_of(x.astype(float)).centred()
    assert rows.rows.T @ rows.rows == pytest.approx(moments.sums, rel=1e-3)
    assert rows.rows.mean(axis=0) == pytest.approx(0.3 * x.mean(axis=0), rel=1e-4)


def test_large_layers_keep_bitstreams(layer, monkeypatch):
    weights, uniform, moments = layer
    plain = build_points("conv", weights, uniform, CODECS["fixed"], inputs=(moments,))
    monkeypatch.setattr("autonuq.quant.points.PACKED_ABOVE", 0)
    packed = build_points("conv", weights, uniform, CODECS["fixed"], inputs=(moments,))
    assert isinstance(packed.codes, PackedCodes)
    assert packed.curve.rates_bytes.tolist() == plain.curve.rates_bytes.tolist()
    assert all((one == other).all() for one, other in zip(packed.codes, plain.codes, strict=True))


@pytest.mark.parametrize("known", [True, False], ids=["calibrated", "counts"])
@pytest.mark.parametrize("name", ["fixed", "entropy", "ascend"])
def test_numbers_of_levels_can_be_limited(name, known, layer):
    weights, uniform, moments = layer
    codec = make_codec(name, uniform.codes.shape)
    points = build_points("conv", weights, uniform, codec, inputs=(moments,) if known else (), sizes=(32, 16))
    levels = [len(np.unique(codes)) for codes in points.codes[1:]]
    assert set(levels) <= {32, 16} and 16 in levels
    assert [codec.size_bytes(codes) for codes in points.codes] == points.curve.rates_bytes.tolist()


def test_weights_that_are_all_zero(layer):
    _, _, moments = layer
    zero = np.zeros((40, 8, 3, 3), np.float32)
    points = build_points("c", zero, quantize_weights(zero, channel_axis=0), CODECS["entropy"], inputs=(moments,))
    assert not points.codes.any()
    assert not points.curve.distortions.any()


def test_moments_of_another_layer_are_refused(layer):
    weights, uniform, _ = layer
    with pytest.raises(QuantizationError, match="layer 'conv'.*72 inputs.*of 5"):
        build_points("conv", weights, uniform, CODECS["entropy"], inputs=(InputMoments(np.eye(5), 10, np.zeros(5)),))
