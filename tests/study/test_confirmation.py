"""Confirmation: the winner is scored on what the search never saw, and the next plan where it does not hold there."""

from dataclasses import replace

import pytest

from autonuq.records import CONFIDENCE, SEAL
from autonuq.study.locate import load_study
from autonuq.study.run import StudyRun


class Confirming:
    """Scores the original with 0.9, compressed networks with one number after the other; it keeps what it was asked."""

    evaluate_batch_num = 3

    def __init__(self, *metrics, fails=False):
        self.asked, self.fails, self.metrics = [], fails, list(metrics)

    def eval_model(self, model_file, weights_file, batch_num):
        self.asked.append(model_file)
        if self.fails:
            raise OSError("no such data")
        if "tiny.prototxt" in model_file:
            return 0.9
        return self.metrics.pop(0) if len(self.metrics) > 1 else self.metrics[0]

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1


def confirmed_by(task, *metrics, **changes):
    return replace(task, confirm=Confirming(*metrics), **{"n_trials": 8, **changes})


def test_original_and_winner_once(task):
    asked = confirmed_by(task, 0.85)
    study = StudyRun(asked).run(exists=False)
    record, found = study.record(), study.record().confirmation
    assert found.trial == record.chosen().number == record.best.number
    assert (found.original_metric, found.metric, found.satisfied, found.holds, found.tried) == (
        0.9,
        0.85,
        True,
        True,
        1,
    )
    assert found.loss == pytest.approx(0.05)
    assert record.confirmed is True
    assert record.say_best() == "lost 0.05 on data that the search never saw (limit 0.1): confirmed"
    assert len(asked.confirm.asked) == 2
    StudyRun(asked).run(exists=True)
    assert len(asked.confirm.asked) == 2


def test_where_no_plan_holds_the_first_is_the_best_and_not_confirmed(task):
    asked = confirmed_by(task, 0.7, confidence=0.0)
    record = StudyRun(asked).run(exists=False).record()
    found = record.confirmation
    assert found.trial == record.chosen().number == record.best.number
    assert (found.satisfied, found.holds, record.confirmed) == (False, False, False)
    assert found.tried == len(asked.confirm.asked) - 1 > 1
    assert record.say_best().endswith(f"{found.tried} plans were tried: not confirmed")


def test_the_next_plan_down_is_tried(task):
    asked = confirmed_by(task, 0.7, 0.85, confidence=0.0)
    record = StudyRun(asked).run(exists=False).record()
    assert (record.confirmation.tried, record.confirmed) == (2, True)
    assert record.best.number == record.confirmation.trial != record.chosen().number
    assert record.best.ratio < record.chosen().ratio


def test_new_trials_are_confirmed_anew_and_the_original_is_not_scored_again(task):
    asked = confirmed_by(task, 0.85)
    StudyRun(asked).run(exists=False)
    record = StudyRun(replace(asked, n_trials=12)).run(exists=True).record()
    assert record.confirmation.finished == 12
    assert record.confirmation.trial == record.best.number
    assert len(asked.confirm.asked) == 3


def test_a_failure_is_told_and_tried_again(task):
    study = StudyRun(replace(task, confirm=Confirming(fails=True), n_trials=4)).run(exists=False)
    assert study.best is not None
    words = study.record().confirmation.say(study.record().unit)
    assert "could not be confirmed: eval_model raised OSError: no such data" in words
    asked = confirmed_by(task, 0.85, n_trials=4)
    StudyRun(asked).run(exists=True)
    assert load_study(asked.name, asked.storage).record().confirmation.metric == 0.85


def test_a_study_of_an_earlier_version_keeps_its_rule(task):
    study = StudyRun(replace(task, n_trials=4)).run(exists=False)
    assert study.record().confidence == 0.8
    study.optuna.set_user_attr(SEAL, {})
    study.optuna.set_user_attr(CONFIDENCE, 0.0)
    satisfied = [trial.ratio for trial in study.record().trials if trial.satisfied]
    assert study.best.ratio == max(satisfied)


def test_none_without_a_confirming_evaluator(task):
    assert StudyRun(replace(task, n_trials=3)).run(exists=False).record().confirmation is None


class Falling(Confirming):
    """A loss, where less is better."""

    def is_satisfied(self, original_metric, new_metric):
        return new_metric - original_metric < 0.1


def test_a_metric_where_less_is_better_loses_by_rising(task):
    evaluator = task.evaluator

    class Errors:
        evaluate_batch_num = 8

        def eval_model(self, *arguments):
            return 1 - evaluator.eval_model(*arguments)

        def is_satisfied(self, original_metric, new_metric):
            return new_metric - original_metric < 0.1

    asked = replace(task, evaluator=Errors(), confirm=Falling(0.95), n_trials=8)
    record = StudyRun(asked).run(exists=False).record()
    assert not record.metric_rises
    assert record.loss(record.best) >= 0
    assert record.confirmation.loss == pytest.approx(0.05)
    assert record.say_best() == "lost 0.05 on data that the search never saw (limit 0.1): confirmed"


def test_without_samples_the_scatter_of_the_trials_stands_for_the_error_and_is_called_so(task):
    record = StudyRun(replace(task, n_trials=8)).run(exists=False).record()
    assert record.best.loss_error is None
    assert "that chose it (limit 0.1) (± by the scatter of the trials, not of samples), kept with" in record.say_best()
    assert record.say_best().endswith(": not confirmed")
