"""The rate-distortion sampler: what it proposes, what it depends on, and that it finds good plans."""

import itertools
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from autonuq.errors import StudyError
from autonuq.records import LOSS_ERROR, MARGIN_ERROR, PLAN
from autonuq.search import Curve, RateDistortionSampler, loss_model
from autonuq.search.allocation import Relaxed, frontier, stack_layers
from autonuq.search.loss_model import Evidence, Model, Posterior, Prior, fit
from autonuq.search.sampler import make_sampler
from autonuq.search.trust import target_loss

BITS = np.arange(8.0, 0.0, -1.0)


def build_curves(layers=6, seed=0, *, scale=1.0, points=8):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(5, 9, layers))
    sensitivities = scale * np.exp(rng.standard_normal(layers)) / sizes.sum()
    bits = np.linspace(8, 1, points)
    return [
        Curve(f"layer{index}", size * bits, own * size * 4.0**-bits)
        for index, (size, own) in enumerate(zip(sizes, sensitivities, strict=True))
    ]


class Problem:
    """A drop that is a weighted sum of the curves' distortions; allowed is 1."""

    def __init__(self, curves, *, seed=0, sigma=0.5, allowed_bits=3.0, constraint="margin"):
        self.curves, self.constraint = curves, constraint
        truth = np.exp(sigma * np.random.default_rng([1, seed]).standard_normal(len(curves)))
        at = [int((len(c.rates_bytes) - 1) * (8 - allowed_bits) / 7) for c in curves]
        self.factors = truth / (self._sum(truth, at) or 1.0)

    def _sum(self, factors, plan):
        return float(sum(f * c.distortions[i] for f, c, i in zip(factors, self.curves, plan, strict=True)))

    def drop(self, plan):
        return self._sum(self.factors, [plan.get(curve.layer, 0) for curve in self.curves])

    def ratio(self, plan):
        return sum(4 * c.rates_bytes[0] for c in self.curves) / sum(
            c.rates_bytes[plan.get(c.layer, 0)] for c in self.curves
        )

    def optimum(self):
        layers = stack_layers([c.rates_bytes for c in self.curves], [c.distortions for c in self.curves])
        best = frontier(layers, self.factors, np.ones(1), bins=20000, tolerance=0)[0]
        return self.ratio({c.layer: int(i) for c, i in zip(self.curves, best, strict=True)})

    def __call__(self, trial):
        sampler = trial.study.sampler
        ratios = {name: trial.suggest_float(name, d.low, d.high, log=True) for name, d in sampler.distributions.items()}
        plan = sampler.plan(ratios)
        margin = float(np.clip(math.log(max(self.drop(plan), 1e-9)), -7, 7))
        if self.constraint == "margin":
            trial.set_constraint("satisfied", margin)
        elif self.constraint == "verdict":
            trial.set_constraint("satisfied", math.copysign(1.0, margin))
        elif self.constraint is not None:
            trial.set_constraint("satisfied", self.constraint)
        return self.ratio(plan)


def start(curves, seed=0, storage=None, **options):
    sampler = RateDistortionSampler(curves, seed=seed, **options)
    return optuna.create_study(direction="maximize", sampler=sampler, storage=storage, study_name="s")


def plans_of(study):
    return [tuple(study.sampler.plan(trial.params).values()) for trial in study.trials if trial.params]


def proposed(study):
    """Ask, and return the proposal without evaluating it."""
    trial = study.ask()
    parameters = {n: trial.suggest_float(n, d.low, d.high, log=True) for n, d in study.sampler.distributions.items()}
    return trial, tuple(study.sampler.plan(parameters).values())


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


