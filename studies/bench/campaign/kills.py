"""SIGKILL at every event: files written, renamed, flushed, deleted; statements; operations of the storage.

The study is then resumed, which must end well: finished trials as they were, none scored again, the others and the best
those of a run that nobody disturbed, and nothing left behind.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from rows import Row
from victim import Child, FileEvents, Places, Victim, counted, warm

ISOLATED = "timeout = 60\n"
CONFIRMED = '[confirm]\nclass = "evaluate.py:Other"\nevaluate_batch_num = 2\n'

# Mode -> the storages that it is tried with.
EVERY = ("journal", "sqlite", "postgresql", "mysql", "redis", "grpc")
MODES = {
    "tune": EVERY,
    "resume": EVERY,
    "beside": ("journal", "sqlite", "postgresql", "redis", "grpc"),
    "jobs": ("journal", "sqlite", "postgresql"),
    "isolated": ("journal", "sqlite"),
    "confirmation": ("journal", "postgresql"),
    "export": ("journal",),
    "script": ("journal",),
}

KILLED = {"resume": 2, "jobs": 2}
"""Workers that die; one elsewhere."""
SLOW, SLOW_TURNS = ("jobs", "isolated"), 5
"""Modes that start interpreters, and so have a moment in each fifth turn only."""


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Try moments, spread over modes and storages, until the time is up."""
    warm(folder)
    rng = random.Random(seed)
    pairs = [(mode, storage) for mode, storages in MODES.items() for storage in storages]
    pairs = [pair for pair in pairs if only in f"{pair[0]}, {pair[1]}"]
    pairs.sort(key=lambda pair: (EVERY.index(pair[1]), pair[0] in SLOW))  # what costs least to start comes first
    deadline = time.monotonic() + seconds
    with Places(folder) as places:
        attacks = [Attack(mode, storage, places, folder, rng) for mode, storage in pairs]
        for turn, attack in ((turn, attack) for turn in count() for attack in attacks):
            if time.monotonic() > deadline:
                break
            if not turn % (SLOW_TURNS if attack.mode in SLOW else 1):
                attack.attempt()
    return [attack.row for attack in attacks if attack.row.tried]


