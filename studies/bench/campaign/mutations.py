"""Damaged files: every parser there is gets thousands, and each is either read or refused in one short line.

A module beside this one that is named in `MODULES` exports `PARSERS`, a list of `Parser`:

    Parser("mean .npy", ".npy", originals=lambda folder: [a_mean()], read=lambda path: load_mean(str(path)))

Case i of a seed is always the same file. Cases run in a forked child, hundreds in one, under a limit of memory and of
time; a child that dies is told by the case it died of, and the next one goes on behind it. The first files of every
kind of failure stay in the folder, with the traceback beside them. Linux only: peaks of memory are read from /proc.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from mutators import BYTES, Mutator, damaged
from rows import Row

from autonuq.errors import AutonuqError

MODULES = ("mutations_files", "mutations_graph", "mutations_study")
MAX_SECONDS = 3.0
"""Of CPU time, for one file."""
MAX_PEAK_BYTES = 200 << 20
"""Beyond the file's own size."""
MAX_MESSAGE = 600
"""Characters of an error's one line, without the path of the file."""

_ROOM_BYTES = 1 << 30  # of addresses: who asks for more gets a MemoryError, which counts as a failure
_BATCH = 500  # cases of one child
_PATIENCE_S = 60.0  # of the clock: a child that says nothing for so long is stuck
_KEPT = 3  # files of each kind of failure


@dataclass(frozen=True)
class Parser:
    """Something that reads a file.

    Parameters
    ----------
    name : str
        Of the table's row.
    suffix : str
        Of the file.
    originals : callable
        Makes good files' bytes; gets an empty folder, which is the one that the damaged file will lie in, and may put
        there what has to lie beside it. More than one make splices interesting.
    read : callable
        Takes the path; does with the file what a command does, values included.
    mutators : sequence of callable
        Beside `BYTES`, or in their place if `only_own`.
    expected : tuple of exception classes
    mend : callable, optional
        Makes checksums right again: half of the files go through it.
    names_file : bool
        Whether a message must hold the file's name.
    """

    name: str
    suffix: str
    originals: Callable[[Path], Sequence[bytes]]
    read: Callable[[Path], object]
    mutators: Sequence[Mutator] = ()
    only_own: bool = False
    expected: tuple[type[BaseException], ...] = (AutonuqError,)
    mend: Callable[[bytes], bytes] | None = None
    names_file: bool = True

    def case(self, originals: Sequence[bytes], seed: int, index: int) -> bytes:
        """Return the damaged file of a number."""
        rng = Random(f"{seed}:{self.name}:{index}")
        ways = (*self.mutators, *(() if self.only_own else BYTES))
        data = damaged(rng, rng.choice(originals), rng.choice(originals), ways)
        return self.mend(data) if self.mend is not None and rng.random() < 0.5 else data


@dataclass
class _Tally:
    row: Row
    refused: int = 0
    slowest_s: float = 0.0
    largest_bytes: int = 0

    def fresh(self, outcome: dict[str, Any]) -> list[str]:
        """Return the kinds of failure that were seen a few times only."""
        return [kind for kind in outcome["wrong"] if self.row.wrong[kind] <= _KEPT]

    def add(self, outcome: dict[str, Any]) -> None:
        self.row.tried += 1
        self.refused += outcome.get("refused", False)
        self.slowest_s = max(self.slowest_s, outcome.get("seconds", 0.0))
        self.largest_bytes = max(self.largest_bytes, outcome.get("peak", 0))
        self.row.wrong.update(outcome["wrong"])
        refused, slowest, largest = f"{self.refused:,} refused", f"{self.slowest_s:.2f} s", self.largest_bytes >> 20
        self.row.notes = f"{refused}; slowest {slowest}, most {largest} MB beyond the file"


class _TooSlowError(BaseException):
    """No `except Exception` of a parser swallows it."""