# Allocation


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=4), min_size=1, max_size=4
    )
)
def test_frontier_equals_brute_force(raw):
    rates = [np.cumsum([drop for drop, _ in layer])[::-1].astype(float) for layer in raw]
    distortions = [np.cumsum([rise for _, rise in layer]).astype(float) for layer in raw]
    layers = stack_layers(rates, distortions)
    plans = np.array(list(itertools.product(*(range(len(own)) for own in rates))))
    costs, sizes = layers.distortions_of(plans).sum(axis=1), layers.rates_of(plans).sum(axis=1)
    budgets = np.arange(1, 61)
    found = frontier(layers, np.ones(len(rates)), budgets.astype(float), bins=60, tolerance=0)
    for budget, plan in zip(budgets, found, strict=True):
        if costs.min() > budget:
            assert layers.distortions_of(plan[None]).sum() == costs.min()
            continue
        assert layers.distortions_of(plan[None]).sum() <= budget
        assert layers.rates_of(plan[None]).sum() == sizes[costs <= budget].min()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-12, 12))
def test_relaxed_plans_minimize_the_lagrangian(seed, log_lambda):
    curves = build_curves(4, seed)
    layers = stack_layers([c.rates_bytes for c in curves], [c.distortions for c in curves])
    log_weights = np.random.default_rng(seed).standard_normal((1, 4))
    relaxed = Relaxed(layers)
    prices = relaxed.in_steps(log_lambda + log_weights)
    plan = relaxed.plans(prices)[0]
    for index, curve in enumerate(curves):
        cost = curve.rates_bytes + np.exp(relaxed.step * prices[0, index]) * curve.distortions
        assert cost[plan[index]] == pytest.approx(cost.min())


def test_many_layers_have_plans_within_the_budgets_that_miss_the_bound_by_little():
    curves = build_curves(300, points=32)
    layers = stack_layers([c.rates_bytes for c in curves], [c.distortions for c in curves])
    budgets = layers.distortions_of(np.full((1, 300), 16)).sum() * np.geomspace(0.6, 1.2, 7)
    plans = frontier(layers, np.ones(300), budgets)
    assert (layers.distortions_of(plans).sum(axis=1) <= budgets * (1 + 1e-9)).all()
    for plan, budget in zip(plans, budgets, strict=True):
        bounds = [
            np.minimum.reduceat(layers.rates + price * layers.distortions, layers.starts[:-1]).sum() - price * budget
            for price in np.geomspace(1e-3, 1e3, 400) * layers.rates.sum() / layers.distortions.sum()
        ]
        assert layers.rates_of(plan[None]).sum() <= max(bounds) * 1.002


def test_the_tolerance_bounds_what_is_lost():
    curves = build_curves(12, points=16)
    layers = stack_layers([c.rates_bytes for c in curves], [c.distortions for c in curves])
    budgets = layers.distortions_of(np.full((1, 12), 8)).sum() * np.geomspace(0.6, 1.2, 9)
    exact = layers.rates_of(frontier(layers, np.ones(12), budgets, bins=50_000, tolerance=0)).sum(axis=1)
    loose = layers.rates_of(frontier(layers, np.ones(12), budgets, bins=50_000, tolerance=0.02)).sum(axis=1)
    assert (loose <= exact * 1.0201).all()
    assert (loose > exact).any()


# The posterior


def test_slopes_are_derivatives():
    model = Model(3, 0.02, Prior())
    rng = np.random.default_rng(0)
    theta, distortions = 0.3 * rng.standard_normal(6), rng.random((5, 3))
    _, slopes = model.margins_and_slopes(theta, distortions)
    for index in range(6):
        step = np.zeros(6)
        step[index] = 1e-6
        difference = model.margins(theta + step, distortions) - model.margins(theta - step, distortions)
        assert slopes[:, index] == pytest.approx(difference / 2e-6, rel=1e-5, abs=1e-8)


def test_factors_are_recovered_from_many_measurements():
    rng = np.random.default_rng(0)
    truth = np.concatenate([0.5 * rng.standard_normal(4), [0.0, 1.0, 0.0]])
    model = Model(4, 0.02, Prior())
    distortions = np.exp(rng.standard_normal((200, 4)) - 2)
    margins = model.margins(truth, distortions)
    posterior = fit(model, Evidence(distortions, margins, np.zeros(200, dtype=np.int64), np.zeros(200)), np.zeros(7))
    differences = (posterior.mean - truth)[:4]
    assert differences - differences.mean() == pytest.approx(np.zeros(4), abs=0.05)


