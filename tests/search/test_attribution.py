"""Which layers cause a plan's loss, against losses whose true parts are known."""

import math

import numpy as np
import optuna
import pytest

from autonuq.records import INT8, ORIGIN
from autonuq.search import Curve, RateDistortionSampler
from autonuq.search.attribution import attribute_loss
from autonuq.search.loss_model import Belief, Model, Posterior, Prior

BITS = np.arange(8.0, 0.0, -1.0)
SIZES = {"conv": 300.0, "fc": 5000.0, "out": 900.0}
TRUE_FACTORS = {"conv": 3.0, "fc": 0.4, "out": 1.0}


def learnt_from(trials, *, verdict_only=False):
    """Run a study of which each layer's part of the drop is known; return it, and every trial's true parts."""
    curves = [Curve(name, size * BITS, 0.01 * size * 4.0**-BITS) for name, size in SIZES.items()]
    sampler = RateDistortionSampler(curves, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    parts = {}

    def objective(trial):
        own = {name: trial.suggest_float(name, d.low, d.high, log=True) for name, d in sampler.distributions.items()}
        plan = sampler.plan(own)
        parts[trial.number] = {c.layer: TRUE_FACTORS[c.layer] * c.distortions[plan[c.layer]] for c in curves}
        margin = float(np.clip(math.log(sum(parts[trial.number].values())), -7, 7))
        trial.set_constraint("satisfied", math.copysign(1.0, margin) if verdict_only else margin)
        return 1.0 / sum(c.rates_bytes[plan[c.layer]] for c in curves)

    study.optimize(objective, n_trials=trials)
    return study, parts


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_parts_are_the_true_ones_once_trials_have_told_the_factors():
    study, parts = learnt_from(24)
    number = max((trial for trial in study.trials if trial.constraints["satisfied"] < 0), key=lambda t: t.value).number
    found = study.sampler.learn(study).attribution(number)
    assert found.layers == ("conv", "fc", "out")
    assert found.shares.sum() == pytest.approx(1)
    true = np.array([parts[number][name] for name in found.layers]) / sum(parts[number].values())
    assert found.shares[:3] == pytest.approx(true, abs=0.06)
    assert list(np.argsort(found.shares[:3])) == list(np.argsort(true))


def test_what_is_not_known_shrinks_with_the_trials():
    few, many = (study.sampler.learn(study) for study, _ in (learnt_from(3), learnt_from(24)))
    uncertain = [np.median([one.attribution(number).deviations[:3] for number in (1, 2)]) for one in (few, many)]
    assert uncertain[1] < 0.7 * uncertain[0]


def test_verdicts_alone_tell_parts_too():
    study, _ = learnt_from(12, verdict_only=True)
    learnt = study.sampler.learn(study)
    assert learnt.losses == {}
    assert learnt.attribution(5).shares.sum() == pytest.approx(1)


def test_deviations_are_those_of_draws_from_the_posterior():
    rng = np.random.default_rng(0)
    pulls = 4 * rng.standard_normal((5, 6))
    belief = Belief(Model(3, 0.02, Prior()), Posterior(0.1 * rng.standard_normal(6), 0.3 * np.ones(6), pulls, 0.0))
    distortions = np.array([0.5, 0.2, 0.05])
    found = attribute_loss(belief, distortions, ("a", "b", "c"))
    thetas = belief.posterior.mean + belief.posterior.draw(40_000, rng)
    drawn = np.append(distortions, 0.02) * np.exp(thetas[:, :4])
    spread = np.log(drawn / drawn.sum(axis=1, keepdims=True)).std(axis=0)
    assert found.deviations == pytest.approx(spread, rel=0.1)


def test_a_layer_without_distortion_has_no_part():
    belief = Belief(Model(2, 0.02, Prior()), Posterior(np.zeros(5), np.ones(5), np.empty((0, 5)), 0.0))
    found = attribute_loss(belief, np.array([0.0, 0.08]), ("a", "b"))
    assert found.shares == pytest.approx([0.0, 0.8, 0.2])


def test_what_was_not_learnt_from_has_no_parts():
    study, _ = learnt_from(3)
    trial = study.ask()
    trial.set_user_attr(ORIGIN, INT8)
    for name, distribution in study.sampler.distributions.items():
        trial.suggest_float(name, distribution.low, distribution.high, log=True)
    trial.set_constraint("satisfied", -0.5)
    study.tell(trial, 1.0)
    learnt = study.sampler.learn(study)
    assert learnt.attribution(trial.number) is None
    assert learnt.attribution(0) is not None
    nothing = optuna.create_study(sampler=study.sampler)
    assert study.sampler.learn(nothing).attribution(0) is None
