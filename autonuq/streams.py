"""Standard streams that may be closed, full, or a pipe that nobody reads: no reason to lose a study's work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Forgiving:
    """A text stream that raises nothing when it cannot be written; from then on it leads nowhere.

    Parameters
    ----------
    stream : text file

    Attributes
    ----------
    error : OSError or None
        Why it could not be written, unless nobody was reading it any more.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write if that is possible."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.error = error
        lead_nowhere(self._stream.fileno())
        with suppress(OSError):
            self._stream.flush()


def lead_nowhere(descriptor: int) -> None:
    """Let what is written to a descriptor from now on be lost."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:  # it was closed, and is the first that was free
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def forgiving_streams() -> Iterator[Forgiving]:
    """Let standard output and error be `Forgiving` for the time, and give the one for results.

    Closed ones are opened first: the next file would get their numbers, and with it what libraries have to say.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            lead_nowhere(descriptor)
    before = sys.stdout, sys.stderr
    results, messages = (_open(stream, number) for number, stream in enumerate(before, 1))
    sys.stdout, sys.stderr = cast(TextIO, results), cast(TextIO, messages)
    try:
        yield results
    finally:
        for stream in (results, messages):
            stream.flush()
        sys.stdout, sys.stderr = before


def _open(stream: TextIO | None, descriptor: int) -> Forgiving:
    return Forgiving(os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) if stream is None else stream)
