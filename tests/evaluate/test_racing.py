"""Racing: a part of the batches stops hopeless trials, never decides; it is off where results do not nest."""

import math
from dataclasses import replace

import numpy as np
import pytest

from autonuq.evaluate.racing import Race, check_nesting, nesting_fault, student_quantile
from autonuq.records import TrialRecord
from autonuq.study.run import run_study

BATCHES = 40
MANY = 200


def nested(rng, spread=0.03):
    values = 0.9 + spread * rng.standard_normal(MANY)
    return lambda count: float(values[:count].mean())


def test_means_over_the_same_batches_nest():
    refused = 0
    for seed in range(200):
        score = nested(np.random.default_rng(seed))
        refused += bool(check_nesting(score, MANY, score(MANY))[1])
    assert refused <= 6


def calibration_elsewhere(rng):
    score = nested(rng)
    return lambda count: score(count) if count == MANY else 0.93


def calibration_counts_nothing(rng):
    score = nested(rng)
    return lambda count: score(count) if count == MANY else 0.0


def drawn_anew(rng):
    values = 0.9 + 0.03 * rng.standard_normal(MANY)
    return lambda count: float(rng.choice(values, count).mean())


def a_sum(rng):
    score = nested(rng)
    return lambda count: count * score(count)


@pytest.mark.parametrize("make", [calibration_elsewhere, calibration_counts_nothing, drawn_anew, a_sum])
def test_other_results_are_refused_with_the_batches_that_show_it(make):
    score = make(np.random.default_rng(1))
    _, fault = check_nesting(score, MANY, score(MANY))
    assert "batch" in fault


def test_few_batches_are_not_raced():
    assert "fewer than 10" in check_nesting(lambda count: 1.0, 8, 1.0)[1]


def test_equal_metrics_nest():
    assert nesting_fault([1, 2, 3, 4, 39, 40], [1.0] * 6) == ""


@pytest.mark.parametrize(("freedom", "risk", "exact"), [(5, 0.01, 3.36493), (10, 0.01, 2.76377), (30, 5e-4, 3.64596)])
def test_student_quantile(freedom, risk, exact):
    assert student_quantile(freedom, risk) == pytest.approx(exact, rel=1e-3)


def raced(rng, drop, *, images=1000, part=0.1):
    """A trial that was scored on both, with a binomial number of images lost beyond a fiftieth that merely change."""
    changed = 0.01 + drop
    on_part, on_rest = (
        rng.binomial(n, (changed + drop) / 2) - rng.binomial(n, (changed - drop) / 2)
        for n in (int(images * part), images - int(images * part))
    )
    margins = [
        math.log(max(count, 0.01) / n / 0.01) for count, n in ((on_part, images * part), (on_part + on_rest, images))
    ]
    return TrialRecord(0, "complete", part_margin=float(np.clip(margins[0], -6, 6)), margin=margins[1])


def test_at_most_one_in_a_hundred_acceptable_plans_is_stopped():
    rng = np.random.default_rng(0)
    race = Race(4, BATCHES, 0.9)
    stopped = 0
    for _ in range(300):
        known = [raced(rng, drop, images=20_000) for drop in rng.uniform(0.003, 0.04, 12)]
        acceptable = [trial for trial in (raced(rng, 0.0095, images=20_000) for _ in range(10)) if trial.margin < 0]
        stopped += sum(race.stop(known, trial.part_margin) is not None for trial in acceptable) / len(acceptable)
    assert stopped / 300 < 0.015


def test_clear_failures_are_stopped_and_estimated():
    rng = np.random.default_rng(0)
    known = [raced(rng, drop, images=20_000) for drop in rng.uniform(0.003, 0.04, 12)]
    hopeless = raced(rng, 0.1, images=20_000)
    found = Race(4, BATCHES, 0.9).stop(known, hopeless.part_margin)
    assert found is not None
    assert found.margin > 0
    assert abs(found.margin - hopeless.margin) < 4 * found.deviation


def test_nothing_is_stopped_before_it_is_calibrated_or_by_a_verdict_alone():
    rng = np.random.default_rng(0)
    known = [raced(rng, 0.01, images=20_000) for _ in range(8)]
    race = Race(4, BATCHES, 0.9)
    assert race.stop(known[:5], 5.0) is None
    assert race.pays(known[:5], None)
    assert race.stop(known, 1.0) is None
    assert race.stop(known, 5.0) is not None
    assert race.pays(known, (3.0, 0.5))
    assert not race.pays(known, (0.0, 0.1))


class Measured:
    """A metric per batch that falls with the network's own error; it counts what it scored."""

    evaluate_batch_num = BATCHES

    def __init__(self, inner):
        self.inner, self.counts = inner, []
        self.inner.images = np.random.default_rng(6).standard_normal((BATCHES, 4, 2, 8, 8), np.float32)

    def eval_model(self, model_file, weights_file, batch_num):
        self.counts.append(batch_num)
        return self.outputs(model_file, weights_file, batch_num)

    def outputs(self, model_file, weights_file, batch_num):
        import autonuq as nuq

        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        found = [net.forward(data=images)["prob"].copy() for images in self.inner.images[:batch_num]]
        if not hasattr(self, "reference"):
            self.reference = found
        return float(np.mean([np.abs(a - b).sum() for a, b in zip(found, self.reference, strict=False)]))

    def is_satisfied(self, original_metric, new_metric):
        return new_metric - original_metric < 0.2


@pytest.fixture
def raced_study(task):
    evaluator = Measured(task.evaluator)
    messages = []
    wanted = replace(task, evaluator=evaluator, sampler="tpe", racing=True, n_trials=24)
    study = run_study(wanted, exists=False, on_progress=lambda step: messages.append((step.stage, step.message)))
    return wanted, study, messages


def test_a_study_with_a_sampler_that_proposes_hopeless_plans(raced_study):
    wanted, study, messages = raced_study
    assert ("racing", f"on: 4 of {BATCHES} batches first, where stopping is likely") in messages
    trials = study.record().trials
    stopped = [trial for trial in trials if trial.is_partial]
    assert stopped
    for trial in stopped:
        assert trial.batches in (0, 4)
        assert trial.satisfied is False
        assert trial.margin > 0
        assert study.optuna.trials[trial.number].constraints["satisfied"] == trial.margin
    assert all(trial.batches in (0, BATCHES, BATCHES + 4) for trial in trials if not trial.is_partial)
    assert not study.record().best.is_partial


def test_racing_finds_what_a_study_without_it_finds(raced_study):
    wanted, study, _ = raced_study
    whole = replace(wanted, out=wanted.out / "whole", storage=f"sqlite:///{wanted.out}/whole.db", racing=False)
    without = run_study(whole, exists=False)
    assert without.best == study.best
    assert sum(trial.batches for trial in study.record().trials) < sum(t.batches for t in without.record().trials)


def test_the_switch(task):
    evaluator = Measured(task.evaluator)
    run_study(replace(task, evaluator=evaluator, sampler="random", n_trials=8), exists=False)
    assert set(evaluator.counts) == {BATCHES, 1}  # 1: the calibration
