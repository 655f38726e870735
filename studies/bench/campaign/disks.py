"""A disk that is full, and files that may not grow, at every event; then there is room, and the study goes on.

Nothing may end without a message that names a file, and what to do; 'resume' must come to what an undisturbed run does.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from rows import Row
from victim import Ended, FileEvents, Victim, counted, limit_files, no_room, warm

CONFIRMED = '[confirm]\nclass = "evaluate.py:Other"\nevaluate_batch_num = 2\n'
EXPORT = ("export", "study.toml", "--format", "all", "-o", "nets/it")
COMMANDS = {
    "new": ("new", "made", "--model", "net.prototxt", "--weights", "net.caffemodel"),
    "config": ("config", "net.prototxt", "net.caffemodel", "-o", "config.json"),
    "report": ("report", "study.toml", "-o", "report.html"),
    "plot": ("plot", "study.toml", "layers", "-o", "layers.html"),
    "export": EXPORT,
}


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Try each way in turn until the time is up."""
    warm(folder)
    rng = random.Random(seed)
    attacks = [
        *(Event(folder / f"event-{storage}", rng, storage) for storage in ("journal", "sqlite")),
        *(Size(folder / f"size-{storage}", rng, storage) for storage in ("journal", "sqlite")),
        *(Mount(folder / f"mount-{storage}", rng, storage) for storage in ("journal", "sqlite")),
        Script(folder / "script", rng, "journal"),
        *(Command(folder / f"command-{name}", rng, name) for name in COMMANDS),
    ]
    chosen = [attack for attack in attacks if only in attack.name]
    rows = {attack: Row(attack.name) for attack in chosen}
    deadline = time.monotonic() + seconds
    for attack in cycle(chosen):
        if time.monotonic() > deadline:
            break
        found = attack.attempt()
        if found is None:
            rows[attack].notes = "not possible on this machine"
            continue
        rows[attack].tried += 1
        rows[attack].wrong.update(found)
    return [row for row in rows.values() if row.tried or row.notes]


class Attack:
    """A study that meets a full disk in one way; `_start` says how."""

    command = ("tune", "study.toml")

    def __init__(self, folder: Path, rng: random.Random, storage: str) -> None:
        self._folder, self._rng, self._storage = folder, rng, storage
        self._number, self._reference, self._moments = 0, None, iter(())
        self.name = f"disk, {folder.name}"

    def _victim(self) -> Victim:
        self._number += 1
        place = self._folder / str(self._number)
        url = f"sqlite:///{place}/study.db" if self._storage == "sqlite" else ""
        return Victim(place, url, more=CONFIRMED)

    def _moment(self, most: int) -> int:
        found = next(self._moments, None)
        if found is None:
            self._moments = iter(self._rng.sample(range(most), most))
            found = next(self._moments)
        return found

    def attempt(self) -> Counter[str] | None:
        """Fill the disk once, make room, resume, and return what went wrong."""
        if self._reference is None:
            self._prepare()
        victim = self._victim()
        ended = self._full(victim)
        if ended is None:
            return None
        wrong = self._judged(victim, ended)
        if wrong:
            (victim.folder / "WRONG").write_text(f"{dict(wrong)}\n{ended}\n")
        else:
            shutil.rmtree(victim.folder)
        return wrong

    def _prepare(self) -> None:
        victim = self._victim()
        self._events, ended = counted(
            lambda before: victim.start(*self.command, before=before), victim.folder / "events"
        )
        assert ended.code in (0, 9), ended.errors
        self._code = ended.code
        self._reference = victim.read()

    def _full(self, victim: Victim) -> Ended | None:
        raise NotImplementedError

    def _judged(self, victim: Victim, ended: Ended) -> Counter[str]:
        wrong = complaint(ended)
        before = victim.read() or {"trials": {}}
        again = victim.start("resume", "study.toml").wait()
        if again.code == 6 and "not found" in again.errors:
            again = victim.start("tune", "study.toml").wait()
        if again.code != self._code:
            wrong[f"resume ended with {again.code}: {again.errors[-200:]}"] += 1
            return +wrong
        after = victim.read()
        finished = {number: one for number, one in before["trials"].items() if one[0] == "complete"}
        wrong["finished trial lost or changed"] += sum(after["trials"].get(n) != one for n, one in finished.items())
        wrong["not what an undisturbed run gives"] += after != self._reference
        wrong[f"left behind: {victim.left_behind()}"] += bool(victim.left_behind())
        return +wrong


