"""Every exception that autonuq raises on purpose.

::

    AutonuqError
    ├─ ModelError         exit 3   prototxt or caffemodel: parse, shapes, missing blobs, unsupported layer
    ├─ QuantizationError  exit 4   codes, calibration, codebooks, codecs, config and record files
    ├─ RuntimeFailure     exit 5   the engine failed or lacks an operation
    ├─ StudyError         exit 6   study file, study or its storage: malformed, exists, not found, of another model
    └─ EvaluatorError     exit 7   the user's code raised, returned no finite number, or cannot be loaded

A message is one line that says what is wrong, where, and what to do, without passwords. Misuse of the Python API raises
``ValueError`` or ``TypeError`` instead. Errors of other libraries are mapped at one edge with ``raise ... from``.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

from autonuq.masking import masked_text
from autonuq.visible import visible


class AutonuqError(Exception):
    """Base of every error that a user can cause.

    Parameters
    ----------
    message : str
        What is wrong, where, and what to do.
    path, layer, study : optional
        The file, the Caffe layer or the study concerned; named in front of the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        layer: str | None = None,
        study: str | None = None,
    ) -> None:
        message = masked_text(message)
        self.message = message
        self.path = None if path is None else Path(path)
        self.layer = layer
        self.study = study
        where = [str(path)] if path is not None else []
        where += [f"layer '{layer}'"] if layer is not None else []
        where += [f"study '{study}'"] if study is not None else []
        super().__init__(_one_line(": ".join([", ".join(where), message]) if where else message))


def _one_line(message: str) -> str:
    """Escape what is not printable: names out of a damaged file may hold anything."""
    return visible(message)


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of the known names, or nothing if none is near."""
    spelled = {one.lower(): one for one in known}
    nearest = get_close_matches(name.lower(), spelled, n=1)
    return f" Did you mean '{spelled[nearest[0]]}'?" if nearest else ""


class ModelError(AutonuqError):
    """A prototxt or caffemodel cannot be used: syntax, shapes, missing blobs, unsupported layer."""

    exit_code = 3


class QuantizationError(AutonuqError):
    """Codes, calibration, codebooks, codecs, or a config or record file are wrong."""

    exit_code = 4


class RuntimeFailure(AutonuqError):
    """The engine that executes the network failed or lacks an operation."""

    exit_code = 5


class StudyError(AutonuqError):
    """A study file, a study or its storage is malformed, missing, unreachable or another model's."""

    exit_code = 6


class StudyNotFound(StudyError):
    """A study is not there, or its storage is out of reach: either may come."""


class EvaluatorError(AutonuqError):
    """The user's evaluator cannot be loaded, raised, or returned no finite number."""

    exit_code = 7
