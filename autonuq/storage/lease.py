"""Who runs a trial, and whether that worker is alive.

A worker beats: it counts up in an attribute of its running trial. Another worker takes it for dead when the count has
stood still for several of the intervals that it announced, by the watcher's own clock, so that no two clocks are ever
compared; on the same machine it sees at once that the process is gone.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from autonuq.errors import StudyError
from autonuq.records import LEASE

FIRST_INTERVAL_S, LONGEST_INTERVAL_S = 5.0, 60.0
_MISSED = 3  # beats, before a worker counts as dead
_GRACE_S = 10.0  # on top, for a slow storage
_PROC = Path("/proc")  # Linux's
_RANDOM_ADDRESS = 1 << 40  # the multicast bit, see uuid.getnode

_sessions: set[str] = set()  # of this process, while they work


@dataclass(frozen=True)
class Lease:
    """A worker's claim on a trial, or on any.

    Attributes
    ----------
    worker : str
        host:pid, for people.
    session : str
        Random, one for each time that a worker goes to work.
    machine : str
        What process numbers are unique within: one boot of one machine, one container; one machine where start times
        are times of day. Empty if unknown.
    pid : int
    since : str
        When the process started, in the system's own unit: process numbers come back.
    beat : int
    interval_s : float
        The next beat comes within it.
    """

    worker: str
    session: str
    machine: str = ""
    pid: int = 0
    since: str = ""
    beat: int = 0
    interval_s: float = FIRST_INTERVAL_S

    def as_attribute(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class WorkerSession:
    """A worker at work, from `__enter__` to `__exit__`.

    Attributes
    ----------
    lease : Lease
    """

    def __init__(self) -> None:
        pid = os.getpid()
        name = f"{socket.gethostname()}:{pid}"
        self.lease = Lease(name, secrets.token_hex(8), _machine(), pid, _started(pid))

    def __enter__(self) -> WorkerSession:
        _sessions.add(self.lease.session)
        return self

    def __exit__(self, *_: object) -> None:
        _sessions.discard(self.lease.session)

    def holds(self, trial: FrozenTrial) -> bool:
        """Say whether the trial's lease is this session's."""
        return bool(trial.user_attrs.get(LEASE, {}).get("session") == self.lease.session)


class Heartbeat:
    """Beats for a trial in a thread of its own, from `__enter__` to `__exit__`.

    Notes
    -----
    **Cost**: a beat writes one attribute; the interval grows with the trial's time, from 5 to 60 seconds.
    """

    def __init__(self, trial: optuna.Trial, lease: Lease) -> None:
        self._trial, self._lease = trial, lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="autonuq heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_GRACE_S)

    def _beat(self) -> None:
        lease, started = self._lease, time.monotonic()
        while not self._stop.wait(lease.interval_s / 2):
            interval_s = min(max((time.monotonic() - started) / 4, FIRST_INTERVAL_S), LONGEST_INTERVAL_S)
            lease = replace(lease, beat=lease.beat + 1, interval_s=interval_s)
            with suppress(StudyError):  # out of reach; the worker itself will notice
                try:
                    self._trial.set_user_attr(LEASE, lease.as_attribute())
                except UpdateFinishedTrialError:
                    return


@dataclass
class LeaseWatch:
    """Finds the running trials whose worker is dead.

    Parameters
    ----------
    clock : callable
        Seconds; only differences count.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    def dead(self, running: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of the running trials whose worker is gone or has been silent for too long."""
        now = self.clock()
        seen: dict[int, tuple[object, float]] = {}
        found = []
        for trial in running:
            lease = trial.user_attrs.get(LEASE, {})
            mark = (lease.get("session"), lease.get("beat"))
            last, since = self._seen.get(trial.number, (None, now))
            since = since if last == mark else now
            seen[trial.number] = (mark, since)
            patience_s = _MISSED * lease.get("interval_s", FIRST_INTERVAL_S) + _GRACE_S
            if _is_gone(lease) or now - since > patience_s:
                found.append(trial)
        self._seen = seen
        return found


def works_here(trial: FrozenTrial) -> bool:
    """Say whether the worker of a running trial is a process of this machine and alive."""
    lease = trial.user_attrs.get(LEASE, {})
    return bool(lease.get("machine")) and lease["machine"] == _machine() and not _is_gone(lease)


def _is_gone(lease: Mapping[str, object]) -> bool:
    """Say whether the worker ran in this machine's processes and is there no more."""
    machine, pid = lease.get("machine"), int(str(lease.get("pid", 0)))
    if not machine or machine != _machine():
        return False
    if pid == os.getpid():
        return lease.get("session") not in _sessions
    return _started(pid) != lease.get("since")


def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return _machine_without_proc()


def _machine_without_proc() -> str:
    """Return the name and the network address; without an address each process has a random one, which has its bit."""
    address = uuid.getnode()
    return "" if address & _RANDOM_ADDRESS else f"{socket.gethostname()} {address:x}"


def _started(pid: int) -> str:
    """Return the start time of a process, empty if there is none or it only waits for its parent to notice."""
    if not _PROC.is_dir():
        return _started_without_proc(pid)
    try:
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _started_without_proc(pid: int) -> str:
    import psutil  # not installed on Linux

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.NoSuchProcess:
        return ""
