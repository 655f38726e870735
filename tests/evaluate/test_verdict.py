"""The margin equals log(drop / allowed drop) where the predicate has an edge, and the verdict alone elsewhere."""

import math

import pytest

from autonuq.evaluate.verdict import margin
from autonuq.records import MARGIN_LIMIT


def drop_below(limit):
    return lambda original, new: original - new < limit


@pytest.mark.parametrize("drop", [0.001, 0.1, 0.7, 0.99, 1.01, 6.0, 100.0])
def test_absolute_limit(drop):
    assert margin(drop_below(1.0), 90.0, 90.0 - drop) == pytest.approx(math.log(drop), abs=1e-5)


def test_metric_that_should_fall():
    found = margin(lambda original, new: new - original < 0.5, 2.0, 2.25)
    assert found == pytest.approx(math.log(0.5), abs=1e-5)


def test_relative_limit():
    found = margin(lambda original, new: new >= 0.98 * original, 50.0, 48.0)
    assert found == pytest.approx(math.log(2.0), abs=1e-5)


def test_metric_that_improved_is_far_inside():
    assert margin(drop_below(1.0), 90.0, 91.0) == -MARGIN_LIMIT


def test_unchanged_metric():
    assert margin(drop_below(1.0), 90.0, 90.0) == -MARGIN_LIMIT


def test_never_satisfied_is_far_outside():
    assert margin(lambda original, new: new >= original, 90.0, 89.0) == MARGIN_LIMIT


def test_two_edges_leave_the_verdict_alone():
    def band(original, new):
        return original - new < 1 or 3 < original - new < 5

    assert margin(band, 90.0, 86.0) == -1.0
    assert margin(band, 90.0, 80.0) == 1.0


def test_predicate_that_refuses_invented_metrics():
    def picky(original, new):
        if new not in (90.0, 89.5, 80.0):
            raise KeyError(new)
        return original - new < 1

    assert margin(picky, 90.0, 89.5) == -1.0
    assert margin(picky, 90.0, 80.0) == 1.0


def test_a_band_far_out_leaves_the_verdict_alone():
    def unless_odd(original, new):
        return int(10 * (original - new)) % 2 == 0

    assert margin(unless_odd, 90.0, 89.95) == -1.0
    assert margin(unless_odd, 90.0, 89.85) == 1.0
