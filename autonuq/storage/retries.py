"""A storage whose lost connection is not the end: operations are tried again for a stated time."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage

from autonuq.errors import StudyError

PATIENCE_S = 120.0
"""How long a lost connection is tried again before the study stops, in seconds."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_ENDED_SESSION = ("25P03", None)  # PostgreSQL's code: idle within a transaction for too long; none: a garbled answer


def patient(storage: BaseStorage, url: str, patience_s: float = PATIENCE_S) -> BaseStorage:
    """Return the storage with every operation tried again while the connection is lost.

    Its operations raise StudyError, with the URL, for what stays lost and for whatever else the storage fails with.

    Notes
    -----
    An operation whose answer was lost may have been done. Repeated settings of attributes and states do no harm; a
    trial that was made twice is run once, because its twin has the same plan and no worker (see `study.claims`).
    """
    methods = {name: _retried(getattr(storage, name), url, patience_s) for name in dir(BaseStorage) if name[0] != "_"}
    kind = type("PatientStorage", (BaseStorage,), {name: staticmethod(method) for name, method in methods.items()})
    made: BaseStorage = kind()
    return made


def retry(operation: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Call `operation` until it does not fail for a lost connection, or the patience is at its end."""
    deadline = time.monotonic() + patience_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return operation()
        except Exception as error:
            if not is_connection_lost(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _retried(method: Callable[..., Any], url: str, patience_s: float) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return retry(lambda: method(*arguments, **named), patience_s)
        except Exception as error:
            if is_connection_lost(error):
                what = f"has been out of reach for {patience_s:g} s; go on with 'autonuq resume' when it is back"
            elif isinstance(error, (StorageInternalError, OSError)) or is_of(error, "sqlalchemy", "SQLAlchemyError"):
                what = "failed; nothing that had finished is lost"
            elif isinstance(error, json.JSONDecodeError) or type(error) is LookupError:  # the latter SQLAlchemy's
                what = "holds what Optuna did not write; restore a copy"
            else:
                raise
            raise StudyError(f"storage {url} {what}: {reason(error)}") from error

    return call


def is_connection_lost(error: BaseException) -> bool:
    """Say whether an error, or what caused it, is a connection that broke or is refused, or a busy SQLite file."""
    return any(map(_is_lost, _causes(error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_lost(error: BaseException) -> bool:
    cause, code = getattr(error, "orig", None), getattr(error, "code", None)
    if getattr(error, "connection_invalidated", False):  # SQLAlchemy's own word for it
        return True
    if is_of(error, "sqlalchemy", "OperationalError") and type(cause).__module__ == "sqlite3":
        return "locked" in str(cause)
    if is_of(error, "sqlalchemy", "PendingRollbackError"):  # a transaction whose connection broke a statement earlier
        return bool(code == "8s2b")
    if is_of(error, "sqlalchemy", "InternalError"):  # a session that the server ended, perhaps behind a pooler
        return getattr(cause, "sqlstate", getattr(cause, "pgcode", "")) in _ENDED_SESSION
    if isinstance(error, ConnectionError) or is_of(error, "sqlalchemy", "OperationalError", "InterfaceError"):
        return True
    package = type(error).__module__.split(".")[0]
    if package == "redis":  # itself, and not a refused password, which is a kind of ConnectionError there
        return type(error).__name__ in ("ConnectionError", "TimeoutError", "BusyLoadingError")
    return package == "grpc" and callable(code) and code().name in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def is_of(error: BaseException, package: str, *names: str) -> bool:
    """Say whether an error is of one of a package's classes, without importing the package.

    A driver may be missing; SQLAlchemy is there, but loaded only by those who open a database.
    """
    return any(kind.__module__.split(".")[0] == package and kind.__name__ in names for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """Return the first line of what happened; Optuna wraps a database's errors in one that says nothing."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
