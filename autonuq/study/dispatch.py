"""Workers that a study's first process sends out: into processes of this machine, or into a cluster's.

Each does what one that joined by hand does (`workers.work`), with a `Parcel` of what the first process knows: the task
with its evaluator, and whose fingerprint that is. It stops when the sender does: a process of this machine at once, one
elsewhere, which is not ours to end, after its trial. Its own errors are ours or say that they are a bug, so that
whatever else is raised is the engine's.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import cloudpickle
import optuna

from autonuq.atomic import say_system_error, temporary_folder
from autonuq.errors import AutonuqError, EvaluatorError, StudyError
from autonuq.evaluate.evaluator import check_evaluator, evaluator_name
from autonuq.evaluate.isolation import end_with_parent
from autonuq.evaluate.sending import dumps_by_value
from autonuq.graph.hosted.permission import python_layers, python_layers_allowed
from autonuq.records import FINGERPRINT, SENDER, STOPPED
from autonuq.runtime.device import selection
from autonuq.search.sampler import stored_sampler
from autonuq.storage.lease import INTERVAL_S, Heartbeat, Lease, LeaseWatch, WorkerSession
from autonuq.storage.open import Storage, storage_file
from autonuq.study.attributes import StudyAttributes
from autonuq.study.engines import Engine, WorkerBug, WorkerKilled, engine_error, is_killed
from autonuq.study.locate import POLL_S, existing_storage
from autonuq.study.runner import Runner
from autonuq.study.stored import FINISHED
from autonuq.study.task import Task, make_folders, tell_nobody
from autonuq.study.workers import OPENING_S, check_versions, make_runner, materials, package_versions

MOST_CRASHES = 3
"""How often workers are replaced without a trial having finished."""

_ARRIVAL_S = 120.0  # until a cluster's worker has imported this package and made the evaluator


@dataclass(frozen=True)
class Parcel:
    """What a worker is sent.

    Attributes
    ----------
    task : Task
        With its evaluator made, and its configuration read.
    select : callable
        Selects the device.
    sender : Lease
    """

    task: Task
    select: Callable[[], None]
    sender: Lease


def check_workers(task: Task, engine: Engine, *, is_begun: bool = True) -> None:
    """Let the workers of a cluster make the evaluator and open the storage, before anything is prepared for them.

    Parameters
    ----------
    task : Task
        With its evaluator made.
    engine : Engine
    is_begun : bool
        The study is in its storage; otherwise nobody looks there.

    Raises
    ------
    StudyError, EvaluatorError
        One of them cannot; or the evaluator, or the sampler, cannot be sent.
    """
    if engine.jobs > 1 or not engine.is_here:
        _check_sampler_travels(task)
    if not engine.is_here:
        parcel = dumps_parcel(Parcel(task, selection(), WorkerSession().lease))
        allowed = python_layers_allowed()
        _call(engine, task.name, _arrive, _versions(), allowed, parcel, is_begun, timeout_s=_ARRIVAL_S)


def dumps_parcel(parcel: Parcel) -> bytes:
    """Pickle a parcel so that a process with the installed packages alone can open it.

    Raises
    ------
    EvaluatorError
        The evaluator cannot be pickled.
    """
    try:
        return dumps_by_value(parcel)
    except Exception as error:
        raise EvaluatorError(
            f"{evaluator_name(parcel.task.evaluator)} cannot be sent to workers: {type(error).__name__}: {error}; keep "
            "what cannot be pickled out of it, or name its file and class in a study file, and workers make their own"
        ) from error


def _check_sampler_travels(task: Task) -> None:
    try:
        dumps_by_value(task.sampler)
    except Exception as error:
        raise StudyError(
            f"its sampler, {stored_sampler(task.sampler)}, cannot be sent to workers: {type(error).__name__}: {error}; "
            "run one worker, jobs=1, or name a sampler",
            study=task.name,
        ) from error


def run_sent(runner: Runner, engine: Engine, deadline: float | None) -> None:
    """Run a prepared study by an engine's workers.

    Parameters
    ----------
    runner : Runner
        Of the first process, which only looks on.
    engine : Engine
    deadline : float or None
        On the monotonic clock.

    Raises
    ------
    StudyError
        The engine failed, or its workers are killed over and over.
    AutonuqError
        What a worker raised.

    Notes
    -----
    A worker that is killed is replaced; its trial goes back into the queue.
    """
    try:
        with WorkerSession() as sender, _sending(runner.study, sender.lease), _told(runner):
            _run_replacing(runner, engine, deadline, sender.lease)
        runner.tell_end()
    except BaseException:
        for number in runner.claims.give_back():
            shutil.rmtree(runner.task.trial_folder(number), ignore_errors=True)
        raise


@contextmanager
def _sending(study: optuna.Study, lease: Lease) -> Iterator[None]:
    """Let workers see in the study that their sender is there."""
    study.set_user_attr(SENDER, lease.as_attribute())
    try:
        with Heartbeat(study.set_user_attr, lease, SENDER):
            yield
    finally:
        with suppress(StudyError):  # out of reach: that is silence, too
            study.set_user_attr(SENDER, {})


def _run_replacing(runner: Runner, engine: Engine, deadline: float | None, sender: Lease) -> None:
    crashes, finished = 0, -1
    # As it was read: nobody reads, and warns of, a simplified configuration a second time.
    task = replace(runner.task, confirm=None, config=runner.candidate.model.config, cfg=None, pruner=None)
    parcel = Parcel(task, selection(), sender)
    sent = parcel if engine.is_here else dumps_parcel(parcel)
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        with suppress(WorkerKilled):
            _call(engine, task.name, _work, _versions(), python_layers_allowed(), sent, timeout)
            is_over = deadline is not None and time.monotonic() >= deadline
            if is_over or StudyAttributes(runner.study).get(STOPPED, str) or runner.claims.is_finished():
                return
            # They took this process for dead: it was suspended, or out of the storage's reach.
        before, finished = finished, len(runner.study.get_trials(deepcopy=False, states=FINISHED))
        crashes = 1 if finished > before else crashes + 1
        if crashes == MOST_CRASHES:
            raise StudyError(
                f"{crashes} times in a row a worker was killed before a trial was finished; out of memory? Run fewer "
                "with --jobs, then 'autonuq resume'",
                study=task.name,
            )


def _call(
    engine: Engine, study: str, function: Callable[..., None], *arguments: Any, timeout_s: float | None = None
) -> None:
    """Call a function once on each worker; what that raises is an error of ours, a bug, or the engine's."""
    try:
        engine.call(function, arguments, timeout_s)
    except AutonuqError:
        raise
    except WorkerBug as error:
        raise RuntimeError(f"a worker failed; there it says\n{error}") from error
    except Exception as error:
        if timeout_s is not None and isinstance(error, TimeoutError):
            words = f"the cluster's workers have not all taken up their task within {timeout_s:g} s; are they busy?"
            raise StudyError(words, study=study) from error
        raise WorkerKilled(str(error)) if is_killed(error) else engine_error(error, study) from error


