"""Clocks that jump by hours and days, and time zones that change: no trial may be lost or run twice for it."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from rows import Row
from victim import Victim, warm

JUMPS_S = {"an hour back": -3600.0, "an hour on": 3600.0, "a day back": -86400.0, "a day on": 86400.0}
ZONES = ("Pacific/Auckland", "America/Anchorage", "UTC", "Asia/Kolkata")
TRIALS = 8


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Let the clock of one of two workers jump while both are at work."""
    warm(folder)
    rng = random.Random(seed)
    kinds = [*JUMPS_S, "another time zone"]
    rows = {(kind, storage): Row(f"clock, {kind}, {storage}") for kind in kinds for storage in ("journal", "sqlite")}
    rows = {key: row for key, row in rows.items() if only in row.name}
    deadline = time.monotonic() + seconds
    for number, ((kind, storage), row) in enumerate(cycle(rows.items())):
        if time.monotonic() > deadline:
            break
        place = folder / str(number)
        row.tried += 1
        wrong = +_tried(kind, storage, place, rng)
        row.wrong.update(wrong)
        if wrong:
            (place / "WRONG").write_text(f"{kind}: {dict(wrong)}")
        else:
            shutil.rmtree(place)
    return [row for row in rows.values() if row.tried]


def _tried(kind: str, storage: str, place: Path, rng: random.Random) -> Counter[str]:
    url = f"sqlite:///{place}/study.db" if storage == "sqlite" else f"journal://{place}/study.journal"
    victim = Victim(place, url, trials=TRIALS)
    jump = (
        _zone(rng.choice(ZONES), rng.uniform(0, 3)) if kind not in JUMPS_S else _jump(JUMPS_S[kind], rng.uniform(0, 3))
    )
    before = [jump, None]
    rng.shuffle(before)
    first = victim.start("tune", "study.toml", before=before[0], VICTIM_PAUSE_S="0.2")
    second = victim.start("work", "study.toml", "--wait", "60", before=before[1], VICTIM_PAUSE_S="0.2")
    wrong: Counter[str] = Counter()
    for child in (first, second):
        ended = child.wait()
        wrong[f"ended with {ended.code}: {ended.errors[-200:]}"] += ended.code != 0
    found = victim.read()
    states = Counter(one[0] for one in found["trials"].values()) if found else Counter()
    wrong["trials are missing, or too many"] += states != {"complete": TRIALS}
    plans = Counter(victim.calls())
    wrong["scored twice"] += sum(count > 1 for count in plans.values())
    return wrong


def _jump(seconds: float, after_s: float) -> Callable[[], None]:
    """Return what lets the wall clock of a process jump after some seconds; the monotonic one goes on."""

    def before() -> None:
        import datetime as module

        at, real = time.monotonic() + after_s, time.time
        zone_now = module.datetime.now

        def off() -> float:
            return seconds if time.monotonic() > at else 0.0

        class Jumping(module.datetime):
            @classmethod
            def now(cls, tz=None):
                return zone_now(tz) + module.timedelta(seconds=off())

        time.time = lambda: real() + off()
        from autonuq.study import runner

        runner.datetime = Jumping

    return before


def _zone(name: str, after_s: float) -> Callable[[], None]:
    """Return what changes the time zone of a process after some seconds."""

    def before() -> None:
        import threading

        def change() -> None:
            time.sleep(after_s)
            os.environ["TZ"] = name
            time.tzset()

        threading.Thread(target=change, daemon=True).start()

    return before
