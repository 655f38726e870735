"""Operating points: their sizes and distortions are exact, and a point's grid makes its codes again."""

import numpy as np
import pytest
from rounding import costs_of, inputs, moments_of

from autonuq.errors import QuantizationError
from autonuq.quant.codec import CODECS
from autonuq.quant.codecs import make_codec
from autonuq.quant.feedback import Grid, assign, build_feedback, damping_of, targets_of
from autonuq.quant.inputs import InputMoments, InputRows
from autonuq.quant.points import PackedCodes, Tuning, build_points, layer_targets, pairs_of
from autonuq.quant.uniform import FLT_EPSILON, quantize_weights

EVERY = np.arange(-128, 128).astype(np.int8)
FEW_STEPS = Tuning(steps=10)


def cost_of(errors, moments, costs=None):
    """tr(G E H E') from its definition, with damped moments."""
    own = np.eye(len(errors)) if costs is None else costs
    damped = moments.sums / moments.samples + damping_of(moments) * np.eye(moments.inputs)
    return float(np.trace(own @ errors @ damped @ errors.T))


def lost(rows, codes, scale):
    """Return the errors of a layer's rows."""
    return rows - codes.reshape(rows.shape).astype(float) * scale.astype(float)[:, None]


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
    rows = weights.reshape(40, -1)
    for codes, loss in list(zip(points.codes, curve.distortions, strict=True))[1:]:
        found = cost_of(lost(rows, codes, uniform.scale), moments) / cost_of(rows, moments)
        assert found == pytest.approx(loss, rel=1e-4)


def test_feedback_pays(layer):
    """At equal bytes the output loses at most 0.7 of what it loses without feedback."""
    weights, uniform, moments = layer
    codec = CODECS["entropy"]
    with_feedback = build_points("conv", weights, uniform, codec, inputs=(moments,)).curve
    rows = weights.reshape(40, -1)
    plain = build_points("conv", weights, uniform, codec)
    for rate, codes in list(zip(plain.curve.rates_bytes, plain.codes, strict=True))[5:-1]:
        rounded = cost_of(lost(rows, codes, uniform.scale), moments) / cost_of(rows, moments)
        on_curve = np.interp(rate, with_feedback.rates_bytes[::-1], with_feedback.distortions[::-1])
        assert on_curve < 0.7 * rounded


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
    codes = np.moveaxis(points.codes[0], output_axis, 0).reshape(6, 18)
    assert (points.bias is not None) == has_bias
    for group, x in enumerate(seen):
        own = slice(2 * group, 2 * group + 2)
        steps, scale = by_output[own].reshape(2, 18) / uniform.scale[own, None], uniform.scale[own]
        shown = moments_of(x - 0.7 * x.mean(axis=0)) if has_bias else moments_of(x)
        targets = targets_of(build_feedback(shown), steps * scale[:, None])
        expected = assign(targets, Grid(EVERY, scale.astype(float))).codes
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


