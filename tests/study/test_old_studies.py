"""Studies that version 0.1.0 left behind, finished and unfinished ones, go on as they were."""

import json
import shutil
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autonuq.records import MARGIN_ERROR
from autonuq.study.locate import load_study

GOLDEN = Path(__file__).parent.parent / "golden" / "studies"
STUDIES = {"journal": 12, "sqlite": 11, "raced": 43}
"""Name, and how many trials it is resumed to."""


@pytest.fixture
def folder(tmp_path):
    """Copy the studies and return where they are."""
    return shutil.copytree(GOLDEN, tmp_path / "studies")


def opened(folder, name):
    out = folder / "out" / name
    return load_study(name, f"sqlite:///{out}/study.db" if name == "sqlite" else f"journal://{out}/study.journal")


def preparation_of(folder, name):
    """Return when each file of the calibration was written; the points are among them."""
    files = (folder / "out" / name / "calibration").rglob("*")
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.mark.parametrize(("name", "total"), STUDIES.items(), ids=STUDIES)
def test_an_old_study_is_resumed(folder, run_in, name, total):
    before, prepared = opened(folder, name).optuna.get_trials(), preparation_of(folder, name)
    finished = [trial for trial in before if trial.state.is_finished()]
    ended = run_in(folder, "resume", f"{name}.toml", "--trials", total)
    assert ended.returncode == 0, ended.stderr
    assert ("warning: 'search.racing' was taken out" in ended.stderr) == (name == "raced")
    stages = {line.split()[0] for line in ended.stderr.splitlines() if line[:1].isalpha()}
    assert "trial" in stages and not stages & {"baseline", "calibration", "curves", "float"}
    assert preparation_of(folder, name) == prepared
    after = opened(folder, name)
    assert after.optuna.get_trials()[: len(finished)] == finished
    assert [trial.state for trial in after.record().trials] == ["complete"] * total
    scored = [tuple(trial.points.items()) for trial in after.record().trials if "copy" not in trial.origin]
    assert len(set(scored)) == len(scored)
    log = (folder / "out" / name / f"{name}.log").read_text().splitlines()
    assert sum(" ratio " in line for line in log) == total - len(finished)


def test_the_interrupted_trial_runs_with_its_plan(folder, run_in):
    (waiting,) = opened(folder, "journal").optuna.get_trials(states=[TrialState.WAITING])
    assert run_in(folder, "resume", "journal.toml", "--trials", 7).returncode == 0
    found = opened(folder, "journal").optuna.get_trials()[waiting.number]
    assert (found.params, found.state) == (waiting.params, TrialState.COMPLETE)


@pytest.mark.parametrize(
    ("name", "complete", "satisfied", "best", "ratio", "metric"),
    [
        ("journal", 6, 4, 4, 12.074534161490684, 0.7395833333333334),
        ("sqlite", 8, 3, 2, 7.018050541516246, 0.8020833333333334),
        ("raced", 40, 20, 8, 15.428571428571429, 0.7239583333333334),
    ],
)
def test_the_status_of_an_old_study(folder, run_in, name, complete, satisfied, best, ratio, metric):
    ended = run_in(folder, "status", f"{name}.toml", "--json")
    found = json.loads(ended.stdout)
    assert found["trials"] == {"complete": complete, "satisfied": satisfied, "failed": 0, "running": 0}
    assert {key: found["best"][key] for key in ("trial", "ratio", "metric")} == {
        "trial": best,
        "ratio": ratio,
        "metric": metric,
    }
    assert "partial" not in found


def test_trials_that_were_stopped_on_a_part_are_read_as_estimates(folder):
    estimated = [trial for trial in opened(folder, "raced").record().trials if trial.margin_error is not None]
    assert [trial.number for trial in estimated] == [15, 25, 32]
    for trial in estimated:
        assert trial.state == "complete" and not trial.satisfied and trial.margin > 0 and trial.margin_error > 0
        assert "estimated" in trial.summary


def test_a_copy_of_an_estimated_trial_is_an_estimate(folder, run_in):
    study = opened(folder, "raced")
    study.optuna.enqueue_trial(study.optuna.trials[15].params)
    assert run_in(folder, "resume", "raced.toml", "--trials", 41).returncode == 0
    stopped, copy = (study.record().trials[number] for number in (15, 40))
    assert (copy.origin, copy.margin, copy.margin_error) == ("copy of 15", stopped.margin, stopped.margin_error)
    assert study.optuna.trials[40].user_attrs[MARGIN_ERROR] == stopped.margin_error
