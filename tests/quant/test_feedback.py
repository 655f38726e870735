"""Error feedback never does worse than rounding, and its cost is the one that the weights really have."""

from itertools import pairwise

import numpy as np
import pytest
from rounding import costs_of, inputs, moments_of

from autonuq.errors import QuantizationError
from autonuq.quant import feedback as rounding
from autonuq.quant.feedback import Grid, Prices, build_feedback, damping_of, equal_outputs, factor_outputs, targets_of
from autonuq.quant.inputs import InputMoments, InputRows, sampling_of

LEVELS = np.array([-60, -21, 0, 20, 70], np.int8)
EVERY = np.arange(-128, 128).astype(np.int8)


def assign(feedback, steps, levels, *, scale, outputs=None, **price):
    """Round weights that are given in steps of each row."""
    scale = np.broadcast_to(scale, len(steps)).astype(np.float64)
    return rounding.assign(targets_of(feedback, steps * scale[:, None], outputs), Grid(levels, scale, **price))


def priced(bits, in_pairs=None):
    return Prices(bits, bits if in_pairs is None else in_pairs)


def nearest(steps):
    return LEVELS[np.abs(steps[..., None] - LEVELS).argmin(-1)]


def damped(given):
    """H from its definition, in the columns' own order."""
    second = (
        given.sums / given.samples if isinstance(given, InputMoments) else given.rows.T @ given.rows / given.samples
    )
    return second + damping_of(given) * np.eye(given.inputs)


def cost_of(errors, given, costs=None):
    """tr(G E H E') from its definition."""
    own = np.eye(len(errors)) if costs is None else costs
    return float(np.trace(own @ errors @ damped(given) @ errors.T))


def inner_level(levels, level):
    nearer = [other for other in levels if abs(other) < abs(level) and other * level >= 0]
    return max(nearer, key=abs) if nearer else level


def round_by_definition(weights, given, costs, scale, levels, price=0.0, bits=None):
    """Round weights one after the other, by the module's notation and nothing else."""
    rows, columns = np.argsort(np.diag(costs), kind="stable"), np.argsort(given.squares, kind="stable")
    left = np.linalg.cholesky(costs[np.ix_(rows, rows)])
    right = np.linalg.cholesky(damped(given)[np.ix_(columns, columns)])
    wanted, step = weights[np.ix_(rows, columns)], scale[rows]
    found, total = np.zeros(wanted.shape), 0.0
    for j in reversed(range(wanted.shape[1])):
        errors = wanted - found * step[:, None]
        carried = wanted[:, j] + errors[:, j + 1 :] @ right[j + 1 :, j] / right[j, j]
        for i in reversed(range(len(wanted))):
            later = carried[i + 1 :] - found[i + 1 :, j] * step[i + 1 :]
            target = (carried[i] + later @ left[i + 1 :, i] / left[i, i]) / step[i]
            unit = (left[i, i] * right[j, j] * step[i]) ** 2
            closest = min(levels.tolist(), key=lambda level: (abs(target - level), level))
            candidates = [closest] if not price else [closest, inner_level(levels.tolist(), closest), 0]
            found[i, j] = min(
                candidates,
                key=lambda level: unit * (target - level) ** 2 + (price * bits[level + 128] if price else 0),
            )
            total += unit * (target - found[i, j]) ** 2
    codes = np.empty(found.shape, np.int8)
    codes[np.ix_(rows, columns)] = found
    return codes, total