@pytest.mark.parametrize("sense", [-1, 1])
def test_an_inequality_moves_the_scale_its_way(sense):
    model = Model(2, 0.02, Prior())
    evidence = Evidence(np.full((3, 2), 0.5), np.full(3, sense), np.full(3, sense), np.zeros(3))
    assert sense * fit(model, evidence, np.zeros(5)).mean[-2] > 1


@pytest.mark.parametrize("count", [3, 40])
def test_the_covariance_is_the_inverse_of_prior_and_pulls_in_both_forms(count):
    rng = np.random.default_rng(count)
    deviations, pulls = np.exp(rng.standard_normal(12)), rng.standard_normal((count, 12))
    posterior = Posterior(np.zeros(12), deviations, pulls, 0.0)
    precision = np.diag(deviations**-2) + pulls.T @ pulls
    assert posterior.covariance @ precision == pytest.approx(np.eye(12), abs=1e-9)
    draws = posterior.draw(200_000, rng)
    spread = np.sqrt(np.diag(posterior.covariance))
    assert np.cov(draws.T) / np.outer(spread, spread) == pytest.approx(
        posterior.covariance / np.outer(spread, spread), abs=0.02
    )


@pytest.mark.parametrize("more", [0, 1, 5])
def test_the_covariance_after_more_observations_is_the_one_with_their_pulls(more):
    rng = np.random.default_rng(more)
    slopes, deviations = rng.standard_normal((more, 12)), np.exp(rng.standard_normal(more))
    pulls = rng.standard_normal((7, 12))
    before = Posterior(np.zeros(12), np.exp(rng.standard_normal(12)), pulls, 0.0)
    after = replace(before, pulls=np.vstack([pulls, slopes / deviations[:, None]]))
    assert before.covariance_after(slopes, deviations) == pytest.approx(after.covariance, abs=1e-9)


@pytest.mark.parametrize("count", [3, 40])
def test_fits_in_both_forms_are_where_the_gradient_is_zero(count, monkeypatch):
    rng = np.random.default_rng(count)
    model, distortions = Model(9, 0.02, Prior()), np.exp(rng.standard_normal((count, 9)) - 2)
    margins = model.margins(0.3 * rng.standard_normal(12), distortions)
    evidence = Evidence(distortions, margins, np.zeros(count, dtype=np.int64), np.zeros(count))
    found = []
    for form in (loss_model._is_wide, lambda scaled: True, lambda scaled: False):
        monkeypatch.setattr(loss_model, "_is_wide", form)
        posterior = fit(model, evidence, np.zeros(12))
        found.append(np.concatenate([posterior.mean, posterior.covariance.ravel(), [posterior.log_evidence]]))
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


# Proposals


def test_whole_space_from_the_first_trial_and_prudent():
    curves = build_curves()
    study = start(curves)
    trial, plan = proposed(study)
    assert set(trial.params) == {f"ratio/{curve.layer}" for curve in curves}
    assert study.get_trials()[0].system_attrs[PLAN] == list(plan)
    assert 0 < sum(plan) < 6 * 7  # neither the loosest nor the tightest


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_the_unit_of_distortion_does_not_matter(scale):
    plans = []
    for own in (1.0, scale):
        curves = build_curves(scale=own)
        study = start(curves)
        study.optimize(Problem(curves), n_trials=8)
        plans.append(plans_of(study))
    assert plans[0] == plans[1]


@pytest.mark.parametrize(("layers", "bound"), [(4, 0.02), (12, 0.02), (30, 0.02)])
def test_gap_on_noiseless_surrogates(layers, bound):
    curves = build_curves(layers, seed=layers)
    problem = Problem(curves, seed=layers)
    study = start(curves)
    study.optimize(problem, n_trials=20)
    assert 1 - study.best_value / problem.optimum() < bound


