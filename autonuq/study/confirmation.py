"""The winner is scored on what the search never saw, and the next one where it does not hold there.

Forty looks at one test set find a plan that happens to do well there, and how lucky the original network was on it no
look can tell. Data held back from the search tell both: a plan holds if it satisfies there, too, and keeps the limit
with the study's confidence after both (`search.trust`). What is held back is looked at as seldom as possible.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna

from autonuq.compress.candidate import Candidate
from autonuq.errors import AutonuqError
from autonuq.evaluate.evaluator import evaluator_fingerprint, evaluator_name, score, standard_error
from autonuq.evaluate.samples import Score, samples_as_data, samples_from_data
from autonuq.records import CONFIRMATION, CONFIRMING_SAMPLES, Confirmation, StudyRecord, TrialRecord
from autonuq.search.trust import BelievedLoss, HeldLoss
from autonuq.study.scoring import MetricJudgement, judge_metric, score_candidate
from autonuq.study.stored import Study, load_long, store_long
from autonuq.study.task import OnProgress, Progress, Task

MOST_TRIED = 6
"""Plans that are scored on what was held back before the study ends unconfirmed."""


def confirm(task: Task, study: optuna.Study, candidate: Candidate, on_progress: OnProgress) -> None:
    """Find the best plan that holds by the task's confirming evaluator, and store what came of it.

    A failure of that evaluator is stored and told, and tried again when the study is resumed; it loses no trial.
    """
    record = Study(study).record()
    if task.confirm is None or record.chosen() is None:
        return
    fingerprint = evaluator_fingerprint(task.confirm)
    stored: dict[str, Any] = study.user_attrs.get(CONFIRMATION, {})
    known = stored["found"] if stored.get("evaluator") == fingerprint else {}
    if known.get("finished") == record.counts.finished and not known["error"]:
        return
    found = _Confirming(task, study, candidate, record, on_progress).run(known.get("original_metric"))
    study.set_user_attr(CONFIRMATION, {"evaluator": fingerprint, "found": asdict(found)})
    on_progress(Progress("confirmation", found.say(record.unit), 1, 1))


class _Confirming:
    """One search for a plan that holds, from the largest ratio down."""

    def __init__(
        self, task: Task, study: optuna.Study, candidate: Candidate, record: StudyRecord, on_progress: OnProgress
    ) -> None:
        self._task, self._study, self._candidate, self._on_progress = task, study, candidate, on_progress
        self._record, self._believed = record, Study(study).believe(record.layers)
        self._held: list[HeldLoss] = []

    def run(self, original_metric: float | None) -> Confirmation:
        """Return the first plan that holds, or the first that was tried, which then is not confirmed."""
        first: Confirmation | None = None
        tried: list[int] = []
        try:
            original = self._original(original_metric)
            while len(tried) < MOST_TRIED and (trial := self._next(tried)) is not None:
                tried.append(trial.number)
                self._on_progress(Progress("confirmation", f"scoring trial {trial.number}", len(tried) - 1, len(tried)))
                found = self._scored(trial, original, len(tried))
                first = first or found
                if found.holds:
                    return found
        except AutonuqError as error:
            return replace(first or self._blank(tried[-1] if tried else self._best().number), error=str(error))
        return replace(first, tried=len(tried)) if first is not None else self._blank(self._best().number)

    def _best(self) -> TrialRecord:
        best = self._record.chosen()
        assert best is not None  # `confirm` asked
        return best

    def _blank(self, trial: int) -> Confirmation:
        evaluator = self._task.confirm
        name = f"{evaluator_name(evaluator)}, {evaluator.evaluate_batch_num} batches"
        return Confirmation(name, trial, finished=self._record.counts.finished)

    def _original(self, metric: float | None) -> float:
        """Return the original's metric on the held-back data, scored once in a study's life."""
        samples = load_long(self._study.user_attrs, CONFIRMING_SAMPLES)
        if metric is not None and samples:
            return Score(metric, samples=samples_from_data(samples))
        if metric is not None:
            return metric
        self._on_progress(Progress("confirmation", "scoring the original", 0, 1))
        found = score(self._task.confirm, self._task.source)
        if isinstance(found, Score):
            store_long(self._study, CONFIRMING_SAMPLES, samples_as_data(found.samples))
        return found

    def _next(self, tried: list[int]) -> TrialRecord | None:
        """Return the untried trial of the largest ratio that is probable enough by all that is known."""
        corrected = [
            replace(trial, probability=self._after(trial.number))
            for trial in self._record.trials
            if trial.number not in tried
        ]
        chosen = replace(self._record, trials=tuple(corrected), confirmation=None).chosen()
        if chosen is None or (tried and (chosen.probability or 0.0) < self._record.confidence):
            return None
        return chosen

    def _after(self, number: int) -> float | None:
        found = self._believed.get(number)
        return None if found is None else found.after(self._held).probability

    def _scored(self, trial: TrialRecord, original: float, tried: int) -> Confirmation:
        evaluator = self._task.confirm
        with tempfile.TemporaryDirectory(dir=self._task.out) as folder:
            metric = score_candidate(self._task, evaluator, self._candidate.with_plan(trial.points), Path(folder))
        judgement = judge_metric(evaluator, original, metric)
        believed = self._believed.get(trial.number)
        if believed is not None and judgement.relative_error is not None:
            self._held.append(HeldLoss(believed, math.exp(judgement.margin), judgement.relative_error))
        probability = self._after(trial.number) if self._held else None
        sure = probability is None or probability >= self._record.confidence
        rises = 1 if self._record.metric_rises else -1
        found = replace(
            self._blank(trial.number),
            original_metric=float(original),
            metric=float(metric),
            satisfied=judgement.satisfied,
            original_standard_error=standard_error(evaluator, original),
            standard_error=standard_error(evaluator, metric),
            loss=rises * float(original - metric),
            loss_error=judgement.loss_error,
            limit=judgement.allowed,
            samples=len(metric.samples) if isinstance(metric, Score) else None,
            tried=tried,
            probability=probability,
            holds=judgement.satisfied and sure,
        )
        return found if tried == 1 or believed is None else _corrected(found, believed.after(self._held), judgement)


def _corrected(found: Confirmation, believed: BelievedLoss, judgement: MetricJudgement) -> Confirmation:
    """Say of a later plan what both data together say: the one of several that holds was lucky there."""
    if judgement.allowed is None:
        return found
    spread = math.hypot(believed.deviation, believed.shared)
    return replace(found, loss=believed.mean * judgement.allowed, loss_error=spread * judgement.allowed)