class Attack:
    """One mode on one storage: knows how an undisturbed run ends, and how many events it has."""

    def __init__(self, mode: str, storage: str, places: Places, folder: Path, rng: random.Random) -> None:
        self.mode, self.storage, self._places, self._rng = mode, storage, places, rng
        self.row = Row(f"kill, {mode}, {storage}")
        self._folder = folder / f"{mode}-{storage}"
        self._number = 0
        self._reference: dict | None = None
        self._events = 0
        self._moments: Iterator[int] = iter(())

    def attempt(self) -> None:
        """Kill at one moment, resume, and count what went wrong; do nothing where there is no such server."""
        if self._places.url(self.storage, self._folder) is None:
            return
        if self._reference is None:
            self._undisturbed()
        moment = next(self._moments, None)
        if moment is None:
            moments = self._rng.sample(range(self._events), self._events)
            self._moments = iter(moments)
            moment = next(self._moments)
        victim = self._victim()
        wrong = getattr(self, f"_{self.mode}")(victim, moment)
        if wrong:
            (victim.folder / "WRONG").write_text(f"event {moment}: {dict(wrong)}\n")
        else:
            shutil.rmtree(victim.folder)
        self.row.tried += 1
        self.row.wrong.update(wrong)

    def _victim(self) -> Victim:
        self._number += 1
        place = self._folder / str(self._number)
        name = f"{self.mode}{self._number}-{os.getpid()}"
        return Victim(
            place,
            "" if self.mode == "script" else self._places.url(self.storage, place) or "",
            name,
            more=CONFIRMED if self.mode == "confirmation" else "",
            evaluator_more=ISOLATED if self.mode == "isolated" else "",
        )

    def _undisturbed(self) -> None:
        victim = self._victim()
        file = victim.folder / "events"
        if self.mode == "script":
            self._events, ended = counted(lambda before: victim.script(before), file)
        else:
            self._events, ended = counted(lambda before: victim.start("tune", "study.toml", before=before), file)
        assert ended.code in (0, 9), ended.errors
        self._code, self._reference = ended.code, victim.read(self._place(victim))
        if self.mode == "export":
            self._events, ended = counted(lambda before: victim.start(*_EXPORT, before=before), file)
            assert ended.code == 0, ended.errors
        shutil.rmtree(victim.folder)

    def _place(self, victim: Victim) -> str:
        return "res/net_study" if self.mode == "script" else "study.toml"

    def _tune(self, victim: Victim, moment: int) -> Counter[str]:
        victim.start("tune", "study.toml", before=_killing(moment)).wait()
        return self._judged(victim)

    _isolated = _confirmation = _tune

    def _resume(self, victim: Victim, moment: int) -> Counter[str]:
        victim.start("tune", "study.toml", before=_killing(self._rng.randrange(self._events))).wait()
        before = victim.read()
        if before is not None:
            victim.start("resume", "study.toml", before=_killing(moment // 2)).wait()
        return self._judged(victim, before)

    def _beside(self, victim: Victim, moment: int) -> Counter[str]:
        """Kill a worker beside another one, which goes on."""
        first = victim.start("tune", "study.toml", VICTIM_PAUSE_S="0.05")
        victim.start("work", "study.toml", "--wait", "60", before=_killing(moment // 2), VICTIM_PAUSE_S="0.05").wait()
        ended = first.wait()
        wrong = Counter({f"tune ended with {ended.code}": 1}) if ended.code != self._code else Counter()
        return wrong + self._judged(victim, is_ordered=False)

    def _jobs(self, victim: Victim, moment: int) -> Counter[str]:
        """Kill the first process, or one of its workers, at any time."""
        first = victim.start("tune", "study.toml", "--jobs", "2", VICTIM_PAUSE_S="0.05")
        time.sleep(8.0 * moment / self._events)
        workers = _children(first)
        own = self._rng.choice([first.pid, *workers])
        with suppress(ProcessLookupError):
            os.kill(own, signal.SIGKILL)
        first.wait()
        for worker in workers:  # they end with their parent
            _await_end(worker)
        return self._judged(victim, is_ordered=False)

    def _export(self, victim: Victim, moment: int) -> Counter[str]:
        victim.start("tune", "study.toml").wait()
        victim.start(*_EXPORT, before=_killing(moment)).wait()
        ended = victim.start(*_EXPORT).wait()
        wrong = Counter({f"export ended with {ended.code}": 1}) if ended.code != 0 else Counter()
        return wrong + self._judged(victim)

    def _script(self, victim: Victim, moment: int) -> Counter[str]:
        victim.script(_killing(moment)).wait()
        called = len(victim.calls())
        ended = victim.script().wait()
        wrong = Counter({f"script ended with {ended.code}": 1}) if ended.code != 0 else Counter()
        return wrong + self._compared(victim, None, True, called)

    def _judged(self, victim: Victim, before: dict | None = None, *, is_ordered: bool = True) -> Counter[str]:
        """Resume and return what is not as it must be."""
        before = before or victim.read()
        called = len(victim.calls())
        ended = victim.start("resume", "study.toml").wait()
        if ended.code == 6 and "not found" in ended.errors:
            ended = victim.start("tune", "study.toml").wait()
        wrong: Counter[str] = Counter()
        if ended.code != self._code or ended.is_uncaught:
            wrong[f"resume ended with {ended.code}: {ended.errors.strip().splitlines()[-1:]}"] += 1
            return wrong
        return self._compared(victim, before, is_ordered, called)

    def _compared(self, victim: Victim, before: dict | None, is_ordered: bool, called: int = 0) -> Counter[str]:
        wrong: Counter[str] = Counter()
        after = victim.read(self._place(victim))
        finished = {n: one for n, one in ((before or {}).get("trials") or {}).items() if one[0] == "complete"}
        wrong["finished trial lost or changed"] += sum(after["trials"].get(n) != one for n, one in finished.items())
        wrong["trials missing"] += sum(one[0] != "complete" for one in after["trials"].values())
        wrong["wrong number of trials"] += len(after["trials"]) != len(self._reference["trials"])
        if is_ordered and self.storage != "grpc":
            wrong["other trials"] += after["trials"] != self._reference["trials"]
        if is_ordered:
            wrong["another best"] += after["best"] != self._reference["best"]
        calls = victim.calls()
        again = sum(count > 1 for count in Counter(calls[called:]).values())
        repeated = len(calls) - len(set(calls)) - KILLED.get(self.mode, 1)  # each killed worker may have been at one
        wrong["scored again by a live worker"] += max(again, repeated, 0)
        wrong[f"left behind: {victim.left_behind()}"] += bool(victim.left_behind())
        return +wrong


_EXPORT = ("export", "study.toml", "--format", "caffe", "--format", "packed", "--format", "onnx", "-o", "nets/it")


def _killing(moment: int) -> Callable[[], None]:
    return lambda: FileEvents(moment).install()


def _children(child: Child) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == child.pid and int(stat.parent.name) != child.pid:
                found.append(int(stat.parent.name))
    return found


def _await_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