@pytest.mark.parametrize("price", [0.0, 0.05], ids=["free", "priced"])
@pytest.mark.parametrize("form", ["moments", "rows"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (6, 1), (5, 8), (7, 70)])
def test_it_is_the_double_loop_of_the_notation(rows, columns, form, price, monkeypatch):
    monkeypatch.setattr(rounding, "_TILE", 3)
    rng = np.random.default_rng(rows + columns)
    x = inputs(40, columns).astype(np.float32)
    given = InputRows(x) if form == "rows" else moments_of(x.astype(np.float64))
    weights, scale, costs = rng.laplace(size=(rows, columns)), rng.uniform(0.03, 0.09, rows), costs_of(rows)
    bits = np.abs(np.arange(-128.0, 128)) / 8 + 1
    expected, cost = round_by_definition(weights, given, costs, scale, LEVELS, price, bits)
    targets = targets_of(build_feedback(given), weights, factor_outputs(costs))
    found = rounding.assign(targets, Grid(LEVELS, scale, price, priced(bits)))
    assert (found.codes == expected).mean() > 0.99  # float32 decides otherwise between two levels that are as near
    if (found.codes == expected).all():
        assert found.cost == pytest.approx(cost, rel=1e-4)
    assert found.cost == pytest.approx(cost_of(weights - found.codes * scale[:, None], given, costs), rel=1e-4)


def pairs_by_definition(weights, given, costs, scale, levels, price, prices, pairs):
    """Round two columns at a time: one after the other by the definition, or both to zero where that costs less."""
    others = sorted(set(range(given.inputs)) - set(pairs.ravel().tolist()), key=lambda column: given.squares[column])
    order = [*sorted(pairs.tolist(), key=lambda pair: given.squares[pair].sum()), *([column] for column in others)]
    columns, rows = np.concatenate(order), np.argsort(np.diag(costs), kind="stable")
    left = np.linalg.cholesky(costs[np.ix_(rows, rows)])
    right = np.linalg.cholesky(damped(given)[np.ix_(columns, columns)])
    wanted, step = weights[np.ix_(rows, columns)], scale[rows]
    found, places = np.zeros(wanted.shape), {column: place for place, column in enumerate(columns.tolist())}

    def target(i, j, own):
        """The module's t[i, j] in steps, given the codes so far."""
        errors = wanted - own * step[:, None]
        by_column = wanted[:, j] + errors[:, j + 1 :] @ right[j + 1 :, j] / right[j, j]
        below = by_column[i + 1 :] - own[i + 1 :, j] * step[i + 1 :]
        return (by_column[i] + below @ left[i + 1 :, i] / left[i, i]) / step[i]

    for group in reversed(order):
        bits = prices.in_pairs if len(group) == 2 else prices.bits
        js = sorted((places[column] for column in group), reverse=True)
        for i in reversed(range(len(wanted))):
            units = {j: (left[i, i] * right[j, j] * step[i]) ** 2 for j in js}

            def spent(codes, own, i=i, js=js, units=units):
                trial = own.copy()
                total = 0.0
                for j, code in zip(js, codes, strict=True):
                    total += units[j] * (target(i, j, trial) - code) ** 2
                    trial[i, j] = code
                return total

            chosen = []
            for j in js:
                trial = found.copy()
                trial[i, js[: len(chosen)]] = chosen
                aim = target(i, j, trial)
                closest = min(levels.tolist(), key=lambda level: (abs(aim - level), level))
                candidates = [closest, inner_level(levels.tolist(), closest), 0]
                chosen.append(min(candidates, key=lambda c: units[j] * (aim - c) ** 2 + price * bits[c + 128]))
            if len(js) == 2:
                apart = spent(chosen, found) + price * sum(bits[code + 128] for code in chosen)
                if spent([0, 0], found) + price * bits[128] < apart:
                    chosen = [0, 0]
            found[i, js] = chosen
    codes = np.empty(found.shape, np.int8)
    codes[np.ix_(rows, columns)] = found
    return codes


