"""Where a study's workers run: in processes of this machine, or in a cluster's, Dask's or Ray's.

joblib drives them, and Ray its own calls. This is the one edge where the engines' own errors become ours.
"""

from __future__ import annotations

import _thread
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import joblib
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool
from joblib.parallel import get_active_backend

from autonuq.errors import StudyError
from autonuq.evaluate.isolation import end_with_parent

DASK, RAY = "dask", "ray"
BACKENDS = (DASK, RAY)

CONNECT_S = 15.0
"""How long a cluster is called, in seconds, and how long it is waited for its first worker."""
RESUME = "nothing that had finished is lost: when it runs again, go on with 'autonuq resume'"
_EMPTY_S, _SILENT_S = 60.0, 15.0  # how long a cluster may be without a worker, or silent
_LOOK_S = 2.0
# Ray ends a process whose cluster is gone after a minute, in the middle of whatever it does.
_RAY_SETTINGS = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600", "RAY_BACKEND_LOG_LEVEL": "fatal"}

_KILLED = ("BrokenProcessPool", "KilledWorker", "RayActorError", "WorkerCrashedError", "WorkerKilled")
"""What joblib's loky, Dask and Ray call a worker that was killed, or what that is a kind of."""
_UNREADABLE = "un-serialize"  # says loky of such an error where a worker cannot make its task of what it was sent


@dataclass(frozen=True)
class Workers:
    """Which workers run a study's trials.

    Attributes
    ----------
    backend : str
        Out of `BACKENDS`; empty: processes of this machine, or what joblib's `parallel_config` says.
    address : str
        Of Dask's scheduler, or of Ray's cluster: empty for the one that this machine belongs to.
    jobs : int or None
        How many; None for one here, or as many as the cluster has.
    """

    backend: str = ""
    address: str = ""
    jobs: int | None = None

    @property
    def broken_rule(self) -> str:
        """What is wrong with backend and address together; empty if nothing is."""
        if self.address and not self.backend:
            return "an address needs a backend, dask or ray"
        if self.backend == DASK and not self.address:
            return "backend dask needs the address of its scheduler, such as tcp://host:8786"
        return ""


@dataclass(frozen=True)
class Engine:
    """What runs a study's workers.

    Attributes
    ----------
    jobs : int
        How many workers.
    is_here : bool
        They are processes or threads of this machine, which joblib makes; an engine's own otherwise.
    call : callable
        Takes a function, its arguments, and a time in seconds or None; calls it once on each worker. It raises what
        the function raises, or what the engine does.
    """

    jobs: int
    is_here: bool
    call: Callable[[Callable[..., None], tuple[Any, ...], float | None], None]


@contextmanager
def engine(workers: Workers) -> Iterator[Engine]:
    """Connect to what runs these workers.

    Raises
    ------
    StudyError
        The engine is not installed, cannot be reached, or has no worker.
    """
    with _ENGINES[workers.backend](workers) as made:
        yield made


@contextmanager
def _joblib(workers: Workers) -> Iterator[Engine]:
    jobs = workers.jobs or 1
    yield Engine(jobs, _is_of_joblib(), partial(_call_by_joblib, jobs))


def _is_of_joblib() -> bool:
    """Say whether joblib makes the workers itself, rather than what its `parallel_config` names."""
    backend, _ = get_active_backend()
    return type(backend).__module__.partition(".")[0] == "joblib" and type(backend).__name__ != "DaskDistributedBackend"


def _call_by_joblib(
    jobs: int, function: Callable[..., None], arguments: tuple[Any, ...], timeout_s: float | None
) -> None:
    processes = jobs
    if not _is_of_joblib():
        processes = max(2, jobs)  # Ray's backend does a single job in this process
        function, arguments = pickle.loads, (pickle.dumps(_Call(function, arguments)),)
    call = joblib.Parallel(n_jobs=processes, batch_size=1, timeout=timeout_s)
    call(joblib.delayed(function)(*arguments) for _ in range(jobs))


@dataclass(frozen=True)
class _Call:
    """A call that is made by unpickling it: a worker of Dask's that cannot read a task, for lack of a package, dies."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return self.function, self.arguments


@contextmanager
def _dask(workers: Workers) -> Iterator[Engine]:
    distributed, address = _imported("distributed", DASK), workers.address
    _check_port("Dask's scheduler", address)
    with _silenced("distributed"), _silenced("tornado"):  # what is left of a call when the client closes
        try:
            client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise StudyError(f"Dask's scheduler at {address} cannot be reached: {_said(error)}") from error
        try:
            _wait_for_dask_worker(client, address)
            gone = f"Dask's scheduler at {address} has no worker any more"
            with _watched(client.ncores, gone), joblib.parallel_config(backend=DASK, client=client):
                jobs = workers.jobs or len(client.ncores())
                yield Engine(jobs, False, partial(_call_by_joblib, jobs))
        finally:
            with suppress(Exception):  # its scheduler may be gone
                client.close(timeout=_LOOK_S)


def _wait_for_dask_worker(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise StudyError(f"Dask's scheduler at {address} has no worker; start some: 'dask worker {address}'") from error


@contextmanager
def _ray(workers: Workers) -> Iterator[Engine]:
    """Connect to Ray from a process of its own: whoever is connected cannot leave a cluster that is gone."""
    _imported("ray", RAY)
    _check_port("Ray's cluster", workers.address)
    where = f"Ray's cluster at {workers.address}" if workers.address else "Ray's cluster of this machine"
    process = ProcessPoolExecutor(1, initializer=end_with_parent, env=_RAY_SETTINGS)

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise StudyError(f"{where} answers no more; {RESUME}") from error

    try:
        cpus = ask(_connect_to_ray, workers.address, where)
        jobs = workers.jobs or cpus
        yield Engine(jobs, False, partial(ask, _call_by_ray, jobs))
    finally:
        process.shutdown(kill_workers=True)


def _connect_to_ray(address: str, where: str) -> int:
    """Connect this process to Ray's cluster, and return how many CPUs that has."""
    ray = import_module(RAY)
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        raise StudyError(f"{where} cannot be reached: {_said(error)}") from error
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_end_without_ray, args=(head,), name="autonuq engine", daemon=True).start()
    return int(ray.cluster_resources().get("CPU", 1))


