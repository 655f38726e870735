"""Every exception that autonuq raises on purpose.

::

    AutonuqError
    ├─ ModelError         exit 3   prototxt or caffemodel: parse, shapes, missing blobs, unsupported layer
    ├─ QuantizationError  exit 4   codes, calibration, codebooks, codecs, config and record files
    ├─ RuntimeFailure     exit 5   the engine failed or lacks an operation
    ├─ StudyError         exit 6   study file, study or its storage: malformed, exists, not found, of another model
    └─ EvaluatorError     exit 7   the user's code raised, returned no finite number, or cannot be loaded

A message is one short line that says what is wrong, where, and what to do. Misuse of the Python API raises
``ValueError`` or ``TypeError`` instead. Errors of other libraries are mapped at one edge with ``raise ... from``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

_MOST = 480
"""Characters of a message, beside the file, the layer and the study that it is about."""
_MOST_QUOTED = 80
"""Characters of a name or a value, where something has to go."""
_QUOTED = re.compile(r"""(?<!\w)(["'])([^"']+)(?=\1)""")
_LEFT_OUT = " ... "


class AutonuqError(Exception):
    """Base of every error that a user can cause.

    Parameters
    ----------
    message : str
        What is wrong, where, and what to do. Of a long one, quoted values lose their middle, then the whole does:
        what is wrong comes first, what to do last.
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
        self.message = _shortened(_one_line(message))
        self.path = None if path is None else Path(path)
        self.layer = layer
        self.study = study
        where = [_one_line(str(path))] if path is not None else []
        where += [f"layer '{_cut(_one_line(layer), _MOST_QUOTED)}'"] if layer is not None else []
        where += [f"study '{_cut(_one_line(study), _MOST_QUOTED)}'"] if study is not None else []
        super().__init__(": ".join([", ".join(where), self.message]) if where else self.message)


def _one_line(text: str) -> str:
    """Escape what is not printable: names out of a damaged file may hold anything."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shortened(message: str) -> str:
    """Keep a message short, however long the names and values are that a file made it quote."""
    if len(message) > _MOST:
        message = _QUOTED.sub(lambda found: found[1] + _cut(found[2], _MOST_QUOTED), message)
    return _cut(message, _MOST)


def _cut(text: str, most: int) -> str:
    """Leave out the middle of what is longer; two thirds of the rest are its beginning."""
    if len(text) <= most:
        return text
    kept = most - len(_LEFT_OUT)
    return text[: kept * 2 // 3] + _LEFT_OUT + text[-(kept // 3) :]


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