@pytest.mark.parametrize("form", ["moments", "rows"])
@pytest.mark.parametrize(("rows", "columns", "pairs"), [(1, 2, 1), (3, 5, 2), (5, 8, 4), (7, 70, 33), (4, 131, 60)])
def test_pairs_go_to_zero_together_where_that_costs_less(rows, columns, pairs, form, monkeypatch):
    monkeypatch.setattr(rounding, "_TILE", 3)
    rng = np.random.default_rng(rows + columns)
    x = inputs(40, columns).astype(np.float32)
    given = InputRows(x) if form == "rows" else moments_of(x.astype(np.float64))
    weights, scale, costs = rng.laplace(size=(rows, columns)), rng.uniform(0.03, 0.09, rows), costs_of(rows)
    own = rng.permutation(columns)[: 2 * pairs].reshape(-1, 2)
    in_pairs = np.where(np.arange(-128, 128) == 0, 3.0, 5.0)
    prices = Prices(np.where(np.arange(-128, 128) == 0, 0.0, 5.0), in_pairs)
    expected = pairs_by_definition(weights, given, costs, scale, LEVELS, 0.05, prices, own)
    targets = targets_of(build_feedback(given, own), weights, factor_outputs(costs))
    found = rounding.assign(targets, Grid(LEVELS, scale, 0.05, prices))
    assert (found.codes == expected).mean() > 0.99
    assert found.cost == pytest.approx(cost_of(weights - found.codes * scale[:, None], given, costs), rel=1e-4)


def test_two_zeros_that_cost_one_become_more():
    given, steps = moments_of(inputs(200, 60)), np.random.default_rng(1).laplace(size=(20, 60))
    own, bits, levels = np.arange(60).reshape(-1, 2), np.full(256, 3.0), np.arange(-3, 4).astype(np.int8)
    price = 0.2 * float(np.square(build_feedback(given).diagonal).mean())
    cheap = assign(build_feedback(given, own), steps, levels, scale=1.0, price=price, prices=priced(bits))
    dear = assign(build_feedback(given), steps, levels, scale=1.0, price=price, prices=priced(bits))
    both = [(codes.reshape(20, -1, 2) == 0).all(axis=2).mean() for codes in (cheap.codes, dear.codes)]
    assert both[0] > 1.2 * both[1]
    assert cheap.cost > dear.cost


def test_equal_outputs_are_the_identity():
    x, rng = inputs(300, 40), np.random.default_rng(0)
    steps, scale = rng.laplace(scale=25, size=(9, 40)), rng.uniform(0.5, 2, 9)
    feedback = build_feedback(moments_of(x))
    own = [assign(feedback, steps, LEVELS, scale=scale, outputs=each) for each in (None, equal_outputs(9))]
    other = assign(feedback, steps, LEVELS, scale=scale, outputs=factor_outputs(np.eye(9)))
    assert (own[0].codes == own[1].codes).all() and (own[0].codes == other.codes).all()
    assert own[0].cost == own[1].cost == pytest.approx(other.cost)


def test_knowing_the_outputs_pays_there():
    x, rng = inputs(2000, 60), np.random.default_rng(0)
    weights, costs, scale = rng.laplace(size=(12, 60)), costs_of(12), np.full(12, 0.04)
    feedback, given = build_feedback(moments_of(x)), moments_of(x)
    blind = rounding.assign(targets_of(feedback, weights), Grid(LEVELS, scale))
    known = rounding.assign(targets_of(feedback, weights, factor_outputs(costs)), Grid(LEVELS, scale))
    lost = [cost_of(weights - each.codes * scale[:, None], given, costs) for each in (blind, known)]
    assert lost[1] < 0.8 * lost[0]


def test_a_price_moves_levels_to_zero_and_costs_distortion():
    x, rng = inputs(500, 80), np.random.default_rng(0)
    steps, feedback = rng.laplace(scale=4, size=(10, 80)), build_feedback(moments_of(x))
    bits = np.abs(np.arange(-128.0, 128)) / 8 + 1 - (np.arange(-128, 128) == 0)
    prices = [0.0, 0.1, 1.0, 10.0, 1e6]
    found = [assign(feedback, steps, EVERY, scale=1.0, price=price, prices=priced(bits)) for price in prices]
    for before, after in pairwise(found):
        assert (after.codes == 0).mean() > (before.codes == 0).mean()
        assert bits[after.codes.astype(int) + 128].sum() < bits[before.codes.astype(int) + 128].sum()
        assert after.cost > before.cost
    assert not found[-1].codes.any()


