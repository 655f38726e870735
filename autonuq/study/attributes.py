"""A study's own attributes: written in pieces where they are long, sealed once they are final, checked when read.

Whoever has the storage can alter it, and disks do. So what a study began with is read through the type that it has
here, and compared with a digest of it that the study was given when its preparation ended, its seal: numbers that are
not what was written are an error, never another result. Studies of versions that had no seal are given one when they
go on; until then their types alone are checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna

from autonuq.errors import StudyError
from autonuq.plain import from_plain, plain_digest
from autonuq.records import (
    CHIP,
    CODEC,
    CONFIDENCE,
    FLOAT_LAYERS,
    LAYERS,
    ORIGINAL_ERROR,
    ORIGINAL_METRIC,
    ORIGINAL_SAMPLES,
    SEAL,
    UNIT,
    WAYS,
)

_PIECE = 60_000  # characters, all of them ASCII
_SEALED = (CODEC, CONFIDENCE, UNIT, ORIGINAL_METRIC, ORIGINAL_ERROR)
_SEALED_LONG = (CHIP, ORIGINAL_SAMPLES, FLOAT_LAYERS, LAYERS, WAYS)
"""What never changes once a study is prepared; the latter are stored in pieces."""


class StudyAttributes:
    """What a study's attributes hold at one moment.

    Parameters
    ----------
    study : optuna.Study
    """

    def __init__(self, study: optuna.Study) -> None:
        self._name, self._values = study.study_name, study.user_attrs
        self._seal: Mapping[str, str] = self._read(SEAL, Mapping[str, str], self._values.get(SEAL, {}))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def is_sealed(self) -> bool:
        """Whether the study has its seal."""
        return bool(self._seal)

    def get(self, key: str, kind: Any, default: Any = None) -> Any:
        """Return an attribute as what a type hint says, see `plain.from_plain`; the default where it is not there.

        Raises
        ------
        StudyError
            It is not that, or not what was sealed.
        """
        if key not in self._values:
            return self._absent(key, default)
        value = self._values[key]
        self._check_seal(key, value)
        return self._read(key, kind, value)

    def long(self, key: str, kind: Any, default: Any = None) -> Any:
        """Return what `store_long` wrote; the default where that is nothing. See `get`."""
        if key not in self._values:
            return self._absent(key, default)
        text = self._joined(key)
        self._check_seal(key, text)
        value = self._parsed(key, text)
        return self._read(key, kind, value) if value else default

    @contextmanager
    def blaming(self, key: str) -> Iterator[None]:
        """Turn a ValueError meanwhile into what is said of an attribute that is damaged.

        Raises
        ------
        StudyError
        """
        try:
            yield
        except ValueError as error:
            raise self._damaged(key, str(error)) from error

    def seal(self) -> dict[str, str]:
        """Return the digests of what is final from now on."""
        short = {key: self._values[key] for key in _SEALED if key in self._values}
        long = {key: self._joined(key) for key in _SEALED_LONG if key in self._values}
        return {key: plain_digest(value) for key, value in (short | long).items()}

    def _absent(self, key: str, default: Any) -> Any:
        if key in self._seal:
            raise self._damaged(key, "it is gone")
        return default

    def _joined(self, key: str) -> Any:
        """Return the text of a long attribute; what stands there, where an earlier version stored it whole."""
        found = self._values[key]
        if not isinstance(found, int) or isinstance(found, bool):
            return found
        pieces = []
        for index in range(found):
            piece = self._values.get(f"{key}:{index}")
            if not isinstance(piece, str):
                raise self._damaged(key, f"piece {index} of {found} is gone")
            pieces.append(piece)
        return "".join(pieces)

    def _parsed(self, key: str, text: Any) -> Any:
        if not isinstance(text, str) or not text:  # an empty text stands for nothing yet
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(key, "it is no JSON") from error

    def _check_seal(self, key: str, value: Any) -> None:
        if key in self._seal and plain_digest(value) != self._seal[key]:
            raise self._damaged(key, "it is not what was stored when the study was prepared")

    def _read(self, key: str, kind: Any, value: Any) -> Any:
        with self.blaming(key):
            return from_plain(kind, value)

    def _damaged(self, key: str, why: str) -> StudyError:
        return StudyError(
            f"its attribute '{key}' in the storage is damaged: {why}; restore a copy of the storage, or start a study "
            "of another name",
            study=self._name,
        )


def store_long(study: optuna.Study, key: str, value: Any) -> None:
    """Store a long attribute of a study in pieces: MySQL takes 64 KiB each."""
    text = json.dumps(value)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    for index, piece in enumerate(pieces):
        study.set_user_attr(f"{key}:{index}", piece)
    study.set_user_attr(key, len(pieces))  # last: until it stands, there is nothing


def seal_study(study: optuna.Study) -> None:
    """Seal what a prepared study began with, unless it is sealed."""
    attributes = StudyAttributes(study)
    if not attributes.is_sealed:
        study.set_user_attr(SEAL, attributes.seal())