def _end_without_ray(head: str) -> None:
    last = time.monotonic()
    while time.monotonic() - last < _SILENT_S:
        time.sleep(_LOOK_S)
        with suppress(OSError):
            last = time.monotonic() if _answers(head) else last
    os._exit(1)


def _call_by_ray(jobs: int, function: Callable[..., None], arguments: tuple[Any, ...], timeout_s: float | None) -> None:
    """Call a function once on each worker; not through joblib, which has no jobs within a process that loky made."""
    ray = import_module(RAY)
    task = ray.remote(max_retries=0, scheduling_strategy="SPREAD")(function)
    waiting = [task.remote(*arguments) for _ in range(jobs)]
    try:
        while waiting:
            ended, waiting = ray.wait(waiting, timeout=timeout_s)
            if not ended:
                raise TimeoutError
            ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or RuntimeError(_said(error))) from None
    except ray.exceptions.RayError as error:  # whose class may not survive the way back
        raise (WorkerKilled if is_killed(error) else RuntimeError)(_said(error)) from None


@contextmanager
def _watched(is_there: Callable[[], object], gone: str) -> Iterator[None]:
    """End the wait of the main thread when an engine has had no worker for too long; it would itself wait for ever.

    Parameters
    ----------
    is_there : callable
        Its value is true while there is one; it may raise.
    gone : str
        What is wrong then.

    Raises
    ------
    StudyError
        The engine is gone.
    """
    over, ended = threading.Event(), threading.Event()
    can_be_ended = threading.current_thread() is threading.main_thread()

    def watch() -> None:
        last = time.monotonic()
        while not over.wait(_LOOK_S):
            with suppress(Exception):
                last = time.monotonic() if is_there() else last
            if time.monotonic() - last > _EMPTY_S:
                ended.set()
                _thread.interrupt_main()
                return

    if can_be_ended:
        threading.Thread(target=watch, name="autonuq engine", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt as error:
        if ended.is_set():
            raise StudyError(f"{gone}; {RESUME}") from error
        raise
    finally:
        over.set()


def _check_port(what: str, address: str) -> None:
    """Call an address once: the engines themselves try one that nobody answers for long."""
    try:
        _answers(address)
    except (OSError, ValueError) as error:
        raise StudyError(f"{what} at {address} cannot be reached: {_said(error)}") from error


def _answers(address: str) -> bool:
    """Connect to the host and port of an address, if it has both."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), CONNECT_S).close()
    return True


_ENGINES: Mapping[str, Callable[[Workers], Any]] = {"": _joblib, DASK: _dask, RAY: _ray}


def _imported(module: str, backend: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise StudyError(f"backend {backend} is not installed; pip install 'autonuq[{backend}]'") from error


@contextmanager
def _silenced(package: str) -> Iterator[None]:
    """Keep an engine's logs to itself: what matters of them comes as an error."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == package]
    levels = {log: log.level for log in map(logging.getLogger, names)}
    for log in levels:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)


class WorkerKilled(Exception):
    """A worker's process is gone."""


class WorkerBug(Exception):
    """The traceback of an error in a worker that is neither ours nor the engine's."""


def is_killed(error: Exception) -> bool:
    """Say whether a worker's process was killed, or died, by an engine's error; not that it cannot read its task."""
    return _UNREADABLE not in str(error) and any(kind.__name__ in _KILLED for kind in type(error).__mro__)


def engine_error(error: Exception, study: str) -> StudyError:
    """Make the error of a study whose engine failed."""
    return StudyError(f"the engine that runs the workers failed: {_said(error)}; {RESUME}", study=study)


def _said(error: BaseException) -> str:
    """Return what kind of error an engine has, the first line of what it says, and of what it had that from."""
    causes = [error] if error.__cause__ is None else [error, error.__cause__]
    return ": ".join(filter(None, [type(error).__name__, *map(_first_line, causes)]))


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text; nothing of a traceback that a worker sent."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "" if not lines or lines[0].startswith(('"""', "Traceback")) else lines[0]
