"""The cores of the machine, shared by work that is independent of each other.

Work side by side runs in threads: nearly all of its time goes to compiled loops, BLAS and the engine, which run without
Python's lock. All that is under way in a process shares the cores that it may use and `BESIDE_BYTES` of memory, work
within work too: what finds no core free is done by the thread that asks for it. BLAS keeps to one thread meanwhile, for
two reasons. Its threads and these would wait for each other at each small product. And what it returns depends in the
last bit on how many threads it has: codes that are chosen by that would be other ones on a machine with other cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

BESIDE_BYTES = 1 << 30
"""What all that runs beside something else may take of memory, together; what takes more runs alone."""

_POLL_S = 0.2  # a wait without an end cannot be interrupted on Windows


class _Unwanted(BaseException):
    """Work that nobody waits for any more stops; it is no error of its own."""


class _Run(Generic[Item, Result]):
    """Items of work, taken one after the other by several threads.

    Parameters
    ----------
    work : callable
    items : sequence
    """

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._work, self._items = work, items
        self._lock, self._begun, self._wanted = threading.Lock(), 0, len(items)
        self._results: dict[int, Result] = {}
        self._error: BaseException | None = None
        self._parent = _under_way.get()
        self._numpy = np.geterr()  # NumPy 1 keeps them for each thread

    def take(self) -> None:
        """Do what is left to do, until another thread has begun with the last item."""
        with suppress(_Unwanted):
            while (index := self._claimed()) is not None:
                before = _under_way.set((self, index))
                try:
                    self._results[index] = self._work(self._items[index])
                except Exception as error:
                    self._fail(index, error)
                finally:
                    _under_way.reset(before)

    def take_beside(self) -> None:
        """Do the same in another thread than the one that waits, which is told of whatever ends it."""
        try:
            with np.errstate(**self._numpy):
                self.take()
        except BaseException as error:
            self._fail(0, error)

    def stop(self) -> None:
        """Want nothing any more."""
        self._wanted = 0

    def is_wanted(self, index: int) -> bool:
        """Say whether somebody still waits for an item."""
        return index < self._wanted and (self._parent is None or self._parent[0].is_wanted(self._parent[1]))

    def results(self) -> list[Result]:
        """Return what came of the items, or raise the error of the first one that failed."""
        if self._error is not None:
            raise self._error
        return [self._results[index] for index in range(len(self._items))]

    def _claimed(self) -> int | None:
        with self._lock:
            index = self._begun
            self._begun += 1
        return index if index < self._wanted else None

    def _fail(self, index: int, error: BaseException) -> None:
        """Go on with the items before this one only: the error that is seen is the one that a single thread meets."""
        with self._lock:
            if index < self._wanted:
                self._wanted, self._error = index, error


_under_way: ContextVar[tuple[_Run[Any, Any], int] | None] = ContextVar("under_way", default=None)


def check_wanted() -> None:
    """End what this thread does if it runs beside something that failed or was interrupted; long loops ask this."""
    own = _under_way.get()
    if own is not None and not own[0].is_wanted(own[1]):
        raise _Unwanted


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], *, each_bytes: float = 0.0) -> list[Result]:
    """Do the same with several items, on as many cores as are free.

    Parameters
    ----------
    work : callable
        Takes an item; depends on no other one.
    items : sequence
    each_bytes : float
        Memory that an item takes while it is worked on.

    Returns
    -------
    list
        What came of the items, in their order.

    Raises
    ------
    Exception
        That of the first item that failed: the one that a single thread would have met. No other one is begun, and
        those behind it that are under way end at their next `check_wanted`; so they do on Ctrl-C.
    """
    run = _Run(work, items)
    with one_blas_thread(), _cores.borrowed(len(items) - 1, each_bytes) as beside:
        threads = [
            threading.Thread(target=copy_context().run, args=(run.take_beside,), name="autonuq core", daemon=True)
            for _ in range(beside)
        ]
        try:
            for thread in threads:
                thread.start()
            run.take()
            _join(threads)
        except BaseException:
            run.stop()
            _join(threads)
            raise
    check_wanted()
    return run.results()


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(_POLL_S)


class _Cores:
    """What is lent to work that runs beside something else."""

    def __init__(self) -> None:
        self._lock, self._threads, self._bytes = threading.Lock(), 0, 0.0

    @contextmanager
    def borrowed(self, wanted: int, each_bytes: float) -> Iterator[int]:
        """Lend threads, as many as are wanted or there are."""
        with self._lock:
            free = available_cores() - 1 - self._threads
            fitting = (BESIDE_BYTES - self._bytes) // each_bytes if each_bytes else wanted
            lent = max(0, int(min(wanted, free, fitting)))
            self._threads, self._bytes = self._threads + lent, self._bytes + lent * each_bytes
        try:
            yield lent
        finally:
            with self._lock:
                self._threads, self._bytes = self._threads - lent, self._bytes - lent * each_bytes


_cores = _Cores()


def available_cores() -> int:
    """Return how many threads of this process may work at a time.

    As many as BLAS may have: that is what OMP_NUM_THREADS and its like say, and what joblib leaves each of its workers.
    But no more than the processors that the process may use, or its control group.
    """
    import joblib  # late: most commands do without

    return min(_blas.threads(), int(joblib.cpu_count()))


class _Blas:
    """The number of BLAS's threads, which all threads of the process share."""

    def __init__(self) -> None:
        self._lock, self._users, self._allowed = threading.RLock(), 0, 1
        self._limiter: Any = None

    def threads(self) -> int:
        """Return how many BLAS may have where it is not kept to one."""
        with self._lock:
            return self._allowed if self._users else _allowed_threads()

    @contextmanager
    def kept_to_one(self) -> Iterator[None]:
        """Keep BLAS to one thread; the last user gives it back what it had."""
        with self._lock:
            if not self._users:
                self._allowed = _allowed_threads()
                self._limiter = _libraries().limit(limits=1, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._limiter.restore_original_limits()


_blas = _Blas()
one_blas_thread = _blas.kept_to_one


@cache
def _libraries() -> ThreadpoolController:
    """Look once for the libraries that have threads: it takes 10 ms."""
    return ThreadpoolController()


def _allowed_threads() -> int:
    return max((library["num_threads"] for library in _libraries().select(user_api="blas").info()), default=1)
