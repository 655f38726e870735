"""Storages in SQL databases: how they are opened, and their locks. It alone loads SQLAlchemy with itself.

A host whose link is cut leaves a session behind that the server holds for alive, with all that it has locked. The
server therefore ends a session of ours that is silent within a transaction (MySQL: that is silent at all), and each end
notices a connection that is dead. What a URL itself says of any of these settings counts.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import event
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.exc import SQLAlchemyError

from autonuq.storage.exclusion import (
    CONNECT_S,
    LONGEST_HOLD_S,
    LONGEST_WAIT_S,
    Exclusion,
    file_exclusion,
    no_exclusion,
)
from autonuq.storage.retries import PATIENCE_S, retry

_BUSY_S = 60  # how long SQLite waits for another process
_POLL_S = 0.1  # how often a lock is asked for
_TABLES = "autonuq: tables"  # what is locked while they are made

# Of each transaction, because PgBouncer hands a session from one client to the next.
_POSTGRESQL_TRANSACTION = {
    "idle_in_transaction_session_timeout": f"{LONGEST_HOLD_S}s",
    "lock_timeout": f"{LONGEST_WAIT_S}s",
}
_POSTGRESQL_SESSION = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
_MYSQL_SESSION = {  # it ends silent sessions only, in a transaction or not; Optuna looks before it uses an old one
    "wait_timeout": LONGEST_HOLD_S,
    "innodb_lock_wait_timeout": LONGEST_WAIT_S,
    "lock_wait_timeout": LONGEST_WAIT_S,
}

_LIBPQ = {
    "connect_timeout": CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_MYSQL = {"connect_timeout": CONNECT_S, "read_timeout": LONGEST_WAIT_S + 5, "write_timeout": 15}
_CLIENT: Mapping[str, Mapping[str, int | None]] = {  # what each driver knows
    "psycopg": {**_LIBPQ, "prepare_threshold": None},  # PgBouncer's other session does not know what was prepared
    "psycopg2": _LIBPQ,
    "pymysql": _MYSQL,
    "mysqldb": _MYSQL,
}


_Prepare = Callable[[sqlalchemy.Engine], AbstractContextManager[None]]


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


class _Preparation(CreateEnginePlugin):
    """Hands Optuna's engine to the option `prepare` before anything connects with it."""

    def __init__(self, _: sqlalchemy.URL, options: dict[str, Any]) -> None:
        self._prepare: Callable[[sqlalchemy.Engine], object] = options.pop("prepare")

    def update_url(self, url: sqlalchemy.URL) -> sqlalchemy.URL:
        """Leave it as it is."""
        return url

    def engine_created(self, engine: sqlalchemy.Engine) -> None:
        """Prepare it."""
        self._prepare(engine)


plugins.register("autonuq", __name__, _Preparation.__name__)


def _opened(url: str, client: Mapping[str, int | None], prepare: _Prepare) -> RDBStorage:
    """Open a storage, its tables made within the context that `prepare` returns."""
    own = sqlalchemy.make_url(url).query
    with ExitStack() as within:
        options = {
            "connect_args": {key: value for key, value in client.items() if key not in own},
            "plugins": ["autonuq"],
            "prepare": lambda engine: within.enter_context(prepare(engine)),
        }
        return RDBStorage(url, options)


def _open_sqlite(url: str) -> tuple[BaseStorage, Exclusion]:
    storage = _opened(url, {"timeout": _BUSY_S}, _making_sqlite)
    # SQLite knows no SELECT ... FOR UPDATE: unless every transaction takes the lock at its beginning, two workers read
    # a queued trial as theirs, and one that begins to write late fails at once.
    event.listen(storage.engine, "connect", _prepare_connection)
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.engine.dispose()
    return get_storage(storage), _sqlite_exclusion(storage.engine)


def _sqlite_exclusion(engine: sqlalchemy.Engine) -> Exclusion:
    return file_exclusion(Path(engine.url.database)) if engine.url.database else no_exclusion


def _making_sqlite(engine: sqlalchemy.Engine) -> AbstractContextManager[None]:
    """Lock the study, for Optuna makes the tables by several transactions; who only opens it waits for no worker."""
    last = "alembic_version"  # of what Optuna makes
    with engine.connect() as connection:
        is_there = sqlalchemy.inspect(connection).has_table(last)
        is_made = is_there and connection.exec_driver_sql(f"SELECT * FROM {last}").first() is not None
    return nullcontext() if is_made else _sqlite_exclusion(engine)(_TABLES)


