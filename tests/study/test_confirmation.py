"""Confirmation: the winner is scored on what the search never saw, once, and again when another plan wins."""

from dataclasses import replace

import pytest

from autonuq.study.locate import load_study
from autonuq.study.run import StudyRun


class Confirming:
    """Scores the original with 0.9 and anything else with 0.7; it keeps what it was asked."""

    evaluate_batch_num = 3

    def __init__(self, fails=False):
        self.asked, self.fails = [], fails

    def eval_model(self, model_file, weights_file, batch_num):
        self.asked.append(model_file)
        if self.fails:
            raise OSError("no such data")
        return 0.9 if len(self.asked) == 1 else 0.7

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1

    def standard_error(self, metric):
        return metric / 10


@pytest.fixture
def confirmed(task):
    return replace(task, confirm=Confirming(), n_trials=6)


def test_original_and_winner_once(confirmed):
    study = StudyRun(confirmed).run(exists=False)
    found = study.record().confirmation
    assert found.trial == study.best.trial
    assert (found.original_metric, found.metric, found.satisfied) == (0.9, 0.7, False)
    assert (found.original_standard_error, found.standard_error) == pytest.approx((0.09, 0.07))
    assert "0.9 ± 0.09 -> 0.7 ± 0.07, not satisfied" in found.summary
    assert len(confirmed.confirm.asked) == 2
    StudyRun(confirmed).run(exists=True)
    assert len(confirmed.confirm.asked) == 2


def test_another_winner_is_scored_and_the_original_is_not(confirmed):
    first = StudyRun(confirmed).run(exists=False).record().confirmation
    study = StudyRun(replace(confirmed, n_trials=16)).run(exists=True)
    assert study.best.trial != first.trial
    assert study.record().confirmation.trial == study.best.trial
    assert len(confirmed.confirm.asked) == 3


def test_a_failure_is_told_and_tried_again(confirmed):
    study = StudyRun(replace(confirmed, confirm=Confirming(fails=True))).run(exists=False)
    assert study.best is not None
    assert "could not be confirmed: eval_model raised OSError: no such data" in study.record().confirmation.summary
    StudyRun(confirmed).run(exists=True)
    assert load_study(confirmed.name, confirmed.storage).record().confirmation.metric == 0.7


def test_none_without_a_confirming_evaluator(task):
    assert StudyRun(replace(task, n_trials=3)).run(exists=False).record().confirmation is None
