"""Luck shows: the winner is scored on what the search never saw.

Forty looks at one test set find a plan that happens to do well there. A confirming evaluator, on other data, scores two
networks only: the original once, and whichever trial is the best when a run ends.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna

from autonuq.compress.candidate import Candidate
from autonuq.errors import AutonuqError
from autonuq.evaluate.evaluator import evaluator_fingerprint, evaluator_name, is_satisfied, score, standard_error
from autonuq.records import CONFIRMATION, Confirmation
from autonuq.study.scoring import score_candidate
from autonuq.study.stored import Study
from autonuq.study.task import OnProgress, Progress, Task


def confirm(task: Task, study: optuna.Study, candidate: Candidate, on_progress: OnProgress) -> None:
    """Score the best trial by the task's confirming evaluator and store the result, unless it is there already.

    A failure of that evaluator is stored and told, and tried again when the study is resumed; it loses no trial.
    """
    best = Study(study).record().best
    if task.confirm is None or best is None:
        return
    fingerprint = evaluator_fingerprint(task.confirm)
    stored: dict[str, Any] = study.user_attrs.get(CONFIRMATION, {})
    known = stored["found"] if stored.get("evaluator") == fingerprint else {}
    if known.get("trial") == best.number and not known["error"]:
        return
    on_progress(Progress("confirmation", f"scoring trial {best.number} and the original", 0, 1))
    found = Confirmation(f"{evaluator_name(task.confirm)}, {task.confirm.evaluate_batch_num} batches", best.number)
    try:
        found = _scored(task, found, known.get("original_metric"), candidate.with_plan(best.points))
    except AutonuqError as error:
        found = replace(found, error=str(error))
    study.set_user_attr(CONFIRMATION, {"evaluator": fingerprint, "found": asdict(found)})
    on_progress(Progress("confirmation", found.summary, 1, 1))


def _scored(task: Task, found: Confirmation, original: float | None, winner: Candidate) -> Confirmation:
    evaluator = task.confirm
    if original is None:
        original = score(evaluator, task.source)
    with tempfile.TemporaryDirectory(dir=task.out) as folder:
        metric = score_candidate(task, evaluator, winner, Path(folder))
    return replace(
        found,
        original_metric=original,
        metric=metric,
        satisfied=is_satisfied(evaluator, original, metric),
        original_standard_error=standard_error(evaluator, original),
        standard_error=standard_error(evaluator, metric),
    )
