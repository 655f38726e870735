"""A study on a real PostgreSQL: workers die, the server restarts, and nothing is lost or done twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from autonuq.study.locate import load_study

pytestmark = pytest.mark.postgres

TRIALS, WORKERS = 40, 8
CLI = [sys.executable, "-c", "from autonuq.cli import main; main()"]


def start(study, *arguments):
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*CLI, arguments[0], str(study), *arguments[1:]], cwd=study.parent, text=True, **pipes)


def test_eight_workers_two_killed_and_a_restart(logging_study, postgresql, monkeypatch):
    monkeypatch.setenv("PAUSE_S", "0.3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    log = logging_study.parent / "calls.log"

    def scored():
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(pid), weights) for pid, name, weights in lines if name == "model.prototxt"]

    def wait_until(condition):
        deadline = time.monotonic() + 80
        while not condition():
            assert time.monotonic() < deadline, [worker.poll() for worker in workers]
            time.sleep(0.05)

    options = ["--storage", postgresql.url]
    workers = [start(logging_study, "tune", "--trials", str(TRIALS), *options)]
    wait_until(scored)  # the first one has prepared the study
    workers += [start(logging_study, "work", *options) for _ in range(WORKERS - 1)]
    wait_until(lambda: len({pid for pid, _ in scored()}) >= 4)
    victims = [worker for worker in workers[1:] if worker.pid in {pid for pid, _ in scored()}][:2]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    postgresql.stop()
    workers.append(start(logging_study, "work", *options))  # finds nobody there
    time.sleep(6)
    postgresql.start()
    messages = {worker: worker.communicate(timeout=80)[1] for worker in workers}
    codes = {worker: worker.returncode for worker in workers}
    assert [codes[worker] for worker in victims] == [-9, -9]
    failed = {worker.pid: messages[worker] for worker in workers if worker not in victims and codes[worker] != 0}
    assert not failed

    trials = load_study("tiny", postgresql.url).record().trials
    finished = [trial for trial in trials if trial.state in ("complete", "failed")]
    assert [trial.number for trial in finished] == list(range(TRIALS))
    assert {trial.state for trial in finished} == {"complete"}
    plans = {tuple(trial.points.items()) for trial in finished}
    dead = {victim.pid for victim in victims}
    survivors = Counter(weights for pid, weights in scored() if pid not in dead)
    assert max(survivors.values()) == 1
    assert len({weights for _, weights in scored()}) == len(plans)
    # What a killed worker had begun was run by another, unless its result had been stored.
    begun = [weights for pid, weights in scored() if pid in dead]
    assert max(Counter(begun).values()) == 1
    assert (logging_study.parent / "out/tiny/tiny.nuq").exists()
