"""Trials that another program made in the storage, or whose record is damaged, count for nothing and are named."""

import json
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autonuq.records import CONSTRAINT, LEASE, LOSS_ERROR, PLAN, TRIAL
from autonuq.report.page import build_page
from autonuq.study.locate import open_study
from autonuq.study.run import StudyRun
from autonuq.study.trials import FOREIGN


def some(cases):
    """Return the values of a dict for `parametrize`: every sixth in the default tests, all of them in the slow ones."""
    slow = pytest.mark.slow
    return [pytest.param(case, marks=() if index % 6 == 0 else slow) for index, case in enumerate(cases.values())]


def own_parameters(study):
    return next(trial.params for trial in study.optuna.get_trials() if trial.params)


def add_with_own_parameters(study, **more):
    some = next(trial for trial in study.optuna.get_trials() if trial.params)
    study.optuna.add_trial(create_trial(params=some.params, distributions=some.distributions, **more))


def optimize(study):
    study.optuna.optimize(lambda trial: 1.0, n_trials=1)


def ask_and_leave(study):
    study.optuna.ask().suggest_float("x", 0, 1)


def ask_and_tell_with_own_parameters(study):
    trial = study.optuna.ask()
    for name, value in own_parameters(study).items():
        trial.suggest_float(name, value * 0.9, value * 1.1, log=True)
    study.optuna.tell(trial, 99.0)


FOREIGN_TRIALS = {
    "optimize": optimize,
    "fails": lambda study: study.optuna.tell(study.optuna.ask(), state=TrialState.FAIL),
    "pruned": lambda study: study.optuna.tell(study.optuna.ask(), state=TrialState.PRUNED),
    "ask alone": ask_and_leave,
    "queued with others": lambda study: study.optuna.enqueue_trial({"x": 1.0}),
    "queued with words": lambda study: study.optuna.enqueue_trial(dict.fromkeys(own_parameters(study), "many")),
    "added": lambda study: study.optuna.add_trial(create_trial(value=50.0)),
    "added with a text": lambda study: study.optuna.add_trial(create_trial(value=1.0, user_attrs={TRIAL: "mine"})),
    "added as ours": lambda study: add_with_own_parameters(study, value=1e6),
    "asked as ours": ask_and_tell_with_own_parameters,
    "waits as ours": lambda study: add_with_own_parameters(study, state=TrialState.WAITING),
    "with odd attributes": lambda study: study.optuna.add_trial(
        create_trial(value=2.0, user_attrs={LEASE: [1], "a": {"b": None}}, system_attrs={PLAN: "x"})
    ),
}


@pytest.mark.parametrize("make", some(FOREIGN_TRIALS), ids=FOREIGN_TRIALS)
def test_a_foreign_trial_is_ignored_by_everything(task, make):
    task = replace(task, n_trials=3)
    study = StudyRun(task).run(exists=False)
    before = study.record()
    make(study)
    record = study.record()
    assert record.trials == before.trials and record.best == before.best and record.counts == before.counts
    assert list(record.ignored) == [3]
    after = StudyRun(replace(task, n_trials=5)).run(exists=True).record()
    assert [trial.state for trial in after.trials] == ["complete"] * 5
    assert [trial.number for trial in after.trials] == [0, 1, 2, 4, 5]
    assert after.trials[:3] == tuple(
        replace(one, probability=two.probability, scatter=two.scatter)
        for one, two in zip(before.trials, after.trials, strict=False)
    )
    assert "Not counted" in build_page(after)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_optunas_samplers_do_not_see_foreign_trials(task, sampler):
    """One of Optuna's own may take a seed that waits; it is made up for."""
    task = replace(task, n_trials=3, sampler=sampler)
    study = StudyRun(task).run(exists=False)
    for make in FOREIGN_TRIALS.values():
        make(study)
    after = StudyRun(replace(task, n_trials=8)).run(exists=True).record()
    assert [trial.state for trial in after.trials[:8]] == ["complete"] * 8
    assert len(after.ignored) >= len(FOREIGN_TRIALS) - 2  # one that was queued may have been taken by another


