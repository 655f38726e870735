"""What is believed of a loss: what held-back data tell of the luck of all plans, and where a search aims."""

import pytest

from autonuq.search.trust import LEAST_TARGET, BelievedLoss, HeldLoss, target_loss

BEFORE = BelievedLoss(0.8, 0.05, 0.25)


def test_the_luck_of_the_samples_stays_however_much_is_learnt():
    assert BelievedLoss(0.8, 0.0, 0.25).probability == pytest.approx(0.788, abs=1e-3)  # 0.8 deviations
    assert BelievedLoss(0.8, 0.0, 0.0).probability == pytest.approx(1)
    assert BelievedLoss(0.8, 0.3, 0.25).probability < BEFORE.probability


def test_half_of_the_plans_at_the_limit_keep_it():
    assert BelievedLoss(1.0, 0.05, 0.25).probability == pytest.approx(0.5)


def test_held_back_data_tell_of_the_luck_of_all_plans():
    unlucky, lucky = (BEFORE.after([HeldLoss(BEFORE, loss, 0.4)]) for loss in (1.6, 0.4))
    assert lucky.mean < BEFORE.mean < unlucky.mean
    assert unlucky.probability < BEFORE.probability < lucky.probability
    assert unlucky.luck == lucky.luck < BEFORE.luck
    assert BEFORE.after([]) == BEFORE
    other = BelievedLoss(0.5, 0.05, 0.25).after([HeldLoss(BEFORE, 1.6, 0.4)])
    assert other.mean - 0.5 == pytest.approx(unlucky.mean - 0.8)  # a plan that was not scored there learns as much


def test_data_that_tell_nothing_change_nothing():
    after = BEFORE.after([HeldLoss(BEFORE, 5.0, 1e6)])
    assert (after.mean, after.luck) == pytest.approx((0.8, 0.25))


def test_the_target_lies_inside_the_limit_by_the_error_and_the_confidence():
    assert target_loss(0.3, 0.0) == target_loss(0.3, 0.5) == 1
    assert target_loss(0.3, 0.9) < target_loss(0.3, 0.8) < target_loss(0.1, 0.8) < 1
    assert target_loss(9.0, 0.9) == LEAST_TARGET
