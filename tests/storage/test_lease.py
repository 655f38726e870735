"""Who is taken for dead: judged by the watcher's clock alone."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime

import pytest
from optuna.trial import TrialState, create_trial

from autonuq import processes
from autonuq.records import LEASE
from autonuq.storage.lease import Heartbeat, Lease, LeaseWatch, WorkerSession

AFAR = Lease("far:1", "s1", machine="another machine", pid=1, since="5", interval_s=5.0)


def running(lease, number=0):
    trial = create_trial(state=TrialState.RUNNING)
    trial.number = number
    trial.user_attrs = {} if lease is None else {LEASE: lease.as_attribute()}
    trial.datetime_start = datetime.now()
    return trial


class Clock:
    now = 1e9

    def look(self, watch, trial, seconds):
        """Look every second, as a worker without work does, and return what the last look found."""
        for _ in range(seconds):
            self.now += 1
            found = numbers(watch.dead([trial]))
        return found

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    return LeaseWatch(clock)


def numbers(trials):
    return [trial.number for trial in trials]


def test_silence_is_death(watch, clock):
    assert not watch.dead([running(AFAR)])
    assert not clock.look(watch, running(AFAR), 24)
    assert clock.look(watch, running(AFAR), 2) == [0]


def test_who_could_not_look_counts_one_interval(watch, clock):
    """The server was away for everybody: nobody could beat, and nobody is dead."""
    assert not watch.dead([running(AFAR)])
    clock.now += 1000
    assert not watch.dead([running(AFAR)])
    assert not clock.look(watch, running(AFAR), 19)
    assert clock.look(watch, running(AFAR), 2) == [0]


def test_a_worker_that_vanishes_is_missed_within_a_minute_but_not_for_a_short_cut(watch, clock):
    """A cut of 30 s costs a beat's half interval and the new connection on top."""
    lease = replace(AFAR, interval_s=Lease.interval_s)
    assert not watch.dead([running(lease)])
    assert not clock.look(watch, running(lease), 50)
    assert clock.look(watch, running(lease), 10) == [0]


def test_a_beat_is_life(watch, clock):
    for beat in range(20):
        assert not watch.dead([running(replace(AFAR, beat=beat))])
        clock.now += 24


def test_a_worker_may_announce_longer_intervals(watch, clock):
    slow = replace(AFAR, interval_s=60.0)
    assert not watch.dead([running(slow)])
    assert not clock.look(watch, running(slow), 180)
    assert clock.look(watch, running(slow), 20) == [0]


def test_another_worker_starts_a_new_count(watch, clock):
    assert not watch.dead([running(AFAR)])
    clock.now += 24
    assert not watch.dead([running(replace(AFAR, session="s2"))])
    clock.now += 24
    assert not watch.dead([running(replace(AFAR, session="s2"))])


def test_a_trial_without_a_lease_has_the_same_time(watch, clock):
    """One that was just claimed, one of an earlier version, one that somebody asked for by hand."""
    assert not watch.dead([running(None)])
    assert clock.look(watch, running(None), 56) == [0]


def test_clocks_are_not_compared(watch, clock):
    """Start times of another host's clock, a century off, play no part."""
    trial = running(AFAR)
    trial.datetime_start = datetime(2126, 1, 1)
    assert not watch.dead([trial])
    trial.datetime_start = datetime(1926, 1, 1)
    clock.now += 20
    assert not watch.dead([trial])


@pytest.fixture(params=["as on this system", "without /proc"])
def system(request, monkeypatch, tmp_path):
    if request.param == "without /proc":
        monkeypatch.setattr(processes, "_PROC", tmp_path / "proc")
        monkeypatch.setattr("uuid.getnode", lambda: 0x0A0B0C0D0E0F)


def test_where_nothing_tells_machines_apart_only_beats_count(monkeypatch, tmp_path, watch):
    monkeypatch.setattr(processes, "_PROC", tmp_path / "proc")
    monkeypatch.setattr("uuid.getnode", lambda: 0x010203040506)  # made up, for it has the multicast bit
    with WorkerSession() as own:
        assert own.lease.machine == ""
        assert not watch.dead([running(replace(own.lease, session="other", since="1"))])


def test_on_one_machine_a_dead_process_is_seen_at_once(system, watch):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with WorkerSession() as own:
        since = processes.start_time(process.pid)
        lease = replace(own.lease, session="other", pid=process.pid, since=since)
        assert not watch.dead([running(lease)])
        assert watch.dead([running(replace(lease, since="1"))])  # its number was another process's before
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet collected by its parent
        assert watch.dead([running(lease)])
        process.wait()
        assert watch.dead([running(lease)])
        process.stdin.close()


def test_sessions_of_one_process_are_told_apart(watch):
    with WorkerSession() as first:
        assert not watch.dead([running(first.lease)])
        with WorkerSession() as second:
            pass
        assert watch.dead([running(second.lease)])
        assert not watch.dead([running(first.lease)])
    assert watch.dead([running(first.lease)])


def test_the_heartbeat_counts_up():
    beats = []
    with Heartbeat(lambda _, value: beats.append(value), replace(AFAR, interval_s=0.02)):
        while len(beats) < 3:
            pass
    count = len(beats)
    assert [entry["beat"] for entry in beats] == list(range(1, count + 1))
    assert {entry["session"] for entry in beats} == {"s1"}
