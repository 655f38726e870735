"""Mutual exclusion of a study's workers, by the means of each storage.

Trials are claimed, given back and proposed by one worker at a time, so that each sees what the others run. Every lock
ends by itself when its holder dies or loses the storage; those of SQL databases are in `sql`. Through the gRPC proxy
nothing can be locked; there `study.claims` lets workers take turns by their trials' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from autonuq.storage.journal_file import FileLock
from autonuq.storage.retries import retry

Exclusion = Callable[[str], AbstractContextManager[None]]
"""Study name -> context within which no other worker of that study is in it."""

_LONGEST_HOLD_S = 120  # Redis alone cannot tell that a holder is dead


def no_exclusion(name: str) -> AbstractContextManager[None]:
    """Lock nothing."""
    return nullcontext()


def file_exclusion(path: Path) -> Exclusion:
    """Lock a file beside a storage that is a file."""
    return lambda name: FileLock(path.with_name(f"{path.name}.claims"))


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