def test_levels_without_zero_are_not_left_for_it():
    x, levels = inputs(500, 30), np.array([-50, -20, 20, 50], np.int8)
    steps = np.random.default_rng(0).laplace(scale=20, size=(4, 30))
    bits = np.where(np.arange(-128, 128) == 0, 0.0, 20.0)
    found = assign(build_feedback(moments_of(x)), steps, levels, scale=1.0, price=1e3, prices=priced(bits))
    assert set(np.unique(found.codes)) <= set(levels.tolist())


def test_many_outputs_are_taken_in_blocks(monkeypatch):
    """Within a block outputs know of one another, and a block alone is rounded as if it were the layer."""
    monkeypatch.setattr(rounding, "_MOST_ROWS", 5)
    x, rng = inputs(300, 20), np.random.default_rng(0)
    given, costs, scale = moments_of(x), costs_of(13), rng.uniform(0.03, 0.06, 13)
    weights, order = rng.laplace(size=(13, 20)), np.argsort(np.diag(costs), kind="stable")
    outputs = factor_outputs(costs)
    assert outputs.blocks.shape == (13, 5)
    found = rounding.assign(targets_of(build_feedback(given), weights, outputs), Grid(LEVELS, scale))
    total = 0.0
    for begin in (0, 5, 10):
        own = order[begin : begin + 5]
        codes, cost = round_by_definition(weights[own], given, costs[np.ix_(own, own)], scale[own], LEVELS)
        assert (found.codes[own] == codes).mean() > 0.98
        total += cost
    assert found.cost == pytest.approx(total, rel=1e-2)


def test_more_outputs_than_a_block_has_rows():
    x, rng = inputs(60, 5), np.random.default_rng(0)
    costs = costs_of(700)
    outputs = factor_outputs(costs)
    assert outputs.blocks.shape == (700, 512)
    assert np.isfinite(outputs.blocks).all() and (outputs.diagonal > 0).all()
    found = assign(
        build_feedback(moments_of(x)), rng.laplace(scale=25, size=(700, 5)), LEVELS, scale=1.0, outputs=outputs
    )
    assert found.codes.shape == (700, 5) and np.isfinite(found.cost)


@pytest.mark.parametrize(
    ("costs", "reason"),
    [
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "not finite"),
        (np.array([[1.0, np.inf], [np.inf, 1.0]]), "not finite"),
        (np.array([[1.0, 5.0], [5.0, 1.0]]), "no covariance"),
        (np.zeros((2, 2)), "no covariance"),
    ],
)
def test_costs_of_outputs_that_cannot_be(costs, reason):
    with pytest.raises(QuantizationError, match=f"what its output errors cost is {reason}"):
        factor_outputs(costs)


@pytest.mark.parametrize(("samples", "columns"), [(2000, 1), (2000, 7), (2000, 150), (40, 150)])
def test_cost_is_exact_and_below_that_of_rounding(samples, columns):
    rng = np.random.default_rng(1)
    given = moments_of(inputs(samples, columns))
    steps, scale = rng.laplace(scale=25, size=(30, columns)), rng.uniform(0.5, 2, 30)
    found = assign(build_feedback(given), steps, LEVELS, scale=scale)
    assert set(np.unique(found.codes)) <= set(LEVELS)
    assert found.cost == pytest.approx(cost_of((steps - found.codes) * scale[:, None], given), rel=1e-5)
    rounded = cost_of((steps - nearest(steps)) * scale[:, None], given)
    assert found.cost <= rounded * (1 + 1e-6)
    if columns == 150:
        assert found.cost < 0.7 * rounded


