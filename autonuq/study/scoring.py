"""Scoring one plan: write its network, run the evaluator, ask it for the verdict and how far that was from turning."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_fake_quant
from autonuq.errors import EvaluatorError
from autonuq.evaluate.evaluator import is_satisfied, score, standard_error
from autonuq.evaluate.verdict import margin
from autonuq.graph.files import ModelPair
from autonuq.records import TrialRecord, verdict_alone
from autonuq.study.task import Task


def score_plan(task: Task, candidate: Candidate, original_metric: float, record: TrialRecord) -> TrialRecord:
    """Return a trial's record with what its plan scored.

    Parameters
    ----------
    task : Task
    candidate : Candidate
        Of the trial's plan.
    original_metric : float
    record : TrialRecord
        With the trial's number.

    Raises
    ------
    EvaluatorError
        See `evaluator`.
    """
    folder = task.trial_folder(record.number)
    folder.mkdir(exist_ok=True)
    try:
        metric = score_candidate(task, task.evaluator, candidate, folder)
    finally:
        shutil.rmtree(folder)
    satisfied = is_satisfied(task.evaluator, original_metric, metric)
    return replace(
        record,
        metric=metric,
        satisfied=satisfied,
        margin=_margin(task.evaluator, original_metric, metric, satisfied),
        standard_error=standard_error(task.evaluator, metric),
    )


def score_candidate(task: Task, evaluator: Any, candidate: Candidate, folder: Path) -> float:
    """Return the metric of a candidate's network, which is written to a folder.

    Raises
    ------
    EvaluatorError
        See `evaluator`.
    """
    pair = ModelPair(folder / "model.prototxt", folder / "weights.caffemodel")
    write_fake_quant(candidate, pair, python_layers=task.python_layers)
    return score(evaluator, pair)


def _margin(evaluator: Any, original: float, metric: float, satisfied: bool) -> float:
    """Return the margin that goes with a verdict; the verdict alone where the predicate says something else now."""
    try:
        found = margin(partial(is_satisfied, evaluator), original, metric)
    except EvaluatorError:
        return verdict_alone(satisfied)
    return found if (found <= 0) == satisfied else verdict_alone(satisfied)