def test_a_trial_that_was_queued_with_parameters_of_the_study_is_run(task):
    study = StudyRun(replace(task, n_trials=3)).run(exists=False)
    study.optuna.enqueue_trial(own_parameters(study))
    after = StudyRun(replace(task, n_trials=4)).run(exists=True).record()
    assert after.trials[3].state == "complete" and not after.ignored


def test_one_of_ours_that_another_program_finished_is_run_again_under_another_number(task):
    study = StudyRun(replace(task, n_trials=3)).run(exists=False)
    study.optuna.enqueue_trial(own_parameters(study))
    study.optuna.optimize(lambda trial: 1.0, n_trials=1)
    after = StudyRun(replace(task, n_trials=4)).run(exists=True).record()
    assert len(after.trials) == 4 and after.ignored == {3: FOREIGN}


def rewritten(task, change):
    """Change every entry of the study's journal by a function, and return the study."""
    path = task.out / "study.journal"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return open_study(task.name, task.storage)


CHANGES = {
    "a metric": lambda data: {**data, "metric": data["metric"] + 0.01},
    "a verdict": lambda data: {**data, "satisfied": not data["satisfied"]},
    "a plan": lambda data: {**data, "points": dict.fromkeys(data["points"], 1)},
    "no field": lambda data: {key: value for key, value in data.items() if key != "loss_error"},
    "a list": lambda data: [data],
    "none": lambda data: None,
    "a number": lambda data: 1e308,
    "a huge one": lambda data: {**data, "size_bytes": 10**400},
    "NaN": lambda data: {**data, "ratio": float("nan")},
    "no time": lambda data: {**data, "started": "conv1"},
    "an endless one": lambda data: {**data, "duration_s": 1e300},
}


@pytest.mark.parametrize("digest", [True, False], ids=["new", "of an earlier version"])
@pytest.mark.parametrize("change", some(CHANGES), ids=CHANGES)
def test_a_damaged_record_is_ignored_and_its_trial_made_up_for(task, change, digest):
    task = replace(task, n_trials=4, storage=f"journal://{task.out}/study.journal")
    StudyRun(task).run(exists=False)

    def damage(entry):
        attribute = entry.get("user_attr", {})
        if TRIAL not in attribute:
            return
        data = {key: value for key, value in attribute[TRIAL].items() if digest or key != "digest"}
        attribute[TRIAL] = change(data) if entry["trial_id"] == 2 else data

    damaged = rewritten(task, damage).record()
    is_seen = 2 in damaged.ignored
    assert is_seen or (not digest and change in (CHANGES["a metric"], CHANGES["no field"]))
    after = StudyRun(task).run(exists=True).record()
    assert len(after.trials) == 4 and all(trial.state == "complete" for trial in after.trials)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(values=[99.0]) if entry.get("state") == 1 else None,
        lambda entry: entry.update(values=None) if entry.get("state") == 1 else None,
        lambda entry: entry.update(state=3) if entry.get("state") == 1 else None,
        lambda entry: (
            entry["system_attr"].update({f"constraints:{CONSTRAINT}": -6.5})
            if f"constraints:{CONSTRAINT}" in entry.get("system_attr", {})
            else None
        ),
        lambda entry: entry.update(user_attr={LOSS_ERROR: 0.5}) if LOSS_ERROR in entry.get("user_attr", {}) else None,
        lambda entry: entry.update(params={key: 10**400 for key in entry["params"]}) if entry.get("params") else None,
    ],
    ids=["value", "no value", "state", "constraint", "error", "parameters"],
)
def test_what_optuna_holds_must_go_with_the_record(task, change):
    task = replace(task, n_trials=3, storage=f"journal://{task.out}/study.journal")
    whole = StudyRun(task).run(exists=False).record()
    record = rewritten(task, change).record()
    assert record.ignored or record.trials == whole.trials


def test_optuna_still_sees_all_trials(task):
    study = StudyRun(replace(task, n_trials=3)).run(exists=False)
    optimize(study)
    assert len(study.optuna.trials) == 4 and isinstance(study.optuna, optuna.Study)
