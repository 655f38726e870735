"""How a study gets on: one live line on a terminal and in a notebook, one line a step elsewhere.

The live line is read from the storage, so that it tells of all workers, wherever they are.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from statistics import fmean
from typing import Any, Protocol

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autonuq.notebook import html_progress
from autonuq.records import StudyRecord, TrialRecord
from autonuq.study.locate import open_study
from autonuq.study.stored import Study
from autonuq.study.task import OnProgress, Progress, tell_nobody
from autonuq.terminal import PlainConsole, duration
from autonuq.visible import visible

_STARTING = Progress("starting", "", 0, 1)
_POLL_S = 1.0
_SHARE = 0.05  # of the time, at most, is spent on looking
_RECENT = 20  # trials whose durations tell how long the others will take
_NAMED = 3  # trials that run now and are named
_NARROW = 100  # columns; the bar is shorter on a terminal that has fewer
_UPDATE_S = 0.25  # between two updates of a notebook, at least
_BAR = 20  # characters, where a notebook cannot draw one


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Attributes
    ----------
    done, target : int
        Trials.
    best : TrialRecord or None
    feasible : float or None
        Share of the scored trials that satisfied the constraint.
    left_s : float or None
        Seconds until the last trial, with as many workers as there are now.
    running : tuple of TrialRecord
        What is evaluated now.
    """

    done: int
    target: int
    best: TrialRecord | None
    feasible: float | None
    left_s: float | None
    running: tuple[TrialRecord, ...]


def standing(record: StudyRecord) -> Standing:
    """Say how far a study is."""
    counts, done = record.counts, record.counts.finished
    running = tuple(trial for trial in record.trials if trial.state == "running")
    scored = (trial for trial in record.trials if trial.state == "complete" and not trial.is_copy)
    spent = [trial.duration_s for trial in scored if trial.duration_s]
    target = max(record.target_trials, done)
    left = (target - done) / max(1, len(running))
    return Standing(
        done=done,
        target=target,
        best=record.best,
        feasible=counts.satisfied / counts.complete if counts.complete else None,
        left_s=left * fmean(spent[-_RECENT:]) if spent else None,
        running=running,
    )


def describe(now: Standing, original_bytes: int, at: datetime) -> str:
    """Put a standing into one line, the most important first."""
    best = now.best
    parts = [f"{now.done}/{now.target}"]
    parts.append("none satisfied yet" if best is None else f"best {best.ratio:.2f}x at {best.metric:g}")
    if now.feasible is not None:
        parts.append(f"{now.feasible:.0%} feasible")
    if now.left_s is not None and now.done < now.target:
        parts.append(f"{duration(now.left_s)} left")
    if now.running:
        shown = [_evaluated(trial, original_bytes, at) for trial in now.running[:_NAMED]]
        more = len(now.running) - len(shown)
        parts.append(f"now {', '.join(shown)}" + (f" and {more} more" if more else ""))
    return "  ".join(parts)


def _evaluated(trial: TrialRecord, original_bytes: int, at: datetime) -> str:
    words = [f"#{trial.number}"]
    if trial.size_bytes:
        words.append(f"{original_bytes / trial.size_bytes:.1f}x")
    if trial.started:
        words.append(f"{max(0, round((at - datetime.fromisoformat(trial.started)).total_seconds()))} s")
    return " ".join(words)


@dataclass(frozen=True)
class Line:
    """What is shown of a study at one moment.

    Attributes
    ----------
    name : str
        Of the study.
    done, total : int
    words : str
    """

    name: str
    done: int
    total: int
    words: str

    def __str__(self) -> str:
        full = _BAR * self.done // max(1, self.total)
        return visible(f"{self.name} [{'#' * full}{' ' * (_BAR - full)}] {self.words}")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_progress(self.name, self.done, self.total, self.words)


class Screen(Protocol):
    """Where a study's progress is shown.

    Attributes
    ----------
    is_live : bool
        It wants to be refreshed.
    """

    is_live: bool

    def begin(self, line: Callable[[], Line]) -> None:
        """Show the line for the first time; a function tells what it is."""

    def step(self, step: Progress) -> None:
        """Take notice of one step."""

    def refresh(self) -> None:
        """Show what the line is now."""

    def end(self) -> None:
        """Leave what was shown last."""


class Terminal:
    """One line that stays where it is.

    Parameters
    ----------
    console : Console
    """

    is_live = True

    def __init__(self, console: PlainConsole) -> None:
        self._console = console

    def begin(self, line: Callable[[], Line]) -> None:
        """Show the line, four times a second, until the end."""
        self._live = Live(console=self._console, get_renderable=lambda: self._drawn(line()), refresh_per_second=4)
        self._live.start()

    def step(self, step: Progress) -> None:
        """Do nothing: the line is drawn again soon."""

    def refresh(self) -> None:
        """Do nothing, as for a step."""

    def end(self) -> None:
        """Draw the line for the last time."""
        self._live.stop()

    def _drawn(self, line: Line) -> Table:
        drawn = Table.grid(padding=(0, 1))
        width = 10 if self._console.width < _NARROW else 24
        drawn.add_row(line.name, ProgressBar(line.total, line.done, width=width), Text(line.words))
        return drawn


