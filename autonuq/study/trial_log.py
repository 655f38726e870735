"""The log of a study: one line a trial, for people, `grep` and `tail -f`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from autonuq.atomic import append_text
from autonuq.masking import masked_text
from autonuq.records import TrialRecord
from autonuq.visible import visible


def append_trial(path: Path, record: TrialRecord) -> None:
    """Append the line of a finished trial; workers that share a folder share the file, a line is written at once."""
    append_text(path, trial_line(record, datetime.now(UTC)) + "\n")


def append_conclusion(path: Path, words: str) -> None:
    """Append what a run ended with."""
    append_text(path, f"{_stamp(datetime.now(UTC))} {visible(words)}\n")


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def trial_line(record: TrialRecord, at: datetime) -> str:
    """Put a trial into one line: when, which, what came of it, on what, by whom."""
    if record.state == "failed":
        result = f"failed: {record.error}"
    else:
        result = f"ratio {record.ratio:.4f} metric {record.metric:.6g} {record.outcome} bytes {record.size_bytes}"
    line = f"{_stamp(at)} trial {record.number} {result} [{record.origin}; {record.duration_s:.3f} s; {record.worker}]"
    return visible(masked_text(line))