def _prepare_connection(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun by us
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _open_postgresql(url: str) -> tuple[BaseStorage, Exclusion]:
    return _open_server(url, "postgresql+psycopg", _bound_postgresql, _postgresql_lock)


def _postgresql_lock(name: str) -> sqlalchemy.TextClause:
    """Ask for an advisory lock of a transaction, which PgBouncer lets through, too."""
    return sqlalchemy.text("SELECT pg_try_advisory_xact_lock(:key)").bindparams(key=_digest(name))


def _bound_postgresql(engine: sqlalchemy.Engine) -> None:
    session = _postgresql_settings(engine, _POSTGRESQL_SESSION, is_local=False)
    transaction = _postgresql_settings(engine, _POSTGRESQL_TRANSACTION, is_local=True)
    if session:
        event.listen(engine, "connect", lambda connection, _: _execute(connection, session))
    if transaction:
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(transaction))


def _postgresql_settings(engine: sqlalchemy.Engine, settings: Mapping[str, str], *, is_local: bool) -> str:
    own = os.environ.get("PGOPTIONS", "") + str(engine.url.query)
    calls = [f"set_config('{key}', '{value}', {is_local})" for key, value in settings.items() if key not in own]
    return f"SELECT {', '.join(calls)}" if calls else ""


def _open_mysql(url: str) -> tuple[BaseStorage, Exclusion]:
    return _open_server(url, "mysql+pymysql", _bound_mysql, _mysql_lock)


def _mysql_lock(name: str) -> sqlalchemy.TextClause:
    """Ask for a named lock of the connection, which is thrown away after it."""
    return sqlalchemy.text("SELECT GET_LOCK(:key, 0)").bindparams(key=f"autonuq {_digest(name)}")


def _bound_mysql(engine: sqlalchemy.Engine) -> None:
    own = str(engine.url.query)
    settings = [f"{key} = {value}" for key, value in _MYSQL_SESSION.items() if key not in own]
    if settings:
        statement = f"SET SESSION {', '.join(settings)}"
        event.listen(engine, "connect", lambda connection, _: _execute(connection, statement))


def _execute(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()
    connection.commit()


def _open_other(url: str) -> tuple[BaseStorage, Exclusion]:
    return get_storage(url), no_exclusion


def _open_server(
    url: str,
    scheme: str,
    bound: Callable[[sqlalchemy.Engine], None],
    lock_of: Callable[[str], sqlalchemy.TextClause],
) -> tuple[BaseStorage, Exclusion]:
    """Connect to a database server, with the driver of our extra unless the URL names another."""
    named, _, rest = url.partition("://")
    url = f"{named if '+' in named else scheme}://{rest}"

    def prepare(engine: sqlalchemy.Engine) -> AbstractContextManager[None]:
        bound(engine)
        return _held(engine, lock_of(_TABLES), 0.0)  # who opens a storage says how long it tries

    storage = _opened(url, _CLIENT.get(sqlalchemy.make_url(url).get_driver_name(), {}), prepare)
    return get_storage(storage), lambda name: _held(storage.engine, lock_of(name), PATIENCE_S)


@contextmanager
def _held(engine: sqlalchemy.Engine, lock: sqlalchemy.TextClause, patience_s: float) -> Iterator[None]:
    """Hold a lock by a connection of its own, and try a lost one again for a stated time.

    It is asked for again and again: who waits at the server may get it after its host has vanished, and keeps a session
    from the others where PgBouncer has few.
    """
    while (connection := retry(lambda: _locked(engine, lock), patience_s)) is None:
        time.sleep(random.uniform(0.5, 1.5) * _POLL_S)
    try:
        yield
    finally:
        _release(connection)


def _locked(engine: sqlalchemy.Engine, lock: sqlalchemy.TextClause) -> sqlalchemy.Connection | None:
    """Return the connection that holds the lock, None while another one does."""
    connection = engine.connect()
    try:
        if connection.execute(lock).scalar():
            return connection
    except BaseException:
        connection.invalidate()
        connection.close()
        raise
    connection.close()
    return None


def _release(connection: sqlalchemy.Connection) -> None:
    """End the transaction, and the connection where that does not release; a lost one has released it already."""
    try:
        connection.rollback()
    except SQLAlchemyError:
        connection.invalidate()
    if connection.dialect.name in ("mysql", "mariadb"):
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
