"""Optuna's journal file, safe against processes that are killed at any moment.

Optuna's own lock is a link that a killed process leaves behind for 30 seconds, and its journal is lost once a line was
cut: the next one is glued to it. Here the system releases the lock, and whoever gets it cuts off what a killed writer
left of a line.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import filelock
from optuna.storages.journal import JournalFileBackend

from autonuq.errors import StudyError
from autonuq.storage.journal_entries import check_entry

_TAIL_BYTES = 1 << 16
_POLL_S = 0.01  # what is locked here takes milliseconds


class FileLock:
    """An exclusive lock between processes and threads, on a file of its own; it ends with the process.

    Parameters
    ----------
    path : Path
        Made if missing; where the system lets it, left behind.

    Notes
    -----
    It is the system's own lock, the one that earlier versions took: they may wait for it beside this one. A file system
    that has none is an error, not a lock that a killed process leaves behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: filelock.BaseFileLock | None = None

    def acquire(self, timeout_s: float | None = None) -> bool:
        """Wait for the lock, for ever or for some seconds, and say whether it is held."""
        lock = filelock.FileLock(self._path, poll_interval=_POLL_S, fallback_to_soft=False)
        try:
            lock.acquire(timeout_s)
        except filelock.Timeout:
            return False
        self._held = lock
        return True

    def release(self) -> None:
        """Let the next one in."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _RepairingLock(FileLock):
    """The lock under which lines are appended; it hands over a journal that ends with a whole line."""

    def __init__(self, journal: Path) -> None:
        super().__init__(journal.with_name(journal.name + ".writer"))
        self._journal = journal

    def acquire(self, timeout_s: float | None = None) -> bool:
        if not super().acquire(timeout_s):
            return False
        try:
            _cut_off_part_of_a_line(self._journal)
        except BaseException:
            self.release()
            raise
        return True


def _cut_off_part_of_a_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            tail = file.read(end - start)
            newline = tail.rfind(b"\n")
            if newline >= 0 or start == 0:
                end = start + newline + 1
                break
            end = start
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)
            os.fsync(file.fileno())


class JournalFile(JournalFileBackend):
    """A journal file.

    Parameters
    ----------
    path : Path
        Made if missing; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        lock: Any = _RepairingLock(path)  # Optuna's base class is private and adds nothing to `acquire` and `release`
        super().__init__(str(path), lock_obj=lock)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the entries from a number on.

        Raises
        ------
        StudyError
            A line in the middle is damaged.
        """
        number = log_number_from
        try:
            for entry in super().read_logs(log_number_from):
                check_entry(entry)
                yield entry
                number += 1
        except (ValueError, OverflowError, RecursionError) as error:
            raise StudyError(
                f"line {number + 1} of the journal is damaged; restore a copy, or remove that line and what it says",
                path=self._file_path,
            ) from error
