"""How a study gets on: one live line on a terminal, one line a step elsewhere.

The live line is read from the storage, so that it tells of all workers, wherever they are.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autonuq.cli.console import duration, err
from autonuq.records import StudyRecord, TrialRecord
from autonuq.study.locate import open_study
from autonuq.study.stored import Study
from autonuq.study.task import Progress

_STARTING = Progress("starting", "", 0, 1)
_POLL_S = 1.0
_RECENT = 20  # trials whose durations tell how long the others will take
_NAMED = 3  # trials that run now and are named
_NARROW = 100  # columns; the bar is shorter on a terminal that has fewer


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


class Display:
    """Shows the progress of one study while it runs.

    Parameters
    ----------
    name, storage : str
        Of the study.
    """

    def __init__(self, name: str, storage: str) -> None:
        self._name, self._storage = name, storage
        self._step = _STARTING
        self._study: Study | None = None
        self._record: StudyRecord | None = None
        self._stopped = threading.Event()
        self._live = Live(console=err, get_renderable=self._line, refresh_per_second=4)
        self._watcher = threading.Thread(target=self._watch, name="autonuq display", daemon=True)

    def __enter__(self) -> Display:
        if err.is_terminal and not err.quiet:
            self._live.start()
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._watcher.ident is not None:
            self._watcher.join()
            self._live.stop()

    def show(self, step: Progress) -> None:
        """Take notice of one step."""
        self._step = step
        if not err.is_terminal:
            err.print(Text(_step_line(step)), soft_wrap=True)

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_S):
            self._look()
        self._look()

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
        is_running = any(trial.state == "running" for trial in record.trials)
        self._record = record if is_running or self._step.stage == "trial" else None

    def _line(self) -> Table:
        step, record = self._step, self._record
        done, total, words = step.done, step.total, f"{step.stage} {step.done}/{step.total}  {step.message}"
        if record is not None:
            now = standing(record)
            done, total = now.done, now.target
            words = describe(now, record.original_bytes, datetime.now(UTC))
        line = Table.grid(padding=(0, 1))
        width = 10 if err.width < _NARROW else 24
        line.add_row(self._name, ProgressBar(total, done, width=width), Text(words))
        return line


def _step_line(step: Progress) -> str:
    line = f"{step.stage} {step.done}/{step.total} "
    if step.trial is None:
        return line + step.message
    best = f"best {step.best.ratio:.2f}x at {step.best.metric:g}" if step.best is not None else "none satisfied yet"
    return line + f"trial {step.trial.number}: {step.message} ({step.trial.outcome}; {best})"
