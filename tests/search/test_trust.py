"""What is believed of a loss: luck is shrunk, what all plans share is not, and held-back data tell of it."""

import math

import numpy as np
import pytest

from autonuq.search.trust import LEAST_TARGET, SHARED, BelievedLoss, HeldLoss, believe, target_loss


def one(measured=0.8, error=0.3, modelled=0.8, deviation=0.05, noise=0.1):
    arrays = (np.array([value]) for value in (measured, error, modelled, deviation))
    return next(believe(*arrays, noise).each())


def test_a_lucky_measurement_is_shrunk_to_the_model():
    lucky = one(measured=0.5, modelled=0.9)
    assert 0.8 < lucky.mean < 0.9
    assert lucky.probability < one(measured=0.5, modelled=0.5).probability


def test_where_evaluations_scatter_more_than_luck_explains_the_measurement_counts():
    assert one(measured=0.5, modelled=0.9, noise=1.0).mean < 0.55


def test_what_all_plans_share_stays_however_much_is_learnt():
    known = one(deviation=1e-6, noise=1e-6)
    assert known.shared == pytest.approx(math.sqrt(SHARED) * 0.3)
    assert known.probability == pytest.approx(0.805, abs=0.01)  # 0.2 within 0.232
    assert one(error=1e-9, deviation=1e-6).probability == pytest.approx(1)


def test_half_of_the_plans_at_the_limit_keep_it():
    assert one(measured=1.0, modelled=1.0).probability == pytest.approx(0.5)


def test_held_back_data_tell_of_the_luck_of_all_plans():
    before = BelievedLoss(0.8, 0.05, 0.25)
    unlucky, lucky = (before.after([HeldLoss(before, loss, 0.4)]) for loss in (1.6, 0.4))
    assert lucky.mean < before.mean < unlucky.mean
    assert unlucky.probability < before.probability < lucky.probability
    assert unlucky.shared == lucky.shared < before.shared
    assert before.after([]) == before
    other = BelievedLoss(0.5, 0.05, 0.25).after([HeldLoss(before, 1.6, 0.4)])
    assert other.mean - 0.5 == pytest.approx(unlucky.mean - 0.8)  # a plan that was not scored there learns as much


def test_data_that_tell_nothing_change_nothing():
    before = BelievedLoss(0.8, 0.05, 0.25)
    after = before.after([HeldLoss(before, 5.0, 1e6)])
    assert (after.mean, after.shared) == pytest.approx((0.8, 0.25))


def test_the_target_lies_inside_the_limit_by_the_error_and_the_confidence():
    assert target_loss(0.3, 0.0) == target_loss(0.3, 0.5) == 1
    assert target_loss(0.3, 0.9) < target_loss(0.3, 0.8) < target_loss(0.1, 0.8) < 1
    assert target_loss(9.0, 0.9) == LEAST_TARGET


def test_stated_probabilities_are_true_in_the_model():
    """Plans with shared and own luck as derived: of those said to keep the limit with 0.7 to 0.9, as many do."""
    rng = np.random.default_rng(5)
    kept, said = [], []
    for _ in range(400):
        truth = rng.uniform(0.3, 1.4, 30)
        on_these = truth + 0.3 * math.sqrt(SHARED) * rng.standard_normal()
        noise = 0.3 * math.sqrt(1 - SHARED)
        measured, modelled = (on_these + spread * rng.standard_normal(30) for spread in (noise, 0.05))
        losses = believe(measured, np.full(30, 0.3), modelled, np.full(30, 0.05), noise)
        found = np.array([loss.probability for loss in losses.each()])
        chosen = (found > 0.7) & (found < 0.9)
        kept += (truth[chosen] < 1).tolist()
        said += found[chosen].tolist()
    assert np.mean(kept) == pytest.approx(np.mean(said), abs=0.05)
