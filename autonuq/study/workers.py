"""More than one worker: joined by hand from anywhere (`work`), or sent out by the study's first process (`dispatch`).

All of them do the same as the first: read the study, take what it needs from the output folder or the artifacts, and
run `Runner` until nothing is left. They share nothing but the storage.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version

import optuna

from autonuq.compress.candidate import Candidate
from autonuq.errors import AutonuqError, StudyError
from autonuq.evaluate.evaluator import check_evaluator, data_digests
from autonuq.graph.hosted.permission import check_permission
from autonuq.records import ARTIFACTS, PROVENANCE
from autonuq.runtime.device import engine_version
from autonuq.search.sampler import make_sampler
from autonuq.storage.journal_file import FileLock
from autonuq.storage.open import Storage
from autonuq.study.artifacts import Artifacts
from autonuq.study.attributes import StudyAttributes
from autonuq.study.locate import POLL_S, await_study, existing_storage, task_as_stored
from autonuq.study.preparation import kept_candidate
from autonuq.study.runner import Runner
from autonuq.study.stored import Study, check_fingerprint, curve_error, fixed_curves, stored_rounding
from autonuq.study.task import (
    Callback,
    OnProgress,
    Progress,
    Task,
    fingerprint_of,
    make_folders,
    quantized_model,
    tell_nobody,
)

OPENING_S = 30.0
"""How long a worker tries to reach a storage that is out of reach, in seconds: a server that is being restarted."""


def work(
    task: Task, *, on_progress: OnProgress = tell_nobody, timeout: float | None = None, wait_s: float | None = None
) -> Study:
    """Run trials of a study that another process has started, until none is left.

    Parameters
    ----------
    task : Task
        Its network, configuration and number of trials are the study's, not its own; `evaluator`, `storage`,
        `artifacts`, `python_layers` and `out`, a folder of this machine, count. The network may be missing here.
    timeout : float, optional
        Seconds after which no trial is started.
    wait_s : float, optional
        How long a study, its storage's file or its server may be missing; by default a server only, for `OPENING_S`.

    Raises
    ------
    StudyError
        There is no such study, or this machine has another evaluator or other versions than the first.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    if wait_s is None:
        storage = existing_storage(task.name, task.storage, OPENING_S)
        study = storage.load(task.name)
    else:
        storage, study = await_study(task.name, task.storage, wait_s, on_progress)
    task = replace(task_as_stored(task, study), confirm=None)  # that is the first worker's business
    make_folders(task)  # not for a study that is not there
    check_versions(study)
    if task.source.model.exists():  # before the wait: what is wrong here shows at once
        task = task.made()
        check_evaluator(task.evaluator)
    _wait_for_preparation(study, on_progress, deadline)
    check_versions(study)  # once more: a study that was just made did not say
    task, candidate = materials(task, study)
    make_runner(task, storage, study, candidate, on_progress, is_first=False).run(deadline)
    return Study(study)


def package_versions() -> dict[str, str]:
    """Return the versions of what can change a proposal or a measurement: all workers of a study have the same."""
    return {name: version(name) for name in ("autonuq", "optuna", "numpy")} | {"onnxruntime": engine_version()}


def check_versions(study: optuna.Study) -> None:
    """Refuse to work beside other versions.

    Raises
    ------
    StudyError
        Names the packages.
    """
    there = StudyAttributes(study).get(PROVENANCE, Mapping[str, str], {})
    wrong = [
        f"{name} {there[f'{name} version']} (here: {number})"
        for name, number in package_versions().items()
        if there.get(f"{name} version", number) != number
    ]
    if wrong:
        raise StudyError(f"is worked on with {', '.join(wrong)}; install the same here", study=study.study_name)


def _wait_for_preparation(study: optuna.Study, on_progress: OnProgress, deadline: float | None) -> None:
    announced = False
    while ARTIFACTS not in study.user_attrs:
        if deadline is not None and time.monotonic() > deadline:
            raise StudyError("was not prepared in time; is 'autonuq tune' running?", study=study.study_name)
        if not announced:
            on_progress(Progress("waiting", "the first worker prepares the study", 0, 1))
        announced = True
        time.sleep(POLL_S)


def materials(task: Task, study: optuna.Study, evaluator: str | None = None) -> tuple[Task, Candidate]:
    """Return the task and its network with what can become of it: the output folder's, or the artifacts'.

    Parameters
    ----------
    task : Task
    study : optuna.Study
        Prepared.
    evaluator : str, optional
        The evaluator's fingerprint, where it is known and not taken here.

    Raises
    ------
    StudyError
        The artifacts cannot be had, or something is not the study's.
    """
    with FileLock(task.out / ".fetch"):
        with suppress(AutonuqError, OSError):  # elsewhere than where the study was started
            return task, _prepared(task, study, evaluator)
        task = Artifacts(task.artifacts_location).fetch(task, study).made()
        check_evaluator(task.evaluator)
        return task, _prepared(task, study, evaluator)


def _prepared(task: Task, study: optuna.Study, evaluator: str | None) -> Candidate:
    """Return what lies in the task's folder, if it is the study's."""
    model = quantized_model(task)
    data = data_digests(task.evaluator) if evaluator is None else None
    check_fingerprint(study, fingerprint_of(task, model, evaluator), data)
    return kept_candidate(task, model, study)


def make_runner(
    task: Task,
    storage: Storage,
    study: optuna.Study,
    candidate: Candidate,
    on_progress: OnProgress,
    *,
    is_first: bool,
    callbacks: Sequence[Callback] = (),
) -> Runner:
    """Give the study its sampler and return a worker; only the first one's random numbers follow from the seed.

    Raises
    ------
    ModelError
        The network has `Python` layers that may not run here: no trial is spent on that.
    """
    check_permission(candidate.model.graph)
    study = Study(study).own_view()
    runner = Runner(task, storage, study, candidate, on_progress, callbacks)
    trials = len(study.get_trials(deepcopy=False))
    apart = 0 if is_first else zlib.crc32(runner.session.lease.session.encode())
    study.sampler = make_sampler(
        task.sampler,
        task.seed,
        {**candidate.curves, **fixed_curves(runner.layers)},
        {layer.name: layer.weights for layer in runner.layers},
        trials=trials + apart,
        confidence=task.confidence,
        curve_error=curve_error(stored_rounding(study)),
    )
    return runner