def test_verdicts_alone_are_enough_to_come_near():
    curves = build_curves(12)
    problem = Problem(curves, constraint="verdict")
    study = start(curves)
    study.optimize(problem, n_trials=20)
    assert 1 - study.best_value / problem.optimum() < 0.08


def test_other_constraints_count_by_their_signs():
    curves = build_curves(6)
    problem = Problem(curves, constraint=None)

    def objective(trial):
        value = problem(trial)
        trial.set_constraint("loss", 1000 * (problem.drop(trial.study.sampler.plan(trial.params)) - 1))
        trial.set_constraint("time", -1)
        return value

    study = start(curves)
    study.optimize(objective, n_trials=15)
    assert 1 - study.best_value / problem.optimum() < 0.08


def test_without_any_constraint_it_goes_to_the_tightest_plan():
    curves = build_curves()
    study = start(curves)
    study.optimize(Problem(curves, constraint=None), n_trials=15)
    assert tuple([7] * 6) in plans_of(study)


@pytest.mark.parametrize("constraint", [-7.0, 7.0, -1.0, 1.0, math.inf, -math.inf, 0.3, -0.3])
def test_all_trials_with_the_same_outcome(constraint):
    curves = build_curves()
    study = start(curves)
    study.optimize(Problem(curves, constraint=constraint), n_trials=25)
    found = plans_of(study)
    assert len(set(found)) == 25
    if constraint in (-7.0, 7.0):
        assert tuple([7 if constraint < 0 else 0] * 6) in found


@pytest.mark.parametrize("points", [2, 3, 64])
def test_one_layer(points):
    curves = [Curve("only", np.linspace(100, 10, points), np.linspace(0, 1, points) ** 2)]
    study = start(curves)
    study.optimize(lambda t: Problem(curves, allowed_bits=2.0).ratio(proposed_plan(t)), n_trials=points + 2)
    assert len(set(plans_of(study))) == points  # each once, then again


def proposed_plan(trial):
    sampler = trial.study.sampler
    parameters = {n: trial.suggest_float(n, d.low, d.high, log=True) for n, d in sampler.distributions.items()}
    return sampler.plan(parameters)


def test_layers_of_one_point_are_not_searched_but_count():
    curves = [*build_curves(3), Curve("fixed", np.array([500.0]), np.array([0.0]))]
    study = start(curves)
    study.optimize(Problem(curves), n_trials=3)
    assert "ratio/fixed" not in study.sampler.distributions
    alone = start(curves[3:])
    alone.optimize(lambda trial: 1.0, n_trials=2)
    assert not alone.sampler.has_gain_left(alone, 0.0)


def test_curves_without_any_distortion():
    curves = [Curve(name, np.array([9.0, 5.0, 2.0]), np.zeros(3)) for name in "abcdefgh"]
    study = start(curves)
    study.optimize(Problem(curves, constraint=-0.5), n_trials=5)
    assert tuple([2] * 8) in plans_of(study)


def test_remaining_gain_falls():
    curves = build_curves(12)
    study = start(curves)
    study.optimize(Problem(curves), n_trials=3)
    assert study.sampler.has_gain_left(study, 0.05)
    study.optimize(Problem(curves), n_trials=27)
    assert not study.sampler.has_gain_left(study, 0.05)


# What proposals depend on


def test_proposals_survive_pickling():
    curves = build_curves()
    study = start(curves, seed=3)
    study.optimize(Problem(curves), n_trials=5)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(Problem(curves), n_trials=5)
    other = start(curves, seed=3)
    other.optimize(Problem(curves), n_trials=10)
    assert plans_of(study) == plans_of(other)


def test_seeds_differ_and_none_is_random():
    curves = build_curves(12)
    runs = []
    for seed in (1, 2, None, -1):
        study = start(curves, seed=seed)
        study.optimize(Problem(curves), n_trials=10)
        runs.append(tuple(plans_of(study)))
    assert len(set(runs)) == 4


