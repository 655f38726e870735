"""A storage whose lost connection is not the end: operations are tried again for a stated time."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage

from autonuq.atomic import say_system_error
from autonuq.errors import StudyError

PATIENCE_S = 120.0
"""How long a lost connection is tried again before the study stops, in seconds."""

_REMEDIES = {  # SQLite's words, which end a message of its own
    "database or disk is full": "make room there",
    "disk I/O error": "make room there, or look after the disk",
    "readonly database": "its file and its folder must be yours to write",
}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_REFUSED = ("53100", 1021, 1114, 1290)  # a full disk, PostgreSQL's and MySQL's, or one that is not to be written
_ENDED_SESSION = ("25P03", None)  # PostgreSQL's code: idle within a transaction for too long; none: a garbled answer


def patient(storage: BaseStorage, url: str, file: Path | None = None, patience_s: float = PATIENCE_S) -> BaseStorage:
    """Return the storage with every operation tried again while the connection is lost.

    Parameters
    ----------
    storage : BaseStorage
    url : str
        What it is called in messages.
    file : Path, optional
        In which it is; that is looked for at each operation: SQLite goes on in one that is deleted.
    patience_s : float

    Its operations raise StudyError, with the URL, for what stays lost and for whatever else the storage fails with.

    Notes
    -----
    An operation whose answer was lost may have been done. Repeated settings of attributes and states do no harm; a
    trial that was made twice is run once, because its twin has the same plan and no worker (see `study.claims`).
    """
    names = [name for name in dir(BaseStorage) if name[0] != "_"]
    methods = {name: _retried(getattr(storage, name), url, file, patience_s) for name in names}
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


def _retried(method: Callable[..., Any], url: str, file: Path | None, patience_s: float) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            found = retry(lambda: method(*arguments, **named), patience_s)
        except Exception as error:
            if file is not None and not file.exists():
                raise _gone(url) from error
            if is_connection_lost(error):
                what = f"has been out of reach for {patience_s:g} s; go on with 'autonuq resume' when it is back"
            elif is_storage_failure(error):
                what = "failed; what it holds is not touched, go on with 'autonuq resume' when that is mended"
            elif isinstance(error, json.JSONDecodeError) or type(error) is LookupError:  # the latter SQLAlchemy's
                what = "holds what Optuna did not write; restore a copy"
            else:
                raise
            raise StudyError(f"storage {url} {what}: {reason(error)}") from error
        if file is not None and not file.exists():
            raise _gone(url)
        return found

    return call


def _gone(url: str) -> StudyError:
    return StudyError(f"storage {url} was removed meanwhile, with all trials; restore a copy, or start the study again")


def is_storage_failure(error: BaseException) -> bool:
    """Say whether an error is a storage's own: of Optuna's layer, the system, or a client of a server."""
    classes = {"sqlalchemy": "SQLAlchemyError", "redis": "RedisError", "grpc": "RpcError"}
    is_known = isinstance(error, (StorageInternalError, OSError))
    return is_known or any(is_of(error, package, name) for package, name in classes.items())


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
    if _code_of(cause) in _REFUSED:
        return False
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


def _code_of(cause: object) -> object:
    """Return a server's number for an error: PostgreSQL's drivers have it by name, MySQL's as the first argument."""
    named = getattr(cause, "sqlstate", getattr(cause, "pgcode", None))
    return named or next(iter(getattr(cause, "args", ())), None)


def is_of(error: BaseException, package: str, *names: str) -> bool:
    """Say whether an error is of one of a package's classes, without importing the package.

    A driver may be missing; SQLAlchemy is there, but loaded only by those who open a database.
    """
    return any(kind.__module__.split(".")[0] == package and kind.__name__ in names for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """Return the first line of what happened; Optuna wraps a database's errors in one that says nothing."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno is not None:
        return say_system_error(error)
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line + next((f"; {remedy}" for words, remedy in _REMEDIES.items() if words in line), "")
