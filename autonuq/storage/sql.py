"""Storages in SQL databases: how they are opened, and their locks. It alone loads SQLAlchemy with itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from autonuq.errors import StudyError
from autonuq.storage.exclusion import Exclusion, file_exclusion, no_exclusion
from autonuq.storage.retries import PATIENCE_S, retry

_BUSY_S = 60  # how long SQLite waits for another process


def open_database(url: str) -> tuple[BaseStorage, Exclusion]:
    """Open the storage of a URL of SQLAlchemy's.

    Returns
    -------
    BaseStorage
    Exclusion
        `no_exclusion` where it is not known how to lock.
    """
    kind = url.partition("://")[0].partition("+")[0]
    return _OPEN.get(kind, _open_other)(url)


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
    return get_storage(storage), _postgresql_exclusion(storage.engine)


def _open_mysql(url: str) -> tuple[BaseStorage, Exclusion]:
    storage = _server(url, "mysql", "pymysql")
    return get_storage(storage), _mysql_exclusion(storage.engine)


def _open_other(url: str) -> tuple[BaseStorage, Exclusion]:
    return get_storage(url), no_exclusion


def _server(url: str, kind: str, driver: str) -> RDBStorage:
    """Connect to a database server, with the driver of our extra unless the URL names another."""
    scheme, _, rest = url.partition("://")
    return RDBStorage(f"{scheme if '+' in scheme else f'{kind}+{driver}'}://{rest}")


def _postgresql_exclusion(engine: sqlalchemy.Engine) -> Exclusion:
    """Lock by an advisory lock of a transaction, which PgBouncer lets through, too."""
    statement = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
    return lambda name: _held_in_transaction(engine, statement, {"key": _digest(name)})


def _mysql_exclusion(engine: sqlalchemy.Engine) -> Exclusion:
    """Lock by a named lock of the connection, which is thrown away after it."""
    statement = sqlalchemy.text(f"SELECT GET_LOCK(:key, {PATIENCE_S:.0f})")
    return lambda name: _held_in_transaction(engine, statement, {"key": f"autonuq {_digest(name)}"})


@contextmanager
def _held_in_transaction(
    engine: sqlalchemy.Engine, statement: sqlalchemy.TextClause, key: dict[str, object]
) -> Iterator[None]:
    def acquire() -> sqlalchemy.Connection:
        connection = engine.connect()
        try:
            if connection.execute(statement, key).scalar() == 0:
                raise StudyError("another worker has held the study's lock for too long; is it suspended?")
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return connection

    connection = retry(acquire)
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):  # a lost connection has released it already
            if connection.dialect.name == "mysql":
                connection.invalidate()
            connection.close()


def _digest(name: str) -> int:
    """Return a signed 64-bit number, PostgreSQL's kind of key."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


_OPEN: Mapping[str, Callable[[str], tuple[BaseStorage, Exclusion]]] = {
    "sqlite": _open_sqlite,
    "postgresql": _open_postgresql,
    "postgres": _open_postgresql,
    "mysql": _open_mysql,
    "mariadb": _open_mysql,
}
