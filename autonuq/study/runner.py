"""The loop of trials: propose a plan, apply it, score it, store what came of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import say_unsearched
from autonuq.errors import AutonuqError, WriteFailure
from autonuq.records import COPY_OF, ORIGIN, RUNNING, RUNNING_FIELDS, STOPPED, TRIAL, FloatLayers, TrialRecord
from autonuq.search.rate_distortion import RateDistortionSampler
from autonuq.search.sampler import RATE_DISTORTION
from autonuq.search.space import Space
from autonuq.storage.lease import Heartbeat, WorkerSession
from autonuq.storage.open import Storage
from autonuq.study.attributes import StudyAttributes
from autonuq.study.claims import Claims
from autonuq.study.locate import POLL_S
from autonuq.study.plan_networks import PlanNetworks, built_sizes
from autonuq.study.scoring import FAILURES_IN_A_ROW, failed_in_a_row, score_plan
from autonuq.study.stored import (
    FINISHED,
    Study,
    curve_error,
    fixed_curves,
    id_of,
    original_metric,
    requeue,
    scored_record,
    store_record,
    stored_layers,
    stored_rounding,
)
from autonuq.study.task import Callback, OnProgress, Progress, Task
from autonuq.study.trial_log import append_trial
from autonuq.study.trials import trial_record

LEAST_TRIALS = 10
"""Before a study may end because little is left to gain."""


def _never() -> bool:
    return False


class Runner:
    """One worker: runs trials, one after the other, until the study has as many as it shall have.

    The study that it is given is one of its own trials, see `trials.own_view`. `callbacks` are called after
    `on_progress` was, with that study and a copy of the trial.
    """

    def __init__(
        self,
        task: Task,
        storage: Storage,
        study: optuna.Study,
        candidate: Candidate,
        on_progress: OnProgress,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task, self.study, self.candidate = task, study, candidate
        self._on_progress, self._callbacks = on_progress, callbacks
        self.unsearched = say_unsearched(candidate.model)
        self.networks = PlanNetworks(task, candidate, study)
        self.space = Space(candidate.curves, candidate.model.weight_counts)
        self.layers = stored_layers(study)
        sizes = {layer.name: float(layer.original_bytes) for layer in self.layers}
        curves = {**candidate.curves, **fixed_curves(self.layers)}
        self.predictor = RateDistortionSampler(
            curves.values(), seed=task.seed, original_bytes=sizes, curve_error=curve_error(stored_rounding(study))
        )
        self.original_metric = original_metric(study)
        self.session = WorkerSession()
        self.claims = Claims(storage, study, self.space, self.session)
        self.tally = Tally(study)
        self._has_scored = False

    def run(self, deadline: float | None, is_abandoned: Callable[[], bool] = _never) -> None:
        """Run what is left, or what is until it `is_abandoned`; raise EvaluatorError after three failures in a row."""
        self._run(deadline, is_abandoned)
        self.tell_end()

    def _run(self, deadline: float | None, is_abandoned: Callable[[], bool]) -> None:
        failures = 0
        self._remove_left_folders()
        with self.session:
            while (deadline is None or time.monotonic() < deadline) and not is_abandoned() and not self._is_done():
                trial = self.claims.next()
                if trial is None:
                    if self.claims.is_finished():
                        return
                    time.sleep(POLL_S)
                    continue
                record = self._run_claimed(trial)
                failures = failures + 1 if record.state == "failed" else 0
                for progress in self.tally.news(self.claims.total()):
                    if progress.trial is not None and progress.trial.number == record.number:
                        self.tell(progress)
                if failures == FAILURES_IN_A_ROW:
                    raise failed_in_a_row(record.error)

    def begin(self, floats: FloatLayers, scored: TrialRecord | None) -> None:
        """Make the trials that a study begins with.

        Parameters
        ----------
        floats : FloatLayers
            Where nothing helps, no trial follows.
        scored : TrialRecord or None
            What the network without a plan has scored already: the first trial.
        """
        if scored is not None:
            self._enter(scored)
        if floats.hopeless:
            self.study.set_user_attr(STOPPED, floats.say())
        elif not self.unsearched and self.task.sampler != RATE_DISTORTION:
            self.claims.enqueue(self.space.seeds(), "seed")

    def _enter(self, scored: TrialRecord) -> None:
        """Make a finished trial of what was scored without one, unless there is one."""
        plan = dict.fromkeys(self.space.curves, 0)
        trial = self.claims.entered(plan, scored.origin)
        if trial is None:
            return
        record = self._with_ratio(replace(scored, size_bytes=self._size_bytes(plan), points=plan))
        self._finish(trial, replace(record, number=trial.number, worker=self.session.lease.worker))
        for progress in self.tally.news(self.claims.total()):
            self.tell(progress)

    def tell(self, progress: Progress) -> None:
        """Tell of a trial that finished."""
        self._on_progress(progress)
        if self._callbacks and progress.trial is not None:
            number = progress.trial.number
            found = next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)
            for callback in self._callbacks:
                callback(self.study, deepcopy(found))

    def tell_end(self) -> None:
        """Tell why the study ended before its total, if it did."""
        reason = StudyAttributes(self.study).get(STOPPED, str)
        if reason:
            self._on_progress(Progress("stop", reason, self._finished(), self.claims.total()))

    def _is_done(self) -> bool:
        """Say whether too little is left to gain, or the search was ended otherwise; why is stored."""
        share = self.task.stop_gain
        if StudyAttributes(self.study).get(STOPPED, str):
            return True
        if self.unsearched and self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            return self._stop(self.unsearched)
        if self.task.sampler != RATE_DISTORTION or share <= 0:
            return False
        if not LEAST_TRIALS <= self._finished() < self.claims.total():
            return False
        if self.predictor.has_gain_left(self.study, share):
            return False
        return self._stop(f"with 90 % probability no plan is more than {share:.1%} above the best")

    def _stop(self, reason: str) -> Literal[True]:
        self.study.set_user_attr(STOPPED, reason)
        return True

    def _remove_left_folders(self) -> None:
        """Delete what killed workers left of trials that others have finished."""
        for trial in self.study.get_trials(deepcopy=False, states=FINISHED):
            shutil.rmtree(self.task.trial_folder(trial.number), ignore_errors=True)

    def _finished(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=FINISHED))

    def _run_claimed(self, trial: optuna.Trial) -> TrialRecord:
        """Run a trial; whatever stops that gives it back."""
        try:
            with Heartbeat(trial.set_user_attr, self.session.lease):
                return self._run_trial(trial)
        except UpdateFinishedTrialError:
            return _result_of_another(trial)
        except BaseException:
            if self.session.holds(trial.storage.get_trial(id_of(trial))):
                requeue(trial.storage, id_of(trial))
            raise

    def _run_trial(self, trial: optuna.Trial) -> TrialRecord:
        """Propose, apply and score one plan, and finish the trial in the storage."""
        if TRIAL in trial.user_attrs:  # its last worker died when all but the verdict's storing was done
            return self._finish(trial, scored_record(trial))
        started = time.monotonic()
        plan = self.space.plan(trial.params)
        record = TrialRecord(
            trial.number,
            "running",
            size_bytes=self._size_bytes(plan),
            points=plan,
            origin=trial.user_attrs.get(ORIGIN, TrialRecord.origin),
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            worker=self.session.lease.worker,
        )
        trial.set_user_attr(RUNNING, {key: getattr(record, key) for key in RUNNING_FIELDS})
        known = self.claims.scored(plan)
        try:
            record = self._scored(plan, record) if known is None else _copied(record, trial_record(known))
        except WriteFailure:
            raise
        except AutonuqError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not self._has_scored:
                raise  # no plan's fault: this machine lacks what the evaluator reads
            record = replace(record, state="failed", error=str(error))
        else:
            record = self._with_ratio(replace(record, state="complete"))
        return self._finish(trial, replace(record, duration_s=round(time.monotonic() - started, 3)))

    def _size_bytes(self, plan: Mapping[str, int], built: Mapping[str, Sequence[int]] | None = None) -> int:
        """Return the bytes of a plan: of what was built of it, or, before that, of its points."""
        points = {layer.name: layer.rates_bytes[plan.get(layer.name, 0)] for layer in self.layers}
        return sum((points | {name: size for name, (size, _) in (built or {}).items()}).values())

    def _with_ratio(self, record: TrialRecord) -> TrialRecord:
        original_bytes = sum(layer.original_bytes for layer in self.layers)
        return replace(record, ratio=original_bytes / max(1, record.size_bytes or 0))

    def _scored(self, plan: dict[str, int], record: TrialRecord) -> TrialRecord:
        """Return the record with what was expected of the plan and what it scored."""
        expected = self.predictor.predict(self.study, plan, record.number)
        record = replace(record, predicted=expected and expected[0])
        network = self.networks.network(plan)
        built, digest = built_sizes(network), self.networks.digest(plan)
        record = replace(record, size_bytes=self._size_bytes(plan, built), built=built, network=digest)
        found = score_plan(self.task, network, self.original_metric, record)
        self._has_scored = True
        if not found.satisfied:
            self.networks.forget(plan)
        return found

    def _finish(self, trial: optuna.Trial, record: TrialRecord) -> TrialRecord:
        """Store what came of a trial."""
        try:
            store_record(trial, record)
        except UpdateFinishedTrialError:
            return _result_of_another(trial)
        append_trial(self.task.log_file, record)
        return record


def _result_of_another(trial: optuna.Trial) -> TrialRecord:
    """Return what counts of a trial whose worker was taken for dead: the result of the one that was faster."""
    return trial_record(trial.storage.get_trial(id_of(trial)))


def _copied(record: TrialRecord, known: TrialRecord) -> TrialRecord:
    """Return the record with what another trial of the same plan scored."""
    return replace(
        record,
        size_bytes=known.size_bytes,
        built=known.built,
        network=known.network,
        metric=known.metric,
        satisfied=known.satisfied,
        margin=known.margin,
        margin_error=known.margin_error,
        standard_error=known.standard_error,
        loss_error=known.loss_error,
        relative_error=known.relative_error,
        origin=f"{COPY_OF}{known.number}",
    )


class Tally:
    """Counts the finished trials of all workers, and keeps the best of them."""

    def __init__(self, study: optuna.Study) -> None:
        self._study, self._handle = study, Study(study)
        self._seen: set[int] = set()

    def news(self, total: int) -> list[Progress]:
        """Describe the trials that finished since the last call."""
        trials = self._study.get_trials(deepcopy=False, states=FINISHED)
        new = [trial for trial in trials if trial.number not in self._seen]
        if not new:
            return []
        best = self._handle.record().best
        return [self._described(trial_record(trial), best, total) for trial in new]

    def _described(self, record: TrialRecord, best: TrialRecord | None, total: int) -> Progress:
        self._seen.add(record.number)
        return Progress("trial", record.summary, len(self._seen), total, record, best)
