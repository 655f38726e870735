"""Which trial a worker runs next.

The total of a study is a matter of numbers: of the study's own trials (`trials`) the first ones, as many as the total,
are run, whoever makes them; one beyond stays queued until the total is raised. So no worker can start one too many. A
plan is scored by one worker only, because a trial waits until every earlier trial of the same plan is finished, and
then takes over its result. Both rules rest on what never changes, a trial's number and its plan, and hold without any
lock; the lock of `storage.exclusion` keeps proposals apart, and may be taken from a worker that is slow. Where there is
none, a worker makes its trial first and proposes when every earlier trial has its plan.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from autonuq.records import DEATHS, LEASE, ORIGIN, TARGET_TRIALS, TRIAL
from autonuq.search.rate_distortion import FIXED, RateDistortionSampler
from autonuq.search.space import Space
from autonuq.storage.lease import LeaseWatch, WorkerSession
from autonuq.storage.open import Storage
from autonuq.study.attributes import StudyAttributes
from autonuq.study.stored import id_of, requeue
from autonuq.study.trials import record_as_data, trial_record

MOST_DEATHS = 3
"""Workers that a plan may cost before its trial counts as failed."""

LONGEST_TURN_S, TURN_POLL_S = 5.0, 0.02

PlanKey = tuple[int, ...]  # the index of each layer's point, in the order of the curves


class Claims:
    """Claims trials of a study for one worker.

    Parameters
    ----------
    storage : Storage
    study : optuna.Study
        With the sampler that proposes; of its own trials, see `trials.own_view`.
    space : Space
    session : WorkerSession
        The worker's.
    """

    def __init__(self, storage: Storage, study: optuna.Study, space: Space, session: WorkerSession) -> None:
        self._storage, self._study, self._space, self._session = storage, study, space, session
        self._study_id = storage.backend.get_study_id_from_name(study.study_name)
        self._watch = LeaseWatch()
        self._plans: dict[int, PlanKey] = {}

    def total(self) -> int:
        """Return how many trials the study shall have: what is asked for, but no more than there are plans."""
        asked: int = StudyAttributes(self._study).get(TARGET_TRIALS, int)
        return min(asked, self._space.size)

    def is_finished(self) -> bool:
        """Say whether every trial up to the total is finished."""
        total, trials = self.total(), self._trials()
        return len(trials) >= total and all(trial.state.is_finished() for trial in trials[:total])

    def enqueue(self, plans: Sequence[dict[str, int]], origin: str) -> None:
        """Queue the plans of an origin that are not in the storage yet: all, or what a killed start left out."""
        with self._storage.exclusive(self._study.study_name):
            there = sum(trial.user_attrs.get(ORIGIN) == origin for trial in self._trials())
            for plan in plans[there:]:
                self._create(TrialState.WAITING, self._space.parameters(plan), {ORIGIN: origin})

    def entered(self, plan: dict[str, int], origin: str) -> optuna.Trial | None:
        """Return the one trial of an origin, made if it is not there, to be finished; None if it is finished."""
        with self._storage.exclusive(self._study.study_name):
            own = [trial for trial in self._trials() if trial.user_attrs.get(ORIGIN) == origin]
            if not own:
                attributes: dict[str, object] = {ORIGIN: origin, LEASE: self._session.lease.as_attribute()}
                trial_id = self._create(TrialState.RUNNING, self._space.parameters(plan), attributes)
                return optuna.Trial(self._study, trial_id)
        return None if own[0].state.is_finished() else optuna.Trial(self._study, id_of(own[0]))

    def next(self) -> optuna.Trial | None:
        """Claim a trial, with all its parameters: a queued one, or a new one if the total leaves room.

        Returns
        -------
        optuna.Trial or None
            None if there is nothing to run at the moment.
        """
        with self._storage.exclusive(self._study.study_name), suppress(UpdateFinishedTrialError):
            return self._next()
        return None  # this worker was suspended, and another one has run its trial

    def give_back(self) -> list[int]:
        """Queue the trials of workers that were stopped on this machine again, and return their numbers."""
        with self._storage.exclusive(self._study.study_name):
            dead = self._watch.dead(trial for trial in self._trials() if trial.state == TrialState.RUNNING)
            for trial in dead:
                requeue(self._storage.backend, id_of(trial))
        return [trial.number for trial in dead]

    def scored(self, plan: dict[str, int]) -> FrozenTrial | None:
        """Return the first complete trial of a plan, None if there is none."""
        trials, key = self._trials(), tuple(plan.values())
        self._learn_plans(trials)
        return next((t for t in trials if t.state == TrialState.COMPLETE and self._plans.get(t.number) == key), None)

    def _next(self) -> optuna.Trial | None:
        trials = self._trials()
        dead = self._watch.dead(trial for trial in trials if trial.state == TrialState.RUNNING)
        for trial in dead:
            self._bury(trial)
        trials, total = self._trials() if dead else trials, self.total()
        self._learn_plans(trials)
        for trial in trials[:total]:
            if trial.state == TrialState.WAITING and not self._is_blocked(trial.number, trials):
                claimed = self._claim(id_of(trial))
                if claimed is not None:
                    return claimed
        return self._new(total) if len(trials) < total else None

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _bury(self, trial: FrozenTrial) -> None:
        """Queue a dead worker's trial again, or give it up if it kills its workers."""
        now = self._storage.backend.get_trial(id_of(trial))
        if now.state != TrialState.RUNNING or now.user_attrs.get(LEASE) != trial.user_attrs.get(LEASE):
            return  # it lives, or another worker, to whom the lock has gone, has run it meanwhile
        deaths = trial.user_attrs.get(DEATHS, 0) + 1
        open_trial = optuna.Trial(self._study, id_of(trial))
        try:
            if deaths >= MOST_DEATHS and TRIAL not in trial.user_attrs:
                failed = replace(trial_record(trial), error=f"{deaths} workers died while they ran it")
                open_trial.set_user_attr(TRIAL, record_as_data(failed))
                self._study.tell(open_trial, state=TrialState.FAIL)
                return
            open_trial.set_user_attr(DEATHS, deaths)
        except UpdateFinishedTrialError:  # it lives: it was only slow
            return
        requeue(self._storage.backend, id_of(trial))

    def _learn_plans(self, trials: Sequence[FrozenTrial]) -> None:
        """Remember the plans that became known, each once."""
        names = self._space.distributions.keys()
        known = {}
        for trial in trials:
            if trial.number not in self._plans:
                for parameters in (trial.params, trial.system_attrs.get(FIXED, {})):
                    if names <= parameters.keys():
                        known[trial.number] = parameters
                        break
        if known:
            points = self._space.points(list(known.values())).tolist()
            self._plans.update(zip(known, map(tuple, points), strict=True))

    def _is_blocked(self, number: int, trials: Sequence[FrozenTrial]) -> bool:
        """Say whether an earlier trial of the same plan is unfinished."""
        plan = self._plans.get(number)
        return plan is not None and any(
            not trial.state.is_finished() and self._plans.get(trial.number) == plan
            for trial in trials
            if trial.number < number
        )

    def _claim(self, trial_id: int) -> optuna.Trial | None:
        try:
            if not self._storage.backend.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        trial = optuna.Trial(self._study, trial_id)
        trial.set_user_attr(LEASE, self._session.lease.as_attribute())
        return self._completed(trial)

    def _new(self, total: int) -> optuna.Trial | None:
        """Make a running trial; its parameters are written with it where the sampler proposes without a trial."""
        sampler, parameters = self._study.sampler, {}
        if self._storage.has_lock and isinstance(sampler, RateDistortionSampler):
            parameters = sampler.propose(self._study)
        if parameters.keys() != self._space.distributions.keys():  # a sampler object of other curves
            parameters = {}
        trial_id = self._create(TrialState.RUNNING, parameters, {LEASE: self._session.lease.as_attribute()})
        trial = optuna.Trial(self._study, trial_id)
        earlier = sum(other.number < trial.number for other in self._trials())
        if earlier >= total:  # without a lock another worker took the last one
            requeue(self._storage.backend, trial_id)
            return None
        if not self._storage.has_lock:
            self._wait_for_turn(trial.number)
        return self._completed(trial)

    def _wait_for_turn(self, number: int) -> None:
        """Wait until every earlier trial has its plan, unless that takes so long that a worker must be dead."""
        deadline = time.monotonic() + LONGEST_TURN_S
        while time.monotonic() < deadline:
            trials = self._trials()
            self._learn_plans(trials)
            earlier = (trial for trial in trials if trial.number < number)
            if all(trial.state.is_finished() or trial.number in self._plans for trial in earlier):
                return
            time.sleep(TURN_POLL_S)

    def _create(self, state: TrialState, parameters: dict[str, float], attributes: dict[str, object]) -> int:
        """Make a trial by one write."""
        distributions = {name: self._space.distributions[name] for name in parameters}
        template = create_trial(
            state=state, params=parameters, distributions=dict(distributions), user_attrs=attributes
        )
        return int(self._storage.backend.create_new_trial(self._study_id, template))

    def _completed(self, trial: optuna.Trial) -> optuna.Trial | None:
        """Suggest what parameters are missing, and give the trial back if its plan is another's."""
        given = trial.params
        for name, distribution in self._space.distributions.items():
            if name not in given:
                trial.suggest_float(name, distribution.low, distribution.high, log=True)
        trials = self._trials()
        self._learn_plans(trials)
        now = next((other for other in trials if other.number == trial.number), None)
        if now is None or not self._session.holds(now):  # this worker was suspended and taken for dead
            return None
        if self._is_blocked(trial.number, trials):
            requeue(self._storage.backend, id_of(trial))
            return None
        return trial
