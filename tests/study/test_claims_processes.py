"""Several processes on one study, on every storage: each plan is scored once, and what a killed one ran is found."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from autonuq.records import TARGET_TRIALS
from autonuq.storage.open import open_storage
from autonuq.study.locate import load_study

TRIALS = 40
WORKERS = 4


def start(url, name, log, pause_s=0.0, dies_at=0):
    command = [sys.executable, str(Path(__file__).parent / "claimer.py"), url, name, str(log)]
    return subprocess.Popen([*command, str(pause_s), str(dies_at)], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "storage_url",
    [
        "journal",
        pytest.param("sqlite", marks=pytest.mark.slow),
        pytest.param("postgresql", marks=pytest.mark.postgres),
        pytest.param("mysql", marks=pytest.mark.slow),
        pytest.param("redis", marks=pytest.mark.slow),
        pytest.param("grpc", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_every_trial_is_run_once(storage_url, tmp_path):
    name = tmp_path.name
    study = open_storage(storage_url).create(name)
    study.set_user_attr(TARGET_TRIALS, TRIALS)
    log = tmp_path / "scored.log"
    workers = [start(storage_url, name, log, pause_s=0.01, dies_at=(index == 0) * 3) for index in range(WORKERS)]
    errors = [worker.communicate(timeout=100)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [-9, 0, 0, 0], errors

    trials = load_study(name, storage_url).optuna.get_trials(deepcopy=False)
    finished = [trial.number for trial in trials if trial.state.is_finished()]
    assert finished == list(range(TRIALS))
    plans = Counter(line.split(" ", 1)[1] for line in log.read_text().splitlines())
    assert max(plans.values()) == 1  # nobody scored what another ran or had scored
    assert len(plans) == TRIALS  # nor proposed it again
