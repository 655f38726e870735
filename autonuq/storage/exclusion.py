"""Mutual exclusion of a study's workers, by the means of each storage.

Trials are claimed, given back and proposed by one worker at a time, so that each sees what the others run. Every lock
ends by itself when its holder dies, and after a stated time when the holder is suspended or its host vanishes, whose
end nobody sees: the server takes it away, or the others pass it by. A holder that lives and lost it does no harm (see
`study.claims`), so that nothing extends a lock. Those of SQL databases are in `sql`. Through the gRPC proxy nothing
can be locked; there `study.claims` lets workers take turns by their trials' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from autonuq.storage.journal_file import FileLock
from autonuq.storage.retries import retry

Exclusion = Callable[[str], AbstractContextManager[None]]
"""Study name -> context within which no other worker of that study is in it."""

LONGEST_HOLD_S = 30
"""How long a lock outlasts a holder that says nothing, in seconds; the longest proposals take a few."""

LONGEST_WAIT_S = 40
"""How long a server lets a statement wait for what another one has locked, in seconds: longer than that one can."""

CONNECT_S = 10
"""How long a connection may take to be made, in seconds; beyond, it is tried again."""

_REDIS_SILENCE_S = 15


def no_exclusion(name: str) -> AbstractContextManager[None]:
    """Lock nothing."""
    return nullcontext()


def file_exclusion(path: Path) -> Exclusion:
    """Lock a file beside a storage that is a file; the system cannot take it from a holder that is suspended."""

    @contextmanager
    def exclusion(name: str) -> Iterator[None]:
        lock = FileLock(path.with_name(f"{path.name}.claims"))
        lock.acquire(LONGEST_HOLD_S)
        try:
            yield
        finally:
            lock.release()

    return exclusion


def bounded_redis(url: str) -> str:
    """Return the URL with options by which a lost connection is noticed, but for those that it has already."""
    options = {
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": _REDIS_SILENCE_S,
        "socket_keepalive": True,
        "health_check_interval": _REDIS_SILENCE_S,
    }
    place = urlsplit(url)
    there = parse_qs(place.query, keep_blank_values=True)
    more = urlencode({key: value for key, value in options.items() if key not in there})
    return place._replace(query="&".join(filter(None, (place.query, more)))).geturl()


def redis_exclusion(url: str) -> Exclusion:
    """Lock by a key that expires."""
    import redis

    client = redis.Redis.from_url(url)

    @contextmanager
    def exclusion(name: str) -> Iterator[None]:
        lock = client.lock(f"autonuq:claims:{name}", timeout=LONGEST_HOLD_S)
        retry(lock.acquire)
        try:
            yield
        finally:
            with suppress(redis.RedisError):
                lock.release()

    return exclusion