RESUMED = """
import sys
sys.path.insert(0, sys.argv[1])
import optuna
from test_rate_distortion import Problem, build_curves
from autonuq.search import RateDistortionSampler
optuna.logging.set_verbosity(optuna.logging.ERROR)
curves = build_curves()
sampler = RateDistortionSampler(curves, seed=5)
study = optuna.create_study(
    study_name="s", storage=sys.argv[2], direction="maximize", sampler=sampler, load_if_exists=True
)
study.optimize(Problem(curves), n_trials=4)
"""


@pytest.mark.slow
def test_fresh_processes_go_on_as_one_would(tmp_path):
    storage = f"sqlite:///{tmp_path / 's.db'}"
    for hash_seed in ("0", "1", "2"):
        command = [sys.executable, "-c", RESUMED, str(Path(__file__).parent), storage]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=tmp_path)
    curves = build_curves()
    whole = start(curves, seed=5)
    whole.optimize(Problem(curves), n_trials=12)
    resumed = optuna.load_study(study_name="s", storage=storage, sampler=whole.sampler)
    assert plans_of(resumed) == plans_of(whole)


def test_a_killed_trial_gets_its_proposal_back():
    curves = build_curves()
    study = start(curves)
    study.optimize(Problem(curves), n_trials=4)
    trial = study.ask()
    name, distribution = next(iter(study.sampler.distributions.items()))
    trial.suggest_float(name, distribution.low, distribution.high, log=True)
    stored = study.get_trials()[-1].system_attrs[PLAN]
    trial.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    again, plan = proposed(study)
    assert again.number == trial.number
    assert list(plan) == stored


def test_running_trials_are_not_proposed_again():
    curves = build_curves()
    study = start(curves)
    study.optimize(Problem(curves), n_trials=3)
    assert len({proposed(study)[1] for _ in range(12)}) == 12


def test_a_running_trial_without_a_plan_is_worked_out():
    curves = build_curves()
    alone, late = start(curves), start(curves)
    for study in (alone, late):
        study.optimize(Problem(curves), n_trials=3)
    first, second = proposed(alone)[1], proposed(alone)[1]
    blind = late.ask()  # another worker, before its first parameter
    assert proposed(late)[1] == second
    parameters = {n: blind.suggest_float(n, d.low, d.high, log=True) for n, d in late.sampler.distributions.items()}
    assert tuple(late.sampler.plan(parameters).values()) != second
    assert first != second


def test_failed_and_pruned_plans_are_not_proposed_again():
    curves = build_curves()
    study = start(curves)
    for state in (TrialState.FAIL, TrialState.PRUNED) * 5:
        trial, _ = proposed(study)
        study.tell(trial, state=state)
    assert len(set(plans_of(study))) == 10


def test_foreign_trials_are_passed_over():
    curves = build_curves()
    plain, mixed = start(curves), start(curves)
    other = optuna.distributions.FloatDistribution(0, 1)
    name, distribution = next(iter(mixed.sampler.distributions.items()))
    for state, value in ((TrialState.COMPLETE, 3.0), (TrialState.FAIL, None)):
        mixed.add_trial(create_trial(state=state, value=value, params={"x": 0.5}, distributions={"x": other}))
        partial = {name: distribution.low}
        mixed.add_trial(create_trial(state=state, value=value, params=partial, distributions={name: distribution}))
    for study, trials in ((plain, 4), (mixed, 4)):
        study.optimize(Problem(curves), n_trials=trials)
    assert len(set(plans_of_ours(mixed))) == 4
    assert not any(study.sampler.has_gain_left(study, 1.0) for study in (plain, mixed))


def test_an_estimated_margin_tells_less_than_a_measured_one():
    curves, predicted = build_curves(), {}
    for error in (None, 0.1, 1.0):
        study = start(curves)
        trial, plan = proposed(study)
        trial.set_constraint("satisfied", 1.5)
        if error is not None:
            trial.set_user_attr(MARGIN_ERROR, error)
        study.tell(trial, 8.0)
        predicted[error] = study.sampler.predict(study, dict(zip((c.layer for c in curves), plan, strict=True)))
    margins, deviations = zip(*predicted.values(), strict=True)
    assert margins[0] > margins[1] > margins[2]
    assert deviations[0] < deviations[1] < deviations[2]