@pytest.mark.parametrize("size", [1, 5, 6, 17])
def test_the_factor_is_choleskys(size, monkeypatch):
    monkeypatch.setattr("autonuq.quant.feedback._PANEL", 5)
    x = inputs(60, size)
    feedback = build_feedback(moments_of(x))
    second = (x.T @ x)[np.ix_(feedback.order, feedback.order)] / 60
    share = 0.03 + 0.07 * size / 60
    expected = np.linalg.cholesky(second + share * np.mean(np.diag(second)) * np.eye(size))
    assert feedback.diagonal == pytest.approx(np.diag(expected))
    assert feedback.factor.factor * feedback.diagonal == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("samples", "columns"), [(1, 3), (7, 64), (20, 150), (90, 300), (400, 150)])
def test_samples_give_the_codes_of_their_moments(samples, columns):
    rng = np.random.default_rng(3)
    x = inputs(samples, columns).astype(np.float32)
    steps = rng.laplace(scale=25, size=(30, columns))
    for levels in (LEVELS, np.arange(-126, 127, 9).astype(np.int8)):
        one, other = (
            assign(build_feedback(given), steps, levels, scale=1.0)
            for given in (InputRows(x), moments_of(x.astype(float)))
        )
        assert (one.codes == other.codes).mean() > 0.995
        assert one.cost == pytest.approx(other.cost, rel=1e-3)


def test_targets_go_to_the_nearest_level_and_to_the_lower_of_two():
    steps = np.array([[-300, -60, -40.5, -40.4, 0, 10, 10.1, 45, 45.1, 400]]).T
    feedback = build_feedback(InputMoments(np.eye(1), 10**9, np.zeros(1)))
    found = assign(feedback, steps, LEVELS, scale=1.0).codes
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


@pytest.mark.parametrize("costs", [None, costs_of(8)], ids=["equal", "known"])
def test_weights_that_are_levels_stay(costs):
    x = inputs(500, 20)
    steps = LEVELS[np.random.default_rng(0).integers(5, size=(8, 20))].astype(float)
    outputs = None if costs is None else factor_outputs(costs)
    found = assign(build_feedback(moments_of(x)), steps, LEVELS, scale=1.0, outputs=outputs)
    assert (found.codes == steps).all()
    assert found.cost == 0


def test_independent_inputs_make_it_plain_rounding():
    steps = np.random.default_rng(0).normal(scale=40, size=(8, 20))
    feedback = build_feedback(InputMoments(np.diag(np.arange(1.0, 21.0)), 10**9, np.zeros(20)))
    assert (assign(feedback, steps, LEVELS, scale=1.0).codes == nearest(steps)).all()


def test_energy_is_the_cost_of_nothing():
    given = moments_of(inputs(300, 12))
    steps = np.random.default_rng(0).normal(scale=20, size=(5, 12))
    zero = assign(build_feedback(given), steps, np.zeros(1, np.int8), scale=0.5)
    assert zero.cost == pytest.approx(cost_of(0.5 * steps, given), rel=1e-5)


@pytest.mark.parametrize(
    "given", [InputMoments(np.zeros((3, 3)), 5, np.zeros(3)), InputRows(np.zeros((5, 3), np.float32))]
)
def test_dead_inputs_make_it_plain_rounding(given):
    assert (assign(build_feedback(given), np.full((2, 3), 20.0), LEVELS, scale=1.0).codes == 20).all()


def test_bad_moments():
    with pytest.raises(QuantizationError, match="not finite"):
        build_feedback(InputMoments(np.full((3, 3), np.nan), 5, np.zeros(3)))
    with pytest.raises(QuantizationError, match="not finite"):
        build_feedback(InputRows(np.array([[1, np.inf]], np.float32)))
    with pytest.raises(QuantizationError, match="no covariance"):
        build_feedback(InputMoments(np.array([[1.0, 5.0], [5.0, 1.0]]), 1, np.zeros(2)))
