"""The winner is scored on what the search never saw, and the next one where it does not hold there.

Forty looks at one test set find a plan that happens to do well there, and how lucky the original network was on it no
look can tell. Data held back from the search tell both: a plan holds if it satisfies there, too, and keeps the limit
with the study's confidence after both (`search.trust`). What is held back is looked at as seldom as possible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna

from autonuq.atomic import temporary_folder
from autonuq.compress.candidate import Candidate
from autonuq.errors import AutonuqError, WriteFailure
from autonuq.evaluate.evaluator import data_digests, evaluator_fingerprint, evaluator_name, score, standard_error
from autonuq.evaluate.samples import Score, samples_as_data, samples_from_data
from autonuq.records import CONFIRMING_SAMPLES, Confirmation, StudyRecord, TrialRecord
from autonuq.search.trust import BelievedLoss, HeldLoss
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.plan_networks import PlanNetworks
from autonuq.study.scoring import judge_metric, score_candidate
from autonuq.study.stored import StoredConfirmation, Study, store_confirmation, stored_confirmation
from autonuq.study.task import OnProgress, Progress, Task

MOST_TRIED = 6
"""Plans that are scored on what was held back before the study ends unconfirmed."""


def confirm(task: Task, study: optuna.Study, candidate: Candidate, on_progress: OnProgress) -> None:
    """Find the best plan that holds by the task's confirming evaluator, and store what came of it.

    A failure of that evaluator is stored and told, and tried again when the study is resumed; it loses no trial.
    """
    record = Study(study).record()
    first = record.chosen()
    if task.confirm is None or first is None:
        return
    fingerprint = evaluator_fingerprint(task.confirm)
    data = data_digests(task.confirm)
    stored = stored_confirmation(study)
    is_same = stored.evaluator == fingerprint and stored.data in (None, data)
    known = stored.found if is_same else None
    if known is not None and known.finished == record.counts.finished and not known.error:
        return
    found = _Confirming(task, study, candidate, record, on_progress).run(
        first, None if known is None else known.original_metric
    )
    store_confirmation(study, StoredConfirmation(fingerprint, found, data))
    on_progress(Progress("confirmation", found.say(record.unit), 1, 1))


class _Confirming:
    """One search for a plan that holds, from the largest ratio down."""

    def __init__(
        self, task: Task, study: optuna.Study, candidate: Candidate, record: StudyRecord, on_progress: OnProgress
    ) -> None:
        self._task, self._study, self._on_progress = task, study, on_progress
        self._networks = PlanNetworks(task, candidate, study)
        self._record, self._believed = record, Study(study).believe(record.layers)
        self._held: list[HeldLoss] = []

    def run(self, first: TrialRecord, original_metric: float | None) -> Confirmation:
        """Return what came of the first plan that holds; of the first of all, not confirmed, where none does."""
        trial: TrialRecord | None = first
        found: list[Confirmation] = []
        try:
            original = self._original(original_metric)
            while trial is not None and len(found) < MOST_TRIED:
                step = len(found) + 1
                self._on_progress(Progress("confirmation", f"scoring trial {trial.number}", step - 1, step))
                found.append(self._scored(trial, original, step))
                if found[-1].holds:
                    return found[-1]
                trial = self._next([one.trial for one in found])
        except WriteFailure:
            raise
        except AutonuqError as error:
            return replace(found[0] if found else self._blank(first.number), error=str(error))
        return replace(found[0], tried=len(found))

    def _blank(self, trial: int) -> Confirmation:
        evaluator = self._task.confirm
        name = f"{evaluator_name(evaluator)}, {evaluator.evaluate_batch_num} batches"
        return Confirmation(name, trial, finished=self._record.counts.finished)

    def _original(self, metric: float | None) -> float:
        """Return the original's metric on the held-back data, scored once in a study's life."""
        attributes = StudyAttributes(self._study)
        samples: Mapping[str, Any] | None = attributes.long(CONFIRMING_SAMPLES, Mapping[str, Any])
        if metric is not None and samples:
            with attributes.blaming(CONFIRMING_SAMPLES):
                return Score(metric, samples=samples_from_data(samples))
        if metric is not None:
            return metric
        self._on_progress(Progress("confirmation", "scoring the original", 0, 1))
        found = score(self._task.confirm, self._task.source)
        store_long(
            self._study, CONFIRMING_SAMPLES, samples_as_data(found.samples) if isinstance(found, Score) else None
        )
        return found

    def _next(self, tried: list[int]) -> TrialRecord | None:
        """Return the untried trial of the largest ratio that is probable enough by all that is known now."""
        corrected = [
            replace(trial, probability=self._after(trial.number))
            for trial in self._record.trials
            if trial.number not in tried
        ]
        chosen = replace(self._record, trials=tuple(corrected), confirmation=None).chosen()
        return chosen if chosen is not None and self._is_sure(chosen.probability) else None

    def _is_sure(self, probability: float | None) -> bool:
        """Say whether a plan is probable enough; where margins tell nothing, verdicts alone decide."""
        return probability is None or probability >= self._record.confidence

    def _after(self, number: int) -> float | None:
        found = self._believed.get(number)
        return None if found is None else found.after(self._held).probability

    def _scored(self, trial: TrialRecord, original: float, tried: int) -> Confirmation:
        evaluator = self._task.confirm
        with temporary_folder(self._task.out) as folder:
            network = self._networks.network(trial.points, trial.network)
            metric = score_candidate(self._task, evaluator, network, folder)
        judgement = judge_metric(evaluator, original, metric)
        believed, allowed = self._believed.get(trial.number), judgement.allowed or self._record.allowed
        loss = float(original - metric) * (1 if self._record.metric_rises else -1)
        if believed is not None and judgement.loss_error is not None and allowed:
            self._held.append(HeldLoss(believed, loss / allowed, judgement.loss_error / allowed))
        probability = self._after(trial.number) if self._held else None
        found = replace(
            self._blank(trial.number),
            original_metric=float(original),
            metric=float(metric),
            satisfied=judgement.satisfied,
            original_standard_error=standard_error(evaluator, original),
            standard_error=standard_error(evaluator, metric),
            loss=loss,
            loss_error=judgement.loss_error,
            limit=allowed,
            samples=len(metric.samples) if isinstance(metric, Score) else None,
            tried=tried,
            probability=probability,
            holds=judgement.satisfied and self._is_sure(probability),
        )
        return _corrected(found, believed.after(self._held)) if tried > 1 and self._held and believed else found


def _corrected(found: Confirmation, believed: BelievedLoss) -> Confirmation:
    """Say of a later plan what both data together say: the one of several that holds was lucky there."""
    if found.limit is None:
        return found
    spread = math.hypot(believed.deviation, believed.luck)
    return replace(found, loss=believed.mean * found.limit, loss_error=spread * found.limit)
