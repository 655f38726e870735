"""Which trial a worker runs: the total, equal plans, dead workers, late results. Two workers in one process here."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autonuq.records import DEATHS, LEASE, TARGET_TRIALS, TRIAL
from autonuq.storage import exclusion
from autonuq.storage.lease import WorkerSession
from autonuq.storage.open import open_storage
from autonuq.study.claims import MOST_DEATHS
from autonuq.study.stored import scored_record, store_record
from autonuq.study.trials import trial_record

spec = importlib.util.spec_from_file_location("claimer", Path(__file__).parent / "claimer.py")
claimer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claimer)


@pytest.fixture(params=["journal", "sqlite"])
def study(request, tmp_path):
    scheme = {"sqlite": "sqlite:///", "journal": "journal://"}[request.param]
    study = open_storage(f"{scheme}{tmp_path}/s").create("net")
    study.set_user_attr(TARGET_TRIALS, 4)
    study.set_user_attr("url", f"{scheme}{tmp_path}/s")
    return study


@pytest.fixture
def worker(study):
    """Make workers that live until the end of the test."""
    sessions = []

    def make():
        sessions.append(WorkerSession().__enter__())
        return claimer.open_claims(study.user_attrs["url"], "net", sessions[-1])

    yield make
    for session in sessions:
        session.__exit__()


def finish(trial):
    store_record(trial, claimer.scored(trial))


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def kill(worker):
    worker._session.__exit__()


def test_never_more_trials_than_asked(study, worker):
    one, two = worker(), worker()
    claimed = [one.next(), two.next(), one.next(), two.next()]
    assert [trial.number for trial in claimed] == [0, 1, 2, 3]
    assert one.next() is None
    assert two.next() is None
    assert not one.is_finished()
    for trial in claimed:
        finish(trial)
    assert one.is_finished()
    assert one.next() is None
    assert states(study) == ["COMPLETE"] * 4
    study.set_user_attr(TARGET_TRIALS, 5)  # raised: a running worker goes on
    assert two.next().number == 4


def test_queued_trials_beyond_the_total_stay_queued(study, worker):
    one = worker()
    plans = one._space.seeds()[:1] + [dict.fromkeys(claimer.CURVES, index) for index in range(1, 6)]
    one.enqueue(plans, "seed")
    one.enqueue(plans, "seed")  # as a restart would
    while (trial := one.next()) is not None:
        finish(trial)
    assert one.is_finished()
    assert states(study) == ["COMPLETE"] * 4 + ["WAITING"] * 2


def test_parameters_are_written_with_the_trial(study, worker, monkeypatch):
    """One write for all of them, and no deep copies of the other trials."""
    one = worker()
    backend, calls = one._storage.backend, []
    for name in ("set_trial_param", "create_new_trial", "get_all_trials"):
        original = getattr(backend, name)

        def recorded(*arguments, _name=name, _original=original, **named):
            calls.append((_name, named.get("deepcopy")))
            return _original(*arguments, **named)

        monkeypatch.setattr(type(backend), name, staticmethod(recorded))
    trial = one.next()
    assert len(trial.params) == claimer.LAYERS
    assert [name for name, _ in calls if name != "get_all_trials"] == ["create_new_trial"]
    assert {deepcopy for name, deepcopy in calls if name == "get_all_trials"} == {False}


def test_a_plan_that_runs_is_not_run_by_anybody_else(study, worker):
    one, two = worker(), worker()
    plan = dict.fromkeys(claimer.CURVES, 3)
    for _ in range(2):
        study.enqueue_trial(one._space.parameters(plan))
    first = one.next()
    other = two.next()
    assert (first.number, other.number) == (0, 2)  # not its twin
    finish(first)
    twin = two.next()
    assert twin.number == 1
    assert two.scored(plan).number == 0  # whose result it takes over


def test_what_runs_is_not_proposed(study, worker):
    study.set_user_attr(TARGET_TRIALS, 8)
    claimed = [worker().next() for _ in range(8)]
    assert len({tuple(trial.params.values()) for trial in claimed}) == 8


def test_a_dead_workers_trial_is_run_with_its_plan(study, worker):
    one, two = worker(), worker()
    lost = one.next()
    assert two.next().number == 1
    kill(one)
    again = two.next()
    assert (again.number, again.params) == (0, lost.params)
    assert again.user_attrs[LEASE]["session"] == two._session.lease.session


def test_a_dead_worker_on_another_host_is_found_by_its_silence(study, worker):
    one, two = worker(), worker()
    lost = one.next()
    lost.set_user_attr(LEASE, replace(one._session.lease, machine="another").as_attribute())
    study.set_user_attr(TARGET_TRIALS, 1)
    two._watch.clock = iter((0.0, 15.0, 30.0, 45.0, 56.0)).__next__
    assert [two.next() for _ in range(4)] == [None] * 4
    assert two.next().number == 0


def test_a_plan_that_kills_its_workers_is_given_up(study, worker):
    study.set_user_attr(TARGET_TRIALS, 1)
    for _ in range(MOST_DEATHS):
        victim = worker()
        assert victim.next().number == 0
        kill(victim)
    last = worker()
    assert last.next() is None
    assert last.is_finished()
    (trial,) = study.get_trials(deepcopy=False)
    assert trial_record(trial).state == "failed"
    assert trial_record(trial).error == f"{MOST_DEATHS} workers died while they ran it"


def test_interrupts_are_no_deaths(study, worker):
    study.set_user_attr(TARGET_TRIALS, 1)
    for _ in range(MOST_DEATHS + 1):
        victim = worker()
        assert victim.next().number == 0
        kill(victim)
        assert worker().give_back() == [0]
    assert states(study) == ["WAITING"]


def test_a_result_that_was_stored_is_not_scored_again(study, worker):
    """The worker died between storing its result and finishing the trial."""
    one, two = worker(), worker()
    lost = one.next()
    record = claimer.scored(lost)
    lost.set_user_attr(TRIAL, {**vars(record), "points": dict(record.points)})
    kill(one)
    again = two.next()
    assert again.number == 0
    found = scored_record(again)
    assert (found.metric, found.state) == (record.metric, "complete")


def test_a_verdict_of_a_dead_worker_does_not_stay(study, worker):
    """Optuna ignores a constraint that is set twice; the second worker's verdict counts."""
    one, two = worker(), worker()
    one.next().set_constraint("satisfied", 5.0)
    kill(one)
    again = two.next()
    store_record(again, replace(claimer.scored(again), margin=-1.5))
    assert study.get_trials()[0].constraints == {"satisfied": -1.5}


