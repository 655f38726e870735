"""Limits that the data cannot tell from luck are said before hours are spent."""

import numpy as np
import pytest

from autonuq.evaluate.samples import Score
from autonuq.study.resolution import allowed_loss, resolution_warning


class Limited:
    def __init__(self, predicate, unit=()):
        self.is_satisfied, self.unit = predicate, unit


def right(count, share=0.9):
    samples = np.arange(count) < share * count
    return Score(samples.mean(), samples=samples)


POINT = Limited(lambda original, new: (original - new) * 100 < 1, ("points", 100, "images"))


@pytest.mark.parametrize(
    ("predicate", "allowed"),
    [
        (lambda original, new: original - new < 0.01, 0.01),
        (lambda original, new: new > 0.99 * original, 0.009),
        (lambda original, new: new - original < 0.02, 0.02),  # smaller is better
        (lambda original, new: True, None),
        (lambda original, new: round(1000 * new) % 2 == 0, None),
    ],
    ids=["points", "per cent", "falls", "anything", "no edge"],
)
def test_the_allowed_loss_is_found_without_a_network(predicate, allowed):
    assert allowed_loss(Limited(predicate), 0.9) == (None if allowed is None else pytest.approx(allowed, rel=1e-4))


def test_too_few_samples_are_named_with_how_many_would_do():
    said = resolution_warning(POINT, right(100), 100, 0.8)
    assert said.startswith("100 images cannot tell a loss of 1 points, which is 1 of them, from luck")
    assert "964 images would do" in said
    assert resolution_warning(POINT, right(1000), 1000, 0.8) == ""
    assert resolution_warning(POINT, right(100), 1000, 0.8) == ""  # one batch of ten


def test_beside_the_original_networks_own_decisions_fewer_do():
    """Of those none is gained: each decision that changes is lost."""
    own = Limited(POINT.is_satisfied, POINT.unit)
    own.compares = True
    assert "; 284 images would do" in resolution_warning(own, right(100, 1), 100, 0.8)


def test_nothing_is_said_of_what_is_not_known():
    assert resolution_warning(POINT, 0.9, 100, 0.8) == ""
    assert resolution_warning(POINT, right(100), 100, 0.0) == ""
    assert resolution_warning(Limited(lambda original, new: True), right(100), 100, 0.8) == ""
