"""Optuna's journal in Redis, without its snapshots.

A snapshot is a pickle, and to open one runs what whoever writes to the server has put there. The entries themselves are
JSON and say the same.
"""

from __future__ import annotations

from optuna.storages.journal import JournalRedisBackend


class JournalRedis(JournalRedisBackend):
    """A journal that is read from its beginning."""

    def load_snapshot(self) -> None:
        """Return none: it would be unpickled."""

    def save_snapshot(self, snapshot: bytes) -> None:
        """Keep none."""
