"""Storages by URL, and the mapping of what can go wrong with them to `StudyError`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalRedisBackend
from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autonuq.errors import StudyError
from autonuq.storage.exclusion import (
    Exclusion,
    file_exclusion,
    mysql_exclusion,
    no_exclusion,
    postgresql_exclusion,
    redis_exclusion,
)
from autonuq.storage.journal_file import JournalFile
from autonuq.storage.retries import is_connection_lost, patient, reason

optuna.logging.set_verbosity(optuna.logging.WARNING)

JOURNAL, SQLITE = "journal://", "sqlite:///"
_BUSY_S = 60  # how long SQLite waits for another process
_GRPC_PORT = 13000  # Optuna's default


@dataclass(frozen=True)
class Storage:
    """An open storage.

    Attributes
    ----------
    url : str
        Without password.
    backend : BaseStorage
    exclusive : callable
        Study name -> context within which no other worker of that study is in it.
    """

    url: str
    backend: BaseStorage
    exclusive: Exclusion

    @property
    def has_lock(self) -> bool:
        """Whether `exclusive` keeps others out; without it, trials take turns by their numbers."""
        return self.exclusive is not no_exclusion

    def create(self, name: str) -> optuna.Study:
        """Make a new study.

        Raises
        ------
        StudyError
            A study of this name exists.
        """
        with _mapped(self.url, name):
            try:
                return optuna.create_study(
                    storage=self.backend, study_name=name, direction="maximize", pruner=optuna.pruners.NopPruner()
                )
            except DuplicatedStudyError as error:
                raise StudyError(
                    f"exists already in {self.url}; go on with 'autonuq resume', or choose another name or storage",
                    study=name,
                ) from error

    def names(self) -> list[str]:
        """Return the names of all studies."""
        return [study.study_name for study in self.backend.get_all_studies()]

    def load(self, name: str) -> optuna.Study:
        """Open an existing study.

        Raises
        ------
        StudyError
            There is none of this name; the message says which there are.
        """
        with _mapped(self.url, name):
            try:
                return optuna.load_study(storage=self.backend, study_name=name, pruner=optuna.pruners.NopPruner())
            except KeyError as error:
                names = self.names()
                there = f"it holds {', '.join(names)}" if names else "it is empty"
                hint = f"not found in {self.url} ({there}); start it with 'autonuq tune'"
                raise StudyError(hint, study=name) from error


def open_storage(url: str) -> Storage:
    """Open a storage.

    Parameters
    ----------
    url : str
        `journal://FILE`, `sqlite:///FILE`, `postgresql://...`, `mysql://...`, `redis://...` (a journal in Redis),
        `grpc://HOST:PORT` (Optuna's proxy), or any other URL of SQLAlchemy's.

    Raises
    ------
    StudyError
        It cannot be reached, its driver is missing, or what is there is no storage of Optuna's.
    """
    scheme = url.partition("://")[0]
    kind = scheme.partition("+")[0]
    with _mapped(_shown(url), None, kind), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend, exclusive = _OPEN.get(kind, _open_other)(url)
    return Storage(_shown(url), patient(backend, _shown(url)), exclusive)


def _open_journal(url: str) -> tuple[BaseStorage, Exclusion]:
    path = Path(url.removeprefix(JOURNAL))
    return JournalStorage(JournalFile(path)), file_exclusion(path)


def _open_redis(url: str) -> tuple[BaseStorage, Exclusion]:
    exclusive = redis_exclusion(url)
    return JournalStorage(JournalRedisBackend(url)), exclusive


def _open_grpc(url: str) -> tuple[BaseStorage, Exclusion]:
    place = urlsplit(url)
    proxy = GrpcStorageProxy(host=place.hostname or "localhost", port=place.port or _GRPC_PORT)
    proxy.wait_server_ready(timeout=10)
    return proxy, no_exclusion


def _open_sqlite(url: str) -> tuple[BaseStorage, Exclusion]:
    storage = RDBStorage(url, {"connect_args": {"timeout": _BUSY_S}})
    # SQLite knows no SELECT ... FOR UPDATE: unless every transaction takes the lock at its beginning, two workers read
    # a queued trial as theirs, and one that begins to write late fails at once.
    event.listen(storage.engine, "connect", _prepare_connection)
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.engine.dispose()
    database = storage.engine.url.database
    return get_storage(storage), file_exclusion(Path(database)) if database else no_exclusion


def _prepare_connection(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun by us
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _open_postgresql(url: str) -> tuple[BaseStorage, Exclusion]:
    storage = _server(url, "postgresql", "psycopg")
    return get_storage(storage), postgresql_exclusion(storage.engine)


def _open_mysql(url: str) -> tuple[BaseStorage, Exclusion]:
    storage = _server(url, "mysql", "pymysql")
    return get_storage(storage), mysql_exclusion(storage.engine)


def _open_other(url: str) -> tuple[BaseStorage, Exclusion]:
    return get_storage(url), no_exclusion


def _server(url: str, kind: str, driver: str) -> RDBStorage:
    """Connect to a database server, with the driver of our extra unless the URL names another."""
    scheme, _, rest = url.partition("://")
    return RDBStorage(f"{scheme if '+' in scheme else f'{kind}+{driver}'}://{rest}")


_OPEN: Mapping[str, Callable[[str], tuple[BaseStorage, Exclusion]]] = {
    "journal": _open_journal,
    "sqlite": _open_sqlite,
    "postgresql": _open_postgresql,
    "postgres": _open_postgresql,
    "mysql": _open_mysql,
    "mariadb": _open_mysql,
    "redis": _open_redis,
    "rediss": _open_redis,
    "grpc": _open_grpc,
}

_EXTRAS = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
    "redis": "redis",
    "rediss": "redis",
    "grpc": "grpc",
}


@contextmanager
def _mapped(url: str, name: str | None, kind: str = "") -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        remedy = f"pip install 'autonuq[{_EXTRAS[kind]}]'" if kind in _EXTRAS else "install the one that its URL names"
        raise StudyError(f"storage {url} needs a driver that is not installed; {remedy}", study=name) from error
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError, RuntimeError) as error:
        raise StudyError(f"storage {url} cannot be used: {reason(error)}", study=name) from error
    except Exception as error:  # drivers that are not imported here
        if not is_connection_lost(error):
            raise
        raise StudyError(f"storage {url} cannot be reached: {reason(error)}", study=name) from error


def _shown(url: str) -> str:
    """Return the URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True) if "@" in url else url
    except (ArgumentError, ValueError):
        return url.partition("://")[0] + "://"


def absolute_url(url: str, folder: Path) -> str:
    """Make the file of a sqlite or journal URL relative to `folder`."""
    for scheme in (SQLITE, JOURNAL):
        if url.startswith(scheme):
            return scheme + str((folder / url.removeprefix(scheme)).resolve())
    return url


def storage_file(url: str) -> Path | None:
    """Return the file of a sqlite or journal URL, None where the storage is a server."""
    return next((Path(url.removeprefix(scheme)) for scheme in (SQLITE, JOURNAL) if url.startswith(scheme)), None)


def default_url(folder: Path) -> str:
    """Return the storage of a study that names none: a journal, or the database that earlier versions made.

    Notes
    -----
    A journal takes a fraction of SQLite's time per trial and nothing waits for locks (`studies/bench/storages.py`).
    """
    database, journal = folder / "study.db", folder / "study.journal"
    if database.exists() and not journal.exists():
        return SQLITE + str(database)
    return JOURNAL + str(journal)
