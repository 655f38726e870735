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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from autonuq.errors import StudyError
from autonuq.processes import machine, start_time
from autonuq.records import LEASE

INTERVAL_S = 15.0
"""How long a worker may be silent, in seconds; longer costs the others, shorter a plan of a host that comes back."""

_MISSED = 3  # intervals, before a worker counts as dead
_GRACE_S = 10.0  # on top, for a slow storage

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
    interval_s: float = INTERVAL_S

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
        self.lease = Lease(name, secrets.token_hex(8), machine(), pid, start_time(pid))

    def __enter__(self) -> WorkerSession:
        _sessions.add(self.lease.session)
        return self

    def __exit__(self, *_: object) -> None:
        _sessions.discard(self.lease.session)

    def holds(self, trial: FrozenTrial) -> bool:
        """Say whether the trial's lease is this session's."""
        return bool(trial.user_attrs.get(LEASE, {}).get("session") == self.lease.session)


class Heartbeat:
    """Beats for a trial, or for a study, in a thread of its own, from `__enter__` to `__exit__`.

    Parameters
    ----------
    write : callable
        Takes an attribute's name and value, and stores it.
    lease : Lease
    attribute : str

    Notes
    -----
    **Cost**: a beat writes one attribute, two in an interval.
    """

    def __init__(self, write: Callable[[str, Any], None], lease: Lease, attribute: str = LEASE) -> None:
        self._write, self._lease, self._attribute = write, lease, attribute
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="autonuq heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_GRACE_S)

    def _beat(self) -> None:
        lease = self._lease
        while not self._stop.wait(lease.interval_s / 2):
            lease = replace(lease, beat=lease.beat + 1)
            with suppress(StudyError):  # out of reach; the worker itself will notice
                try:
                    self._write(self._attribute, lease.as_attribute())
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
    _looked: float = 0.0
    _seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    def dead(self, running: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of the running trials whose worker is gone or has been silent for too long."""
        trials = {trial.number: trial for trial in running}
        return [trials[number] for number in self.silent({n: t.user_attrs.get(LEASE, {}) for n, t in trials.items()})]

    def silent(self, leases: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Return the keys of those leases whose holder is gone or has been silent for too long.

        Notes
        -----
        However long ago the last look was, it counts as one interval of silence: where this worker could not reach the
        storage, the others could not beat either.
        """
        now = self.clock()
        passed_s, self._looked = now - self._looked, now
        seen: dict[int, tuple[object, float]] = {}
        found = []
        for key, lease in leases.items():
            mark = (lease.get("session"), lease.get("beat"))
            interval_s = lease.get("interval_s", INTERVAL_S)
            last, silent_s = self._seen.get(key, (None, 0.0))
            silent_s = silent_s + min(passed_s, interval_s) if last == mark else 0.0
            seen[key] = (mark, silent_s)
            if _is_gone(lease) or silent_s > _MISSED * interval_s + _GRACE_S:
                found.append(key)
        self._seen = seen
        return found


def works_here(trial: FrozenTrial) -> bool:
    """Say whether the worker of a running trial is a process of this machine and alive."""
    lease = trial.user_attrs.get(LEASE, {})
    return bool(lease.get("machine")) and lease["machine"] == machine() and not _is_gone(lease)


def _is_gone(lease: Mapping[str, object]) -> bool:
    """Say whether the worker ran in this machine's processes and is there no more."""
    place, pid = lease.get("machine"), int(str(lease.get("pid", 0)))
    if not place or place != machine():
        return False
    if pid == os.getpid():
        return lease.get("session") not in _sessions
    return start_time(pid) != lease.get("since")
