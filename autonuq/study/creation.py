"""How a study comes to be: made in its storage, and told what it is to be, as if by one step.

A study is begun once its fingerprint stands, which is written last. One without fingerprint and trials is nobody's: its
maker was killed, or is still at it, and whoever comes next with a task of its own finishes it. Who does is decided by
the storage's lock; where that has none, by Fischer's algorithm (L. Lamport, A fast mutual exclusion algorithm, ACM TOCS
5(1), 1987, section 2): each leaves its mark, waits longer than a write takes, and the one whose mark is still there
goes on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection

from autonuq.errors import StudyError, StudyExists
from autonuq.records import FINGERPRINT, MAKER
from autonuq.storage.open import Storage

MAKING_S = 5.0
"""How long a study may stay half made until its maker counts as dead, in seconds, where nothing can be locked."""

_WRITE_S, _POLL_S = 1.0, 0.1

Describe = Callable[[optuna.Study], None]
"""Stores all that a study is told when it is made, but for its fingerprint."""


def is_begun(study: optuna.Study) -> bool:
    """Say whether it stands what the study is."""
    return FINGERPRINT in study.user_attrs


def start_study(storage: Storage, name: str, describe: Describe, fingerprint: Mapping[str, str]) -> optuna.Study:
    """Make a study, or finish one that is half made.

    Raises
    ------
    StudyError
        StudyExists if there is one of this name already.
    """
    with storage.exclusive(name):
        try:
            study = storage.create(name)
        except StudyExists:
            study = storage.load(name)
            if not _is_ours_to_finish(storage, study):
                raise
        return _finished(study, describe, fingerprint)


def continue_study(storage: Storage, name: str, describe: Describe, fingerprint: Mapping[str, str]) -> optuna.Study:
    """Open a study that exists; one that is half made is finished.

    Raises
    ------
    StudyError
        StudyNotFound if there is none of this name; also if it is none of this package's.
    """
    study = storage.load(name)
    if is_begun(study):
        return study
    with storage.exclusive(name):
        if _is_ours_to_finish(storage, study):
            return _finished(study, describe, fingerprint)
    if not is_begun(study):
        raise StudyError(f"in {storage.url} was not made by autonuq; choose another name or storage", study=name)
    return study  # somebody was faster


def start_or_continue(storage: Storage, name: str, describe: Describe, fingerprint: Mapping[str, str]) -> optuna.Study:
    """Open a study, or make it where there is none of this name; see `start_study` and `continue_study`."""
    try:
        return start_study(storage, name, describe, fingerprint)
    except StudyExists:
        return continue_study(storage, name, describe, fingerprint)


def _finished(study: optuna.Study, describe: Describe, fingerprint: Mapping[str, str]) -> optuna.Study:
    describe(study)
    study.set_user_attr(FINGERPRINT, dict(fingerprint))
    return study


def _is_ours_to_finish(storage: Storage, study: optuna.Study) -> bool:
    if is_begun(study) or study.get_trials(deepcopy=False) or study.directions != [StudyDirection.MAXIMIZE]:
        return False
    return storage.has_lock or _is_left_to_us(study)


def _is_left_to_us(study: optuna.Study) -> bool:
    """Wait until nobody else has been making the study for a while; say whether we are the one to do it then."""
    mark: Any = study.user_attrs.get(MAKER)
    deadline = time.monotonic() + MAKING_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        if is_begun(study):
            return False
        now = study.user_attrs.get(MAKER)
        if now != mark:  # another one has come
            mark, deadline = now, time.monotonic() + MAKING_S
    own = secrets.token_hex(8)
    study.set_user_attr(MAKER, own)
    time.sleep(_WRITE_S)
    return study.user_attrs.get(MAKER) == own and not is_begun(study)