def plans_of_ours(study):
    names = study.sampler.distributions.keys()
    return [tuple(study.sampler.plan(t.params).values()) for t in study.trials if names <= t.params.keys()]


def test_enqueued_plans_are_evaluated_and_learnt_from():
    curves = build_curves()
    study = start(curves)
    plan = {curve.layer: 3 for curve in curves}
    study.enqueue_trial(study.sampler.parameters(plan))
    study.optimize(Problem(curves), n_trials=4)
    assert plans_of(study)[0] == tuple([3] * 6)
    assert len(set(plans_of(study))) == 4


def test_a_parameter_that_is_not_ours_is_drawn_at_random():
    curves = build_curves(2)
    study = start(curves)
    values = []
    for _ in range(3):
        trial, _ = proposed(study)
        values.append(trial.suggest_float("other", 0, 1))
    assert len(set(values)) == 3


def test_original_bytes_set_the_ratio():
    curves = build_curves(2)
    originals = {curve.layer: 4 * float(curve.rates_bytes[0]) for curve in curves}
    sampler = RateDistortionSampler(curves, seed=0, original_bytes=originals)
    assert {round(d.low, 9) for d in sampler.distributions.values()} == {4.0}
    assert {round(d.high, 9) for d in sampler.distributions.values()} == {32.0}


def test_plan_and_parameters_are_inverse():
    sampler = RateDistortionSampler(build_curves(5, points=64), seed=0)
    for seed in range(10):
        points = np.random.default_rng(seed).integers(0, 64, 5).tolist()
        plan = {f"layer{index}": point for index, point in enumerate(points)}
        assert sampler.plan(sampler.parameters(plan)) == plan


def test_bad_arguments():
    curves = build_curves(2)
    with pytest.raises(ValueError, match="Got several of 'layer0'"):
        RateDistortionSampler([*curves, curves[0]])
    with pytest.raises(ValueError, match="must be positive"):
        RateDistortionSampler(curves, original_bytes={"layer0": 0})
    with pytest.raises(ValueError, match="must be positive"):
        RateDistortionSampler([Curve("a", np.array([3.0, 0.0]), np.array([0.0, 1.0]))])


def test_by_name():
    curves = {curve.layer: curve for curve in build_curves(2)}
    sampler = make_sampler("rate-distortion", 0, curves, dict.fromkeys(curves, 10_000))
    assert isinstance(sampler, RateDistortionSampler)
    assert make_sampler("tpe", 0) is not None
    with pytest.raises(StudyError, match="needs the layers' curves"):
        make_sampler("rate-distortion", 0)
    with pytest.raises(StudyError, match="must be one of"):
        make_sampler("nothing", 0)


def test_with_a_confidence_plans_are_proposed_further_inside_the_limit():
    drops = {}
    for confidence in (0.0, 0.9):
        curves = build_curves()
        problem, sampler = Problem(curves), RateDistortionSampler(curves, seed=3, confidence=confidence)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        found = []
        for _ in range(16):
            trial = study.ask()
            own = {n: trial.suggest_float(n, d.low, d.high, log=True) for n, d in sampler.distributions.items()}
            found.append(problem.drop(sampler.plan(own)))
            trial.set_constraint("satisfied", math.log(found[-1]))
            trial.set_user_attr(LOSS_ERROR, 0.4)
            study.tell(trial, problem.ratio(sampler.plan(own)))
        drops[confidence] = np.median(found[8:])
    assert drops[0.9] < target_loss(0.4, 0.9) + 0.15 < 0.75 < drops[0.0]


def test_what_is_believed_of_trials_is_told_by_number():
    curves = build_curves()
    study = start(curves)
    for margin in (-0.5, 1.0, 0.4):  # measured, the verdict alone, measured
        trial, _ = proposed(study)
        trial.set_constraint("satisfied", margin)
        study.tell(trial, 8.0)
    found = study.sampler.believe(study)
    assert sorted(found) == [0, 2]
    assert found[0].probability > 0.5 > found[2].probability