def complaint(ended: Ended) -> Counter[str]:
    """Return what is wrong with how something ended that met a full disk."""
    if ended.code in (0, 9):
        return Counter()  # the full moment did not come, or did not matter
    lines = [line for line in ended.errors.splitlines() if line.startswith("error:")]
    wrong = Counter()
    if ended.is_uncaught:
        wrong[f"ended with {ended.code}: {ended.errors.strip().splitlines()[-1:]}"] += 1
    elif ended.code not in (5, 6) or len(lines) != 1:
        wrong[f"ended with {ended.code} and says {lines}"] += 1
    elif lines[0].startswith("error: cannot") or not any(
        word in lines[0] for word in ("room", "resume", "--out", "must", "choose")
    ):
        wrong[f"names no file or no remedy: {lines[0]}"] += 1
    return wrong


def _full_from(moment: int, is_lasting: bool = True) -> Callable[[], None]:
    """Return what lets writes of a process fail: from a moment on, or at that one alone."""

    def before() -> None:
        events = FileEvents(moment)
        events.act_from(no_room, is_lasting)
        events.install()

    return before


class Event(Attack):
    """Each opening, renaming, flushing fails from the n-th on, or that one alone."""

    def _full(self, victim: Victim) -> Ended:
        before = _full_from(self._moment(self._events), self._rng.random() < 0.5)
        return victim.start(*self.command, before=before).wait()


class Size(Attack):
    """No file may become larger than so many bytes: writes fail in the middle."""

    def _full(self, victim: Victim) -> Ended:
        size = int(2 ** self._rng.uniform(10, 15))  # what it has to say goes into a file, too
        return victim.start(*self.command, before=limit_files(size)).wait()


class Mount(Attack):
    """A small file system of its own for the study's folder or for temporary files, for which one has to be root."""

    def _full(self, victim: Victim) -> Ended | None:
        place = victim.folder / self._rng.choice(["out", "out", "tmp"])
        place.mkdir(exist_ok=True)
        size = f"size={int(2 ** self._rng.uniform(3, 10))}k"
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "none", place], check=False, capture_output=True
        ).returncode:
            return None
        victim.mounted = place
        ended = victim.start(*self.command).wait()
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        return ended

    def _judged(self, victim: Victim, ended: Ended) -> Counter[str]:
        try:
            return super()._judged(victim, ended)
        finally:
            kept = victim.folder / "kept"
            shutil.copytree(victim.mounted, kept)
            subprocess.run(["umount", victim.mounted], check=True)


class Script(Attack):
    """A script of AMCT's, run again when there is room."""

    def _prepare(self) -> None:
        victim = self._victim()
        self._events, ended = counted(lambda before: victim.script(before), victim.folder / "events")
        assert ended.code == 0, ended.errors
        self._reference = victim.read("res/net_study")

    def _full(self, victim: Victim) -> Ended:
        before = _full_from(self._moment(self._events))
        return victim.script(before).wait()

    def _judged(self, victim: Victim, ended: Ended) -> Counter[str]:
        wrong = complaint(ended)
        again = victim.script().wait()
        wrong[f"script ended with {again.code}: {again.errors[-200:]}"] += again.code != 0
        if again.code == 0:
            wrong["not what an undisturbed run gives"] += victim.read("res/net_study") != self._reference
        wrong[f"left behind: {victim.left_behind()}"] += bool(victim.left_behind())
        return +wrong


class Command(Attack):
    """Another command, of a study that is finished."""

    def _prepare(self) -> None:
        self.command = COMMANDS[self._storage]
        victim = self._victim()
        victim.start("tune", "study.toml").wait()
        self._events, ended = counted(
            lambda before: victim.start(*self.command, before=before), victim.folder / "events"
        )
        assert ended.code == 0, ended.errors
        self._reference, self._finished = victim.read(), victim.folder

    def _victim(self) -> Victim:
        victim = super()._victim()
        if self._reference is not None:
            shutil.copytree(self._finished / "out", victim.folder / "out")
        return victim

    def _full(self, victim: Victim) -> Ended:
        before = _full_from(self._moment(self._events))
        return victim.start(*self.command, before=before).wait()

    def _judged(self, victim: Victim, ended: Ended) -> Counter[str]:
        wrong = complaint(ended)
        again = victim.start(*self.command).wait()
        wrong[f"again ended with {again.code}: {again.errors[-200:]}"] += again.code != 0 and ended.code != 0
        wrong[f"left behind: {victim.left_behind()}"] += bool(victim.left_behind())
        return +wrong