@contextmanager
def _as_ours() -> Iterator[None]:
    """Let nothing out that could be taken for the engine's."""
    try:
        yield
    except AutonuqError:
        raise
    except OSError as error:
        raise StudyError(say_system_error(error)) from error
    except Exception as error:
        raise WorkerBug(traceback.format_exc()) from error


def _arrive(versions: Mapping[str, str], allowed: bool, parcel: bytes, is_begun: bool) -> None:
    """Open a parcel, on a worker, to see whether that can be done, and look for a study that is begun."""
    with _as_ours(), python_layers(allowed):
        task = _opened(versions, parcel).task
        check_evaluator(task.evaluator)
        if is_begun:
            _storage_of(task).load(task.name)


def _work(versions: Mapping[str, str], allowed: bool, parcel: Parcel | bytes, timeout: float | None) -> None:
    """Work on a study, on a worker, until nothing is left or its sender is gone; `allowed`: its `Python` layers are."""
    with _as_ours(), python_layers(allowed):
        deadline = None if timeout is None else time.monotonic() + timeout
        opened = parcel if isinstance(parcel, Parcel) else _opened(versions, parcel)
        opened.select()
        is_own = isinstance(parcel, Parcel) and os.getpid() != opened.sender.pid
        if is_own and threading.current_thread() is threading.main_thread():
            end_with_parent()
        _run(opened, deadline)


