"""Mutual exclusion of a study's workers, by the means of each storage.

Trials are claimed, given back and proposed by one worker at a time, so that each sees what the others run. Every lock
here ends by itself when its holder dies or loses the storage. Through the gRPC proxy nothing can be locked; there
`claims` lets workers take turns by their trials' numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from autonuq.errors import StudyError
from autonuq.storage.journal_file import FileLock
from autonuq.storage.retries import PATIENCE_S, retry

Exclusion = Callable[[str], AbstractContextManager[None]]
"""Study name -> context within which no other worker of that study is in it."""

_LONGEST_HOLD_S = 120  # Redis alone cannot tell that a holder is dead


def no_exclusion(name: str) -> AbstractContextManager[None]:
    """Lock nothing."""
    return nullcontext()


def file_exclusion(path: Path) -> Exclusion:
    """Lock a file beside a storage that is a file."""
    return lambda name: FileLock(path.with_name(f"{path.name}.claims"))


def postgresql_exclusion(engine: sqlalchemy.Engine) -> Exclusion:
    """Lock by an advisory lock of a transaction, which PgBouncer lets through, too."""
    statement = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
    return lambda name: _held_in_transaction(engine, statement, {"key": _digest(name)})


def mysql_exclusion(engine: sqlalchemy.Engine) -> Exclusion:
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


def redis_exclusion(url: str) -> Exclusion:
    """Lock by a key that expires."""
    import redis

    client = redis.Redis.from_url(url)

    @contextmanager
    def exclusion(name: str) -> Iterator[None]:
        lock = client.lock(f"autonuq:claims:{name}", timeout=_LONGEST_HOLD_S)
        retry(lock.acquire)
        try:
            yield
        finally:
            with suppress(redis.RedisError):
                lock.release()

    return exclusion


def _digest(name: str) -> int:
    """Return a signed 64-bit number, PostgreSQL's kind of key."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