@pytest.mark.parametrize("claimed_again", [True, False])
def test_a_late_result_counts_once(study, worker, claimed_again):
    """A worker that was suspended was taken for dead, and comes back."""
    one, two = worker(), worker()
    slow = one.next()
    kill(one)
    two.give_back()
    again = two.next() if claimed_again else None
    store_record(slow, replace(claimer.scored(slow), metric=0.25))
    if again is not None:
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            finish(again)
    assert states(study) == ["COMPLETE"]
    assert trial_record(study.get_trials()[0]).metric == 0.25


@pytest.mark.parametrize("has_finished", [True, False])
def test_who_was_suspended_with_a_claim_leaves_it_to_the_next(study, worker, monkeypatch, has_finished):
    """Its lock and its trial went to another worker, which runs it or has run it."""
    monkeypatch.setattr(exclusion, "LONGEST_HOLD_S", 0.1)
    one, two = worker(), worker()
    completed, taken = one._completed, []

    def suspended(trial):
        kill(one)
        taken.append(two.next())
        if has_finished:
            finish(taken[0])
        return completed(trial)

    monkeypatch.setattr(one, "_completed", suspended)
    assert one.next() is None
    assert taken[0].number == 0
    assert states(study) == ["COMPLETE" if has_finished else "RUNNING"]
    assert study.trials[0].user_attrs[LEASE]["session"] == two._session.lease.session


def test_who_was_suspended_when_it_found_a_dead_worker_does_not_bury_the_next(study, worker, monkeypatch):
    monkeypatch.setattr(exclusion, "LONGEST_HOLD_S", 0.1)
    lost, one, two = worker(), worker(), worker()
    assert lost.next().number == 0
    kill(lost)
    bury, taken = one._bury, []

    def suspended(trial):
        taken.append(two.next())
        bury(trial)

    monkeypatch.setattr(one, "_bury", suspended)
    assert one.next().number == 1
    assert taken[0].number == 0
    assert study.trials[0].user_attrs[LEASE]["session"] == two._session.lease.session
    assert study.trials[0].user_attrs[DEATHS] == 1


def test_trials_of_others_are_let_be(study, worker):
    """Somebody's own trials, of other parameters, failed or pruned, count, and break nothing."""
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED))
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    study.enqueue_trial({"ratio/l0": 2.0})
    one = worker()
    queued, new = one.next(), one.next()
    assert (queued.number, new.number) == (2, 3)
    assert queued.params["ratio/l0"] == 2.0
    assert len(queued.params) == claimer.LAYERS
    finish(queued)
    finish(new)
    assert one.is_finished()
