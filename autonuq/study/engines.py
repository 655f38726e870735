"""Where a study's workers run: in processes of this machine, or in a cluster's, Dask's or Ray's.

joblib drives all of them. This is the one edge where the engines' own errors become ours.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import joblib
from joblib.parallel import get_active_backend

from autonuq.errors import StudyError

DASK, RAY = "dask", "ray"
BACKENDS = (DASK, RAY)

CONNECT_S = 15.0
"""How long a cluster is called, in seconds, and how long it is waited for its first worker."""
_EMPTY_S = 60.0  # how long a cluster may be without a worker
_LOOK_S = 5.0

_KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "RayActorError", "WorkerCrashedError")
"""What joblib's loky, Dask and Ray call a worker that was killed, or what that is a kind of."""


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


@contextmanager
def engine(workers: Workers) -> Iterator[int]:
    """Let joblib send to these workers meanwhile; the value is how many there are.

    Raises
    ------
    StudyError
        The engine is not installed, cannot be reached, or has no worker.
    """
    with _ENGINES[workers.backend](workers) as jobs:
        yield jobs


@contextmanager
def _joblib(workers: Workers) -> Iterator[int]:
    yield workers.jobs or 1


@contextmanager
def _dask(workers: Workers) -> Iterator[int]:
    distributed = _imported("distributed", DASK)
    with _silenced("distributed"):
        try:
            client = distributed.Client(workers.address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise StudyError(f"Dask's scheduler at {workers.address} cannot be reached: {_said(error)}") from error
        try:
            _wait_for_dask_worker(client, workers.address)
            with _closed_when_empty(client), joblib.parallel_config(backend=DASK, client=client):
                yield workers.jobs or len(client.ncores())
        finally:
            with suppress(Exception):  # its scheduler may be gone
                client.close(timeout=_LOOK_S)


def _wait_for_dask_worker(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise StudyError(f"Dask's scheduler at {address} has no worker; start some: 'dask worker {address}'") from error


@contextmanager
def _closed_when_empty(client: Any) -> Iterator[None]:
    """Close the client, which ends what waits for it, when its last worker has been gone for too long."""
    over = threading.Event()

    def watch() -> None:
        empty_s = 0.0
        while not over.wait(_LOOK_S):
            try:
                empty_s = 0.0 if client.ncores() else empty_s + _LOOK_S
            except Exception:  # the scheduler is out of reach, which the client notices itself
                return
            if empty_s >= _EMPTY_S:
                client.close(timeout=_LOOK_S)
                return

    threading.Thread(target=watch, name="autonuq dask", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _ray(workers: Workers) -> Iterator[int]:
    ray, ray_joblib = _imported("ray", RAY), _imported("ray.util.joblib", RAY)
    _check_port(workers.address)
    begins = not ray.is_initialized()
    with _silenced("ray"):
        try:
            if begins:
                ray.init(address=workers.address or "auto", log_to_driver=False, logging_level=logging.CRITICAL)
            ray_joblib.register_ray()
            jobs = workers.jobs or int(ray.cluster_resources().get("CPU", 1))
        except Exception as error:
            where = f" at {workers.address}" if workers.address else ""
            raise StudyError(f"Ray's cluster{where} cannot be reached: {_said(error)}") from error
        try:
            with joblib.parallel_config(backend=RAY):
                yield jobs
        finally:
            if begins:
                ray.shutdown()


def _check_port(address: str) -> None:
    """Call an address once: Ray itself tries one that nobody answers for minutes."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if place.port is None:
        return
    try:
        socket.create_connection((place.hostname or "localhost", place.port), CONNECT_S).close()
    except OSError as error:
        raise StudyError(f"Ray's cluster at {address} cannot be reached: {_said(error)}") from error


_ENGINES: dict[str, Callable[[Workers], Any]] = {"": _joblib, DASK: _dask, RAY: _ray}


def _imported(module: str, backend: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise StudyError(f"backend {backend} is not installed; pip install 'autonuq[{backend}]'") from error


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep an engine's log to itself: what matters of it comes as an error."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def is_of_this_machine() -> bool:
    """Say whether joblib runs its workers here: processes or threads of its own, not an engine's."""
    backend, _ = get_active_backend()
    return type(backend).__module__.partition(".")[0] == "joblib" and type(backend).__name__ != "DaskDistributedBackend"


def is_killed(error: Exception) -> bool:
    """Say whether an engine's error is that a worker's process was killed, or died."""
    return any(kind.__name__ in _KILLED for kind in type(error).__mro__)


def engine_error(error: Exception, study: str) -> StudyError:
    """Make the error of a study whose engine failed."""
    return StudyError(
        f"the engine that runs the workers failed: {_said(error)}; nothing that had finished is lost: when it runs "
        "again, go on with 'autonuq resume'",
        study=study,
    )


def _said(error: BaseException) -> str:
    """Return the first line of what an engine says, or of what it had that from, and what kind of error it is."""
    text = next((line for line in str(error).strip().splitlines() if line.strip()), "")
    if error.__cause__ is not None and str(error.__cause__):
        text = f"{text}: {str(error.__cause__).splitlines()[0]}" if text else str(error.__cause__).splitlines()[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
