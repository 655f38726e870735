"""A storage that is not there, goes away, cannot be written, or is removed: at the start and in the middle.

The study ends with one line that is true, and goes on when the storage is back.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from rows import Row
from victim import Child, Places, Victim, warm

KINDS = ("journal", "sqlite", "postgresql", "mysql", "redis", "grpc")
FILES = ("journal", "sqlite")
PAUSE_S = "0.2"


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Try every storage in every way, again and again until the time is up."""
    warm(folder)
    rng = random.Random(seed)
    tries = [
        (what, kind) for what in TRIES for kind in KINDS if what is unreachable or (kind in FILES) != (what is cut)
    ]
    tries = [one for one in tries if only in _name(*one)]
    tries.sort(key=lambda one: KINDS.index(one[1]))
    rows = {one: Row(_name(*one)) for one in tries}
    deadline = time.monotonic() + seconds
    with Places(folder) as places:
        for number, (what, kind) in enumerate(cycle(tries)):
            if time.monotonic() > deadline:
                break
            place = folder / str(number)
            url = places.url(kind, place)
            if url is None:
                continue
            rows[what, kind].tried += 1
            wrong = +what(kind, url, place, rng)
            rows[what, kind].wrong.update(wrong)
            if wrong:
                (place / "WRONG").write_text(f"{what.__name__}, {kind}: {dict(wrong)}")
            else:
                shutil.rmtree(place)
    return [row for row in rows.values() if row.tried]


def _name(what: Callable, kind: str) -> str:
    return f"storage {what.__name__.replace('_', ' ')}, {kind}"


def unreachable(kind: str, url: str, place: Path, _: random.Random) -> Counter[str]:
    """Name a server that is not there, or a file in a folder that is not."""
    elsewhere = {
        "journal": f"journal://{place}/no/where/study.journal",
        "sqlite": f"sqlite:///{place}/no/where/study.db",
    }.get(kind) or url.rpartition(":")[0] + ":9" + ("/test" if "sql" in kind else "")
    victim = Victim(place, elsewhere)
    wrong: Counter[str] = Counter()
    for command in ("tune", "resume", "status"):
        began = time.monotonic()
        ended = victim.start(command, "study.toml").wait(180)
        wrong[f"{command} ended with {ended.code}: {ended.errors[-200:]}"] += ended.code != 6 or ended.is_uncaught
        wrong[f"{command} took longer than 60 s"] += time.monotonic() - began > 60
    return wrong


def cut(kind: str, url: str, place: Path, rng: random.Random) -> Counter[str]:
    """Cut the link in the middle, for a second."""
    servers = __import__("bench_storages").servers
    port = int(
        url.partition("@")[2].partition("/")[0].rpartition(":")[2]
        if "@" in url
        else url.rpartition(":")[2].partition("/")[0]
    )
    stop, linked = _proxied(servers, port, rng.uniform(0.5, 4))
    victim = Victim(place, url.replace(f":{port}", f":{linked}"), f"cut-{place.name}-{time.monotonic_ns()}", trials=8)
    ended = victim.start("tune", "study.toml", VICTIM_PAUSE_S=PAUSE_S).wait(180)
    stop()
    return Counter({f"ended with {ended.code}: {ended.errors[-200:]}": ended.code != 0}) + _complete(
        victim, 8, url, linked, port
    )


def _proxied(servers, port: int, after_s: float):
    """Start a proxy in a process of its own, which cuts its connections once."""
    import json
    import os

    read, write = os.pipe()

    def serve() -> None:
        proxy = servers.Proxy(port)
        os.write(write, json.dumps(proxy.port).encode())
        os.close(write)
        time.sleep(after_s)
        proxy.cut()
        time.sleep(1)
        proxy.mend()
        time.sleep(300)

    folder = Path(servers.tempfile.mkdtemp())
    child = Child.start(serve, folder)
    os.close(write)
    number = int(os.read(read, 100))
    os.close(read)

    def stop() -> None:
        child.kill()
        child.wait()
        shutil.rmtree(folder)

    return stop, number


def _complete(victim: Victim, trials: int, url: str, linked: int, port: int) -> Counter[str]:
    study = victim.folder / "study.toml"
    study.write_text(study.read_text().replace(f":{linked}", f":{port}"))
    found = victim.read()
    wrong: Counter[str] = Counter()
    states = [one[0] for one in found["trials"].values()] if found else []
    wrong["trials are missing"] += states.count("complete") != trials or len(states) != trials
    plans = Counter(victim.calls())
    wrong["scored twice"] += sum(count > 1 for count in plans.values())
    return wrong


def _running(victim: Victim, rng: random.Random, finished: int) -> Child:
    child = victim.start("tune", "study.toml", VICTIM_PAUSE_S=PAUSE_S)
    deadline = time.monotonic() + 60
    while len(victim.calls()) < finished and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.3))
    return child


def removed(kind: str, url: str, place: Path, rng: random.Random) -> Counter[str]:
    """Delete the file while trials run."""
    victim = Victim(place, url)
    child = _running(victim, rng, 3)
    for file in place.glob("study.[jd]*"):
        file.unlink()
    ended = child.wait()
    said = "was removed meanwhile" in ended.errors and "is lost" not in ended.errors
    wrong = Counter(
        {f"ended with {ended.code}: {ended.errors[-200:]}": ended.code != 6 or ended.is_uncaught or not said}
    )
    for file in place.glob("study.[jd]*"):
        file.unlink()
    again = victim.start("tune", "study.toml").wait()
    wrong[f"tune after it ended with {again.code}: {again.errors[-200:]}"] += again.code != 0
    return wrong


def folder_removed(kind: str, url: str, place: Path, rng: random.Random) -> Counter[str]:
    """Delete the study's folder while trials run; the storage is elsewhere."""
    victim = Victim(place, url)
    child = _running(victim, rng, 3)
    shutil.rmtree(victim.out, ignore_errors=True)
    ended = child.wait()
    wrong = Counter({f"ended with {ended.code}: {ended.errors[-200:]}": ended.code not in (5, 6) or ended.is_uncaught})
    again = victim.start("resume", "study.toml").wait()
    wrong[f"resume after it ended with {again.code}: {again.errors[-200:]}"] += again.code != 0
    return wrong


def read_only(kind: str, url: str, place: Path, rng: random.Random) -> Counter[str]:
    """Let the file not be written any more, by a limit of the file system's: root may write all else."""
    victim = Victim(place, url)

    def limited() -> None:
        import errno
        import os
        import sys

        def refuse(name: str, arguments: tuple) -> None:
            is_writing = name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if is_writing and str(arguments[0]).endswith(".journal"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

        sys.addaudithook(refuse)
        if kind == "sqlite":
            import sqlite3

            connect = sqlite3.dbapi2.connect
            sqlite3.dbapi2.connect = lambda file, **named: connect(f"file:{file}?mode=ro", uri=True, **named)

    victim.start("tune", "study.toml").wait()
    ended = victim.start("resume", "study.toml", "--trials", "8", before=limited).wait()
    wrong = Counter({f"ended with {ended.code}: {ended.errors[-200:]}": ended.code != 6 or ended.is_uncaught})
    again = victim.start("resume", "study.toml", "--trials", "8").wait()
    wrong[f"resume after it ended with {again.code}: {again.errors[-200:]}"] += again.code != 0
    return wrong


TRIES = (unreachable, cut, removed, folder_removed, read_only)
