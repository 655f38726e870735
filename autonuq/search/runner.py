"""The loop of trials: propose a plan, apply it, score it, store what came of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime

import optuna
from optuna.trial import TrialState

from autonuq.compress import QuantizedModel
from autonuq.errors import AutonuqError, EvaluatorError
from autonuq.quant.points import OperatingPoints
from autonuq.records import TrialRecord
from autonuq.search.rate_distortion import MARGIN_ERROR, RateDistortionSampler
from autonuq.search.scoring import Scorer
from autonuq.search.space import Space
from autonuq.search.stored import (
    CONSTRAINT,
    FINISHED,
    ORIGIN,
    RUNNING,
    RUNNING_FIELDS,
    STOPPED,
    TRIAL,
    WORKER,
    Study,
    requeue,
    trial_record,
)
from autonuq.search.task import OnProgress, Progress, Task
from autonuq.search.trial_log import append_trial

FAILURES_IN_A_ROW = 3
STOP_GAIN = 0.005
"""What is not worth another trial, as a share of the ratio, where the task says nothing of it."""
LEAST_TRIALS, UNASKED_TRIALS = 10, 40
"""Before a study may end because little is left to gain: where the task asks for it, and where it says nothing."""


class Runner:
    """Runs trials one after the other until the study has as many as it shall have."""

    def __init__(
        self,
        task: Task,
        study: optuna.Study,
        model: QuantizedModel,
        points: Mapping[str, OperatingPoints],
        original_metric: float,
        on_progress: OnProgress,
    ) -> None:
        self.task, self.study, self.on_progress = task, study, on_progress
        curves = {name: found.curve for name, found in points.items()}
        self.space = Space(curves, {name: uniform.codes.size for name, uniform in model.weights.items()})
        self.layers = Study(study).record().layers
        sizes = {layer.name: float(layer.original_bytes) for layer in self.layers}
        self.predictor = RateDistortionSampler(curves.values(), seed=task.seed, original_bytes=sizes)
        self.scorer = Scorer(task, study, model, points, original_metric, self.predictor)
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def run(self, deadline: float | None) -> None:
        """Run what is left; raise EvaluatorError after three failures in a row."""
        if self.task.sampler != "rate-distortion":
            self._enqueue_seeds()
        failures = 0
        target = min(self.task.n_trials, self.space.size)
        while self._finished() < target and (deadline is None or time.monotonic() < deadline) and not self._is_done():
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self.worker)
            try:
                record = self._run_trial(trial)
            except BaseException:
                requeue(self.study, trial._trial_id)
                raise
            failures = failures + 1 if record.state == "failed" else 0
            self.on_progress(self._progress(record))
            if failures == FAILURES_IN_A_ROW:
                raise EvaluatorError(
                    f"{failures} trials in a row failed, the last with: {record.error}; mend the evaluator, "
                    "then start a study of another name"
                )

    def _is_done(self) -> bool:
        """Say whether too little is left to gain; why is stored and told."""
        asked = self.task.stop_gain
        share, least = (STOP_GAIN, UNASKED_TRIALS) if asked is None else (asked, LEAST_TRIALS)
        if self.task.sampler != "rate-distortion" or share <= 0 or self._finished() < least:
            return False
        if self.predictor.has_gain_left(self.study, share):
            return False
        reason = f"with 90 % probability no plan is more than {share:.1%} above the best"
        self.study.set_user_attr(STOPPED, reason)
        self.on_progress(Progress("stop", reason, self._finished(), self.task.n_trials))
        return True

    def _enqueue_seeds(self) -> None:
        """Queue the seeds that are not in the storage yet: all of them, or what a killed start left out."""
        there = sum(trial.user_attrs.get(ORIGIN) == "seed" for trial in self.study.get_trials(deepcopy=False))
        for plan in self.space.seeds()[there:]:
            self.study.enqueue_trial(self.space.parameters(plan), user_attrs={ORIGIN: "seed"})

    def _finished(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=FINISHED))

    def _progress(self, record: TrialRecord) -> Progress:
        best = Study(self.study).record().best
        return Progress("trial", record.summary, self._finished(), self.task.n_trials, record, best)

    def _run_trial(self, trial: optuna.Trial) -> TrialRecord:
        """Propose, apply and score one plan, and finish the trial in the storage."""
        started = time.monotonic()
        parameters = {
            name: trial.suggest_float(name, distribution.low, distribution.high, log=True)
            for name, distribution in self.space.distributions.items()
        }
        plan = self.space.plan(parameters)
        origin = trial.user_attrs.get(ORIGIN, "sampler")
        record = TrialRecord(
            trial.number,
            "running",
            size_bytes=self._size_bytes(plan),
            points=plan,
            origin=origin,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            worker=self.worker,
        )
        trial.set_user_attr(RUNNING, {key: getattr(record, key) for key in RUNNING_FIELDS})
        known = self._scored(plan)
        try:
            if known is not None:
                record = replace(
                    record,
                    metric=known.metric,
                    satisfied=known.satisfied,
                    margin=known.margin,
                    margin_error=known.margin_error,
                    standard_error=known.standard_error,
                    batches=0,
                    origin=f"copy of {known.number}",
                )
            else:
                record = self.scorer.score(record)
        except AutonuqError as error:
            record = replace(record, state="failed", error=str(error))
        else:
            original_bytes = sum(layer.original_bytes for layer in self.layers)
            record = replace(record, state="complete", ratio=original_bytes / max(1, record.size_bytes or 0))
        return self._finish(trial, replace(record, duration_s=round(time.monotonic() - started, 3)))

    def _size_bytes(self, plan: Mapping[str, int]) -> int:
        return sum(layer.rates_bytes[plan.get(layer.name, 0)] for layer in self.layers)

    def _scored(self, plan: Mapping[str, int]) -> TrialRecord | None:
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        records = (trial_record(trial) for trial in trials)
        return next((record for record in records if record.points == plan), None)

    def _finish(self, trial: optuna.Trial, record: TrialRecord) -> TrialRecord:
        stored = {key: value for key, value in asdict(record).items() if key not in ("number", "state")}
        trial.set_user_attr(TRIAL, stored)
        if record.state == "failed" or record.margin is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_constraint(CONSTRAINT, record.margin)
            if record.margin_error is not None:
                trial.set_user_attr(MARGIN_ERROR, record.margin_error)
            self.study.tell(trial, record.ratio)
        append_trial(self.task.log_file, record)
        return record
