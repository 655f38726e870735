"""Scoring one plan: write its network, run the evaluator, ask it for the verdict and how far that was from turning."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_fake_quant
from autonuq.errors import EvaluatorError
from autonuq.evaluate.evaluator import is_satisfied, score, standard_error
from autonuq.evaluate.samples import paired_error
from autonuq.evaluate.verdict import margin as find_margin
from autonuq.graph.files import ModelPair
from autonuq.records import MARGIN_LIMIT, TrialRecord, is_verdict_alone, verdict_alone
from autonuq.study.task import Task

FAILURES_IN_A_ROW = 3
"""So many end a study: the evaluator is to blame, not the plans."""


def failed_in_a_row(last: str) -> EvaluatorError:
    """Make the error that ends a study after several failures in a row."""
    return EvaluatorError(
        f"{FAILURES_IN_A_ROW} trials in a row failed, the last with: {last}; mend the evaluator, then start a study of "
        "another name"
    )


def score_plan(task: Task, candidate: Candidate, original_metric: float, record: TrialRecord) -> TrialRecord:
    """Return a trial's record with what its plan scored.

    Parameters
    ----------
    task : Task
    candidate : Candidate
        Of the trial's plan.
    original_metric : float
        A `Score` where samples are known.
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
        shutil.rmtree(folder, ignore_errors=True)  # who took this worker for dead may have deleted it
    judgement = judge_metric(task.evaluator, original_metric, metric)
    return replace(
        record,
        metric=float(metric),
        satisfied=judgement.satisfied,
        margin=judgement.margin,
        standard_error=standard_error(task.evaluator, metric),
        loss_error=judgement.loss_error,
        relative_error=judgement.relative_error,
    )


@dataclass(frozen=True)
class MetricJudgement:
    """What an evaluator says of a metric beside the original's.

    Attributes
    ----------
    satisfied : bool
    margin : float
        log(drop / allowed drop).
    loss_error : float or None
        The paired error of the drop, in the metric's unit, where samples are known.
    allowed : float or None
        The drop that is allowed, in the metric's unit, where the margin tells.
    """

    satisfied: bool
    margin: float
    loss_error: float | None
    allowed: float | None

    @property
    def relative_error(self) -> float | None:
        """The paired error in allowed drops."""
        return self.loss_error / self.allowed if self.loss_error is not None and self.allowed else None


def judge_metric(evaluator: Any, original: float, metric: float) -> MetricJudgement:
    """Ask for the verdict and for what else can be known of it.

    Raises
    ------
    EvaluatorError
        `is_satisfied` raised or returned no bool, or the samples of the two scores are not as many.
    """
    satisfied = is_satisfied(evaluator, original, metric)
    margin = _margin(evaluator, original, metric, satisfied)
    telling = abs(margin) < MARGIN_LIMIT and not is_verdict_alone(margin)
    allowed = abs(original - metric) / math.exp(margin) if telling else None
    return MetricJudgement(satisfied, margin, paired_error(original, metric), allowed)


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
        found = find_margin(partial(is_satisfied, evaluator), original, metric)
    except EvaluatorError:
        return verdict_alone(satisfied)
    return found if (found <= 0) == satisfied else verdict_alone(satisfied)
