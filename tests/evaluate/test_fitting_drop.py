"""How many decisions may change is told from how sure the network is of them."""

import numpy as np
import pytest

from autonuq.evaluate.builtin.agreement import fitting_drop


def scores(margins):
    """Return probabilities of three classes whose two largest differ by these margins."""
    margins = np.asarray(margins)
    return np.stack([0.45 + margins / 2, 0.45 - margins / 2, np.full(len(margins), 0.1)], axis=1)


def test_what_small_margins_cost_is_counted_four_times():
    rng = np.random.default_rng(0)
    margins = np.sort(rng.uniform(0, 0.7, 10_000))
    allowed = fitting_drop(rng.permutation(scores(margins)))
    changed = margins[: round(allowed.limit / 100 * len(margins))]
    assert 4 * changed.sum() / len(margins) == pytest.approx(0.01, rel=0.02)


def test_a_sure_network_may_change_less():
    sure, unsure = (fitting_drop(scores(np.linspace(low, 0.7, 500))).limit for low in (0.3, 0.0))
    assert 1.0 <= sure < unsure <= 20.0


def test_logits_are_what_a_softmax_makes_probabilities_of():
    shares = scores(np.linspace(0, 0.7, 300))
    assert fitting_drop(np.log(shares) + 3.0) == fitting_drop(shares)