def parsers(only: str = "") -> list[Parser]:
    """Return all parsers there are, or those whose name contains a text."""
    modules = [importlib.import_module(name) for name in MODULES if importlib.util.find_spec(name)]
    return [parser for module in modules for parser in module.PARSERS if only in parser.name]


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Try damaged files on every parser, each for its share of the time; what went wrong stays in `folder`."""
    chosen = parsers(only)
    folder.mkdir(parents=True, exist_ok=True)
    return [_attack(parser, seconds / len(chosen), seed, folder).row for parser in chosen]


def _attack(parser: Parser, seconds: float, seed: int, folder: Path) -> _Tally:
    tally, memory = _Tally(Row(parser.name)), Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        originals = parser.originals(Path(name))
        path = Path(name) / f"case{parser.suffix}"
        for original in originals:
            path.write_bytes(original)
            parser.read(path)  # a good file is read; and what is loaded late is there before the children are made
        index, deadline = 0, time.monotonic() + seconds
        while time.monotonic() < deadline:
            for outcome in _in_child(parser, originals, path, seed, range(index, index + _BATCH), deadline):
                tally.add(outcome)
                for kind in tally.fresh(outcome):
                    name = f"{parser.name}-{kind}-{seed}-{index}"
                    _keep(outcome, name, parser.suffix, parser.case(originals, seed, index), folder)
                index += 1
    return tally


def _keep(outcome: dict[str, Any], name: str, suffix: str, data: bytes, folder: Path) -> None:
    """Store the file of a failure, and the traceback."""
    file = re.sub(r"[^\w.-]+", "_", name)[:200]
    (folder / f"{file}{suffix}").write_bytes(data)
    (folder / f"{file}.txt").write_text(outcome.get("details", ""))


def _in_child(
    parser: Parser, originals: Sequence[bytes], path: Path, seed: int, indices: range, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yield what became of cases, one after the other, in a child; the case it dies of is the last one."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        _be_child(parser, originals, path, seed, indices, deadline, writing)
    os.close(writing)
    stuck = False
    try:
        for line in _lines(reading):
            yield json.loads(line)
    except TimeoutError:
        stuck = True
        os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
    _, status = os.waitpid(child, 0)
    if stuck or status:
        code = os.waitstatus_to_exitcode(status)
        yield {"wrong": ["does not end" if stuck else f"killed by {_signal_name(code)}"]}


def _lines(reading: int) -> Iterator[bytes]:
    """Yield what comes through a pipe, line by line."""
    begun = b""
    while select.select([reading], [], [], _PATIENCE_S)[0]:
        if not (more := os.read(reading, 1 << 16)):
            return
        *whole, begun = (begun + more).split(b"\n")
        yield from whole
    raise TimeoutError


def _signal_name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _be_child(
    parser: Parser, originals: Sequence[bytes], path: Path, seed: int, indices: range, deadline: float, writing: int
) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGPROF, _too_slow)
        room = _virtual_bytes() + _ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        with os.fdopen(writing, "w", buffering=1) as lines:
            for index in indices:
                if time.monotonic() > deadline:
                    break
                path.write_bytes(parser.case(originals, seed, index))
                lines.write(json.dumps(watched(parser, path)) + "\n")
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not go on as a second parent
        traceback.print_exc()
    finally:
        os._exit(code)


def _too_slow(*_: object) -> NoReturn:
    raise _TooSlowError


def watched(parser: Parser, path: Path) -> dict[str, Any]:
    """Read a file once; say what is wrong, whether it was refused, the CPU time, and the peak of memory beyond it."""
    size, began = path.stat().st_size, time.process_time()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    # A loop of C that never asks for signals is ended by the kernel.
    resource.setrlimit(resource.RLIMIT_CPU, (int(began + 5 * MAX_SECONDS) + 1, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    wrong, details, refused = [], "", False
    try:
        parser.read(path)
    except parser.expected as error:
        refused, wrong, details = True, list(_faults(error, parser, path)), traceback.format_exc()
    except _TooSlowError as error:
        wrong, details = [f"over {MAX_SECONDS} s at {_where(error)}"], traceback.format_exc()
    except Exception as error:  # noqa: BLE001 - the point of the exercise
        wrong, details = [f"{type(error).__name__} at {_where(error)}"], traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    peak = _status_bytes("VmHWM") - before - size
    if peak > MAX_PEAK_BYTES:
        wrong.append(f"over {MAX_PEAK_BYTES >> 20} MB")
    seconds = time.process_time() - began
    return {"wrong": wrong, "details": details[-20000:], "refused": refused, "seconds": seconds, "peak": peak}


def _faults(error: BaseException, parser: Parser, path: Path) -> Iterator[str]:
    """Yield what is wrong with a refusal."""
    message = str(error)
    where = f"in {type(error).__name__} at {_where(error)}"
    if parser.names_file and path.name not in message:
        yield f"no file named {where}"
    if len(message.replace(str(path), "")) > MAX_MESSAGE:
        yield f"more than {MAX_MESSAGE} characters {where}"
    if "\n" in message or not message.isprintable():
        yield f"not one printable line {where}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) and traceback.extract_tb(cause.__traceback__)[-1].name != "parse":
            # Python's parser says the same of brackets that are nested too deeply.
            yield f"asked for more than {_ROOM_BYTES >> 30} GB at {_where(cause)}"
        cause = cause.__cause__ or cause.__context__


def _where(error: BaseException) -> str:
    """Return the last place of ours that an exception went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/autonuq/" in frame.filename.replace("\\", "/")] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _status_bytes(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