def _run(parcel: Parcel, deadline: float | None) -> None:
    task = parcel.task
    storage = _storage_of(task)
    study = storage.load(task.name)
    check_versions(study)
    with _folder_here(task) as task:
        task, candidate = materials(task, study, _evaluator_of(study))
        runner = make_runner(task, storage, study, candidate, tell_nobody, is_first=False)
        with _watching(study, parcel.sender) as is_abandoned:
            runner.run(deadline, is_abandoned)


@contextmanager
def _watching(study: optuna.Study, sender: Lease) -> Iterator[Callable[[], bool]]:
    """Say, when asked, whether the sender waits no more, or has been silent for too long: a thread watches that."""
    over, silent, watch = threading.Event(), threading.Event(), LeaseWatch()

    def look() -> None:
        while not over.wait(INTERVAL_S):
            with suppress(StudyError):  # out of reach for this worker, which says nothing of the sender
                if watch.silent({0: _sender_of(study)}):
                    silent.set()

    def is_abandoned() -> bool:
        return silent.is_set() or _sender_of(study).get("session") != sender.session

    threading.Thread(target=look, name="autonuq sender", daemon=True).start()
    try:
        yield is_abandoned
    finally:
        over.set()


def _sender_of(study: optuna.Study) -> Mapping[str, Any]:
    sender: Lease | Mapping[str, str] = StudyAttributes(study).get(SENDER, Lease | Mapping[str, str], {})
    return asdict(sender) if isinstance(sender, Lease) else sender


def _evaluator_of(study: optuna.Study) -> str:
    fingerprint: Mapping[str, str] = StudyAttributes(study).get(FINGERPRINT, Mapping[str, str], {})
    return fingerprint.get("evaluator", "")


def _versions() -> dict[str, str]:
    """Return the versions that two processes must share to understand a parcel: code is that of one minor Python."""
    return {**package_versions(), "Python": ".".join(map(str, sys.version_info[:2]))}


def _opened(versions: Mapping[str, str], parcel: bytes) -> Parcel:
    here = _versions()
    for name, number in versions.items():
        if here[name] != number:
            raise StudyError(f"the worker has {name} {here[name]}, the study {number}; install the same there")
    try:
        opened: Parcel = cloudpickle.loads(parcel)
    except AutonuqError:
        raise
    except Exception as error:
        raise EvaluatorError(
            f"the evaluator cannot be made on a worker: {type(error).__name__}: {error}; what it imports must be "
            "installed there"
        ) from error
    return opened


def _storage_of(task: Task) -> Storage:
    file = storage_file(task.storage)
    if file is not None and not file.exists():
        raise StudyError(
            f"a worker does not see the storage {file}: on other machines it must be a server (--storage "
            "postgresql://...), or lie in a folder that all of them share",
            study=task.name,
        )
    return existing_storage(task.name, task.storage, OPENING_S)


@contextmanager
def _folder_here(task: Task) -> Iterator[Task]:
    """Return the task with its folder: the study's, where this machine sees it, or one of its own, for the time."""
    if task.out.is_dir():
        make_folders(task)
        yield task
        return
    with temporary_folder() as folder:
        task = replace(task, out=folder, artifacts=task.artifacts_location)
        make_folders(task)
        yield task


@contextmanager
def _told(runner: Runner) -> Iterator[None]:
    """Tell of every trial that finishes meanwhile, from a thread that reads the storage.

    What a callback raises there ends the workers after their trials, and is raised here then.
    """
    stop = threading.Event()
    total = runner.claims.total()
    runner.tally.news(total)
    raised: list[Exception] = []

    def tell() -> None:
        for progress in runner.tally.news(total):
            runner.tell(progress)

    def watch() -> None:
        while not stop.wait(POLL_S) and not raised:
            with suppress(StudyError):  # out of reach; the workers will say so
                try:
                    tell()
                except StudyError:
                    raise
                except Exception as error:
                    raised.append(error)
                    runner.study.set_user_attr(STOPPED, f"a callback raised {type(error).__name__}")

    thread = threading.Thread(target=watch, name="autonuq progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if raised:
            raise raised[0]
        tell()