@pytest.mark.parametrize("costs", [costs_of(40), None], ids=["costs", "equal"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("price", [0.0, 0.3])
@pytest.mark.parametrize("name", ["entropy", "ascend"])
def test_a_points_grid_makes_its_codes_again(name, price, has_bias, costs, layer):
    """The very same ones."""
    weights, uniform, moments = layer
    codec, tuning = make_codec(name, weights.shape), Tuning(price=price, steps=10)
    points = build_points(
        "c", weights, uniform, codec, inputs=(moments,), costs=costs, tuning=tuning, has_bias=has_bias
    )
    targets = layer_targets(weights, moments, has_bias, points.outputs, pairs_of(codec))
    assert len(points.codes) > 4
    for point, codes in enumerate(points.codes):
        again = assign(targets, points.grid(point, weights, uniform, codec))
        assert (again.codes.reshape(codes.shape) == codes).all()


@pytest.mark.parametrize("price", [0.3, 0.0])
@pytest.mark.parametrize("name", ["entropy", "ascend"])
def test_own_grids_are_exact(name, price, layer):
    weights, uniform, moments = layer
    codec, costs, rows = make_codec(name, weights.shape), costs_of(40), weights.reshape(40, -1)
    tuning = Tuning(price=price, steps=10)
    points = build_points("conv", weights, uniform, codec, inputs=(moments,), costs=costs, tuning=tuning)
    curve = points.curve
    assert [codec.size_bytes(codes) for codes in points.codes] == curve.rates_bytes.tolist()
    assert (np.diff(np.diff(curve.distortions) / -np.diff(curve.rates_bytes)) > 0).all()
    assert (points.prices > 0).all() == (price > 0) or points.prices[0] == 0
    for codes, scale, loss in list(zip(points.codes, points.scale, curve.distortions, strict=True))[1:]:
        assert cost_of(lost(rows, codes, scale), moments, costs) / 2 == pytest.approx(loss, rel=1e-3)


def test_own_grids_reach_further_and_lose_less(layer):
    """At equal bytes the network's end loses less than with int8 steps, and the curve goes on where those end."""
    weights, uniform, moments = layer
    codec, rows, costs = make_codec("entropy", weights.shape), weights.reshape(40, -1), costs_of(40)
    plain, own = (
        build_points("conv", weights, uniform, codec, inputs=(moments,), **how)
        for how in ({}, {"costs": costs, "tuning": Tuning()})
    )
    for codes, rate in zip(plain.codes, plain.curve.rates_bytes, strict=True):
        if rate > own.curve.rates_bytes[1]:  # own grids are no finer
            continue
        before = cost_of(lost(rows, codes, uniform.scale), moments, costs) / 2
        assert np.interp(rate, own.curve.rates_bytes[::-1], own.curve.distortions[::-1]) < before
    assert own.curve.rates_bytes[-1] <= plain.curve.rates_bytes[-1]


@pytest.mark.parametrize("channel_axis", [0, None], ids=["scale an output", "one scale"])
def test_scales_fit_the_record(channel_axis, layer):
    """They are float32, no weight needs more than int8, and none is below what the device takes."""
    weights, _, moments = layer
    weights = weights * np.geomspace(1e-12, 1e3, 40, dtype=np.float32).reshape(-1, 1, 1, 1)
    uniform = quantize_weights(weights, channel_axis=channel_axis)
    points = build_points(
        "c", weights, uniform, CODECS["entropy"], inputs=(moments,), costs=costs_of(40), tuning=FEW_STEPS
    )
    assert points.scale.dtype == np.float32 and points.scale.shape == (len(points.codes), uniform.scale.size)
    assert (points.scale >= FLT_EPSILON).all() and np.isfinite(points.scale).all()
    largest = np.abs(weights).reshape(40, -1).max(axis=1)
    assert (largest <= 127.01 * points.scale[1:]).all()
    assert all(codes.min() > -128 for codes in points.codes[1:])


def test_on_the_chip_own_grids_lose_less_and_come_nearer_to_the_floor():
    """Than codebooks of int8 steps do at equal bytes, where a network is: below a third of its int8 bytes."""
    weights = np.random.default_rng(3).laplace(size=(64, 64, 3, 3)).astype(np.float32) / 30
    uniform, codec, costs = quantize_weights(weights, channel_axis=0), make_codec("ascend", weights.shape), costs_of(64)
    moments = moments_of(inputs(500, 576))
    plain, own = (
        build_points("conv", weights, uniform, codec, inputs=(moments,), costs=costs, tuning=tuning).curve
        for tuning in (None, Tuning())
    )
    assert codec.size_bytes(np.zeros(weights.shape, np.int8)) <= own.rates_bytes[-1] <= plain.rates_bytes[-1]
    rates = np.linspace(plain.rates_bytes[-1], codec.device_bytes / 3, 5)
    before, after = (np.interp(rates, one.rates_bytes[::-1], one.distortions[::-1]) for one in (plain, own))
    assert (after < before).all()


def test_a_codec_of_indices_keeps_int8_steps(layer):
    weights, uniform, moments = layer
    codec = make_codec("fixed", weights.shape)
    points = build_points("c", weights, uniform, codec, inputs=(moments,), costs=costs_of(40), tuning=FEW_STEPS)
    assert (points.scale == uniform.scale).all() and not points.prices.any()


def odd(kind, weights):
    found = weights.copy()
    if kind == "zero weights":
        found[:] = 0
    elif kind == "a zero row":
        found[3] = 0
    elif kind == "a constant row":
        found[3] = 0.25
    elif kind == "equal weights":
        found[:] = -0.5
    return found


@pytest.mark.parametrize("tuning", [None, FEW_STEPS], ids=["int8", "own"])
@pytest.mark.parametrize("given", ["moments", "rows"])
@pytest.mark.parametrize("dead", ["no input", "half of the inputs", "all inputs"])
@pytest.mark.parametrize("kind", ["plain weights", "zero weights", "a zero row", "a constant row", "equal weights"])
def test_odd_weights_and_dead_inputs(kind, dead, given, tuning, layer):
    weights, x = odd(kind, layer[0]), inputs(18, 72).astype(np.float32)
    x[:, {"no input": 0, "half of the inputs": 36, "all inputs": 72}[dead] :][:, : 0 if dead == "no input" else 72] = 0
    if dead == "all inputs":
        x[:] = 0
    own = InputRows(x) if given == "rows" else moments_of(x.astype(np.float64))
    uniform = quantize_weights(weights, channel_axis=0)
    points = build_points(
        "c", weights, uniform, CODECS["entropy"], inputs=(own,), costs=costs_of(40), tuning=tuning, has_bias=True
    )
    assert np.isfinite(points.curve.distortions).all() and np.isfinite(points.bias).all()
    assert (points.curve.rates_bytes > 0).all()
    if kind == "zero weights":
        assert not points.codes.any()
    if dead == "all inputs":
        assert not points.bias.any()


@pytest.mark.parametrize("costs", [np.zeros((40, 40)), np.full((40, 40), np.nan)], ids=["singular", "not finite"])
def test_costs_that_cannot_be_name_the_layer(costs, layer):
    weights, uniform, moments = layer
    with pytest.raises(QuantizationError, match="layer 'conv'.*what its output errors cost is"):
        build_points("conv", weights, uniform, CODECS["entropy"], inputs=(moments,), costs=costs)


def test_the_same_points_every_time(layer):
    weights, uniform, moments = layer
    one, other = (
        build_points("c", weights, uniform, CODECS["entropy"], inputs=(moments,), costs=costs_of(40), tuning=FEW_STEPS)
        for _ in range(2)
    )
    assert (one.codes == other.codes).all() and (one.scale == other.scale).all()
    assert (one.curve.distortions == other.curve.distortions).all()