class Notebook:
    """One output of a cell that is replaced; it needs no widgets, and the saved notebook has it as it was last."""

    is_live = True

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_s = 0.0

    def begin(self, line: Callable[[], Line]) -> None:
        """Do nothing before the first step: what is refused then leaves its error alone."""
        self._line = line

    def step(self, step: Progress) -> None:
        """Show the line anew, unless that was done just now."""
        if time.monotonic() > self._shown_s + _UPDATE_S:
            self.refresh()

    def refresh(self) -> None:
        """Show the line below the cell, or replace it there."""
        self._shown_s = time.monotonic()
        if self._handle is None:
            self._handle = import_module("IPython.display").DisplayHandle()
            self._handle.display(self._line())
        else:
            self._handle.update(self._line())

    def end(self) -> None:
        """Replace the output for the last time."""
        if self._handle is not None:
            self.refresh()


class Log:
    """One line a step, for whoever reads a file.

    Parameters
    ----------
    console : Console
    """

    is_live = False

    def __init__(self, console: PlainConsole) -> None:
        self._console = console

    def begin(self, line: Callable[[], Line]) -> None:
        """Do nothing before the first step."""

    def step(self, step: Progress) -> None:
        """Print a step."""
        self._console.print(Text(_step_line(step)), soft_wrap=True)

    def refresh(self) -> None:
        """Do nothing: what was printed stands."""

    def end(self) -> None:
        """Do nothing."""


@contextmanager
def progress_line(name: str, storage: str, wanted: bool | None) -> Iterator[OnProgress]:
    """Show a study's progress to whoever runs it from Python; yields what is to be told of each step.

    Parameters
    ----------
    name, storage : str
        Of the study.
    wanted : bool or None
        None: where one line can be updated in place.
    """
    screen = _screen() if wanted is None or wanted else None
    if screen is None and wanted:
        screen = Log(PlainConsole(stderr=True))
    if screen is None:
        yield tell_nobody
        return
    with Display(name, storage, screen) as display:
        yield display.show


def _screen() -> Screen | None:
    """Return where one line can be updated in place; None in a pipe or a log."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        return Notebook()
    console = PlainConsole(stderr=True)
    is_terminal = sys.stderr is not None and sys.stderr.isatty() and not console.is_dumb_terminal
    return Terminal(console) if is_terminal else None


class Display:
    """Shows the progress of one study while it runs.

    Parameters
    ----------
    name, storage : str
        Of the study.
    screen : Screen
    """

    def __init__(self, name: str, storage: str, screen: Screen) -> None:
        self._name, self._storage, self._screen = name, storage, screen
        self._step = _STARTING
        self._study: Study | None = None
        self._record: StudyRecord | None = None
        self._ended: StudyRecord | None = None  # what shall be left of it on the screen
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="autonuq display", daemon=True)

    def __enter__(self) -> Display:
        self._screen.begin(self._line)
        if self._screen.is_live:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        self._screen.end()

    def show(self, step: Progress) -> None:
        """Take notice of one step."""
        self._step = step
        self._screen.step(step)

    def _watch(self) -> None:
        took_s = 0.0
        while not self._stopped.wait(max(_POLL_S, took_s / _SHARE)):
            began_s = time.monotonic()
            self._look()
            took_s = time.monotonic() - began_s
            self._screen.refresh()
        self._look()
        self._record = self._ended

    def _look(self) -> None:
        """Read the storage, once there is one; if it fails now, that is the business of those who run the trials."""
        if self._step is _STARTING:
            return
        try:
            if self._study is None:
                self._study = open_study(self._name, self._storage)
            record = self._study.record()
        except Exception:  # whatever a storage may raise
            return
        self._ended = record if record.counts.finished else None
        is_running = any(trial.state == "running" for trial in record.trials)
        self._record = record if is_running or self._step.stage == "trial" else None

    def _line(self) -> Line:
        step, record = self._step, self._record
        if record is None:
            return Line(self._name, step.done, step.total, f"{step.stage} {step.done}/{step.total}  {step.message}")
        now = standing(record)
        if self._stopped.is_set():
            now = replace(now, left_s=None)
        return Line(self._name, now.done, now.target, describe(now, record.original_bytes, datetime.now(UTC)))


def _step_line(step: Progress) -> str:
    line = f"{step.stage} {step.done}/{step.total} "
    if step.trial is None:
        return line + step.message
    best = f"best {step.best.ratio:.2f}x at {step.best.metric:g}" if step.best is not None else "none satisfied yet"
    return line + f"trial {step.trial.number}: {step.message} ({step.trial.outcome}; {best})"
