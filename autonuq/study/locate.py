"""Finding a study again: by its study file, by the folder that it left, or by its name and storage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import optuna
from optuna.samplers import BaseSampler

from autonuq.errors import StudyError, StudyNotFound
from autonuq.graph.files import ModelPair
from autonuq.plain import from_plain
from autonuq.records import CHIP, CONFIDENCE, FINGERPRINT, FLOAT_LAYERS, ORIGINAL_METRIC, TARGET_TRIALS, TASK
from autonuq.storage.open import Storage, absolute_url, default_url, open_storage, storage_file
from autonuq.study.artifacts import Artifacts
from autonuq.study.attributes import StudyAttributes
from autonuq.study.creation import is_begun
from autonuq.study.started import load_started
from autonuq.study.stored import Study
from autonuq.study.study_file import absolute_location, load_task
from autonuq.study.task import PLAIN_FIELDS, OnProgress, Progress, Task

POLL_S = 1.0
"""How often it is looked for what another worker has still to do, in seconds."""


def load_study(study: str | Path, storage: str | None = None, *, out: str | Path | None = None) -> Study:
    """Open a stored study to look at it.

    Parameters
    ----------
    study : str or Path
        A study file, the folder that a study left, or a study's name; the latter with its storage.
    storage : str, optional
        URL; overrides the study file's.
    out : str or Path, optional
        The study's folder, if it is not the study file's.

    Raises
    ------
    StudyError
        It does not exist, or the storage cannot be read.
    """
    if _is_study_file(study, storage):
        task = load_task(study, out=out, storage=storage)
        return open_study(task.name, task.storage)
    if storage is not None:
        return open_study(str(study), storage)
    return _left_in(Path(study))


def open_study(name: str, storage: str) -> Study:
    """Open a study by its name; see `load_study`."""
    return Study(existing_storage(name, storage).load(name))


def existing_storage(name: str, url: str, patience_s: float = 0.0) -> Storage:
    """Open the storage that a study should be in; one in a file is not made for it.

    Raises
    ------
    StudyError
        StudyNotFound if there is no such file; for the rest see `open_storage`.
    """
    file = storage_file(url)
    if file is not None and not file.exists():
        raise StudyNotFound(f"not found: there is no {file}; start it with 'autonuq tune'", study=name)
    return open_storage(url, patience_s)


def await_study(name: str, url: str, wait_s: float, on_progress: OnProgress) -> tuple[Storage, optuna.Study]:
    """Open a study that another process may be about to start, and tell what is waited for.

    Raises
    ------
    StudyError
        StudyNotFound if it is not there in time; for the rest see `open_storage`.
    """
    deadline = time.monotonic() + wait_s
    storage, told = None, ""
    while True:
        try:
            storage = storage or existing_storage(name, url)
            return storage, storage.load(name)
        except StudyNotFound as error:
            if time.monotonic() + POLL_S > deadline:
                raise StudyNotFound(f"waited {wait_s:g} s in vain: {error.message}", study=name) from error
            if error.message != told:
                on_progress(Progress("waiting", error.message, 0, 1))
            told = error.message
        time.sleep(POLL_S)


def task_of_study(task: Task) -> Task:
    """Return the task as it has to be for its study, if that exists; see `task_as_stored`."""
    try:
        study = open_study(task.name, task.storage).optuna
    except StudyError:
        return task
    return task_as_stored(task, study)


def task_as_stored(task: Task, study: optuna.Study) -> Task:
    """Return the task as it has to be for this study.

    Earlier versions counted for no chip, had no confidence, and left no layer float.
    """
    stored = study.user_attrs
    if FINGERPRINT in stored and CHIP not in stored:
        task = replace(task, counts_chip=False)
    if ORIGINAL_METRIC not in stored:
        return task
    if FLOAT_LAYERS not in stored and task.float_layers == "auto":
        task = replace(task, float_layers="never")
    return task if CONFIDENCE in stored else task.as_before()


def _is_study_file(study: str | Path, storage: str | None) -> bool:
    """Say whether a study file is meant; beside a storage, any other file may have the study's name by chance."""
    return Path(study).suffix == ".toml" or (storage is None and Path(study).is_file())


def _left_in(folder: Path) -> Study:
    """Open the one study in the storage of a folder."""
    if not folder.is_dir():
        raise StudyError(
            f"'{folder}' is neither a study file nor the folder that a study left; a study's name needs its storage"
        )
    url = default_url(folder.resolve())
    file = storage_file(url)
    if file is not None and not file.exists():
        raise StudyError(f"there is no {file}; where the storage is elsewhere, give the study's name and storage")
    names = open_storage(url).names()
    if len(names) != 1:
        raise StudyError(f"{url} holds {len(names)} studies ({', '.join(names)}); give a name, and this storage")
    return open_study(names[0], url)


def load_stored_task(
    study: str | Path,
    storage: str | None = None,
    *,
    evaluator: Any = None,
    out: str | Path | None = None,
    artifacts: str | None = None,
    trials: int | None = None,
    sampler: str | BaseSampler | None = None,
) -> Task:
    """Return the task of a study that exists; for `study` and `storage` see `load_study`.

    Parameters
    ----------
    evaluator : object, optional
        In place of the one that the study file names.
    sampler : str or BaseSampler, optional
        In place of the one that it was started with; needed where that was an object.
    out, artifacts, trials : optional
        Override what the study was started with.

    Raises
    ------
    StudyError
        It does not exist, or needs an evaluator, or a folder: those that only the storage names are not used.
    """
    if _is_study_file(study, storage):
        task = load_task(study, out=out, storage=storage, artifacts=artifacts, trials=trials)
        open_study(task.name, task.storage)  # before folders are made for a study that is not there
        task = task if evaluator is None else replace(task, evaluator=evaluator)
        return task if sampler is None else replace(task, sampler=sampler)
    found = load_study(study, storage)
    stored = _stored_attribute(found)
    if stored is None and not is_begun(found.optuna):
        raise StudyError("was killed while it was made; start it again, with 'autonuq tune'", study=found.name)
    if stored is None:
        raise StudyError("was started by a version that did not store its task; give its study file", study=found.name)
    url = absolute_url(storage, Path.cwd()) if storage else default_url(Path(study).resolve())
    folder = Path(out).resolve() if out else _folder_of(found.name, url, stored) if storage else Path(study).resolve()
    started = load_started(folder, found.name)
    if evaluator is None:
        file = _study_file(found.name, stored, started)
        task = load_task(file, out=folder, storage=url, artifacts=artifacts, trials=trials)
        return task if sampler is None else replace(task, sampler=sampler)
    stored = stored if sampler is None else {**stored, "sampler": sampler}
    return _stored_task(found, stored, started, evaluator, folder, url, artifacts, trials)


def _folder_of(name: str, url: str, stored: Mapping[str, Any]) -> Path:
    """Return the folder that the storage names, if that says itself that it is this study's."""
    folder = Path(str(stored["out"]))
    if load_started(folder, name, url) is None:
        raise StudyError(
            f"its storage says that its folder is {str(folder)!r}, which does not say so itself; name the folder here "
            "that it shall use, with out=...",
            study=name,
        )
    return folder


def _study_file(name: str, stored: Mapping[str, Any], started: Mapping[str, Any] | None) -> str:
    """Return the study file whose evaluator may be loaded, as the study's folder knows it."""
    named = stored["study_file"]
    if not named:
        raise StudyError("was not started from a study file, so its evaluator must be given", study=name)
    if started is None or started["study_file"] is None:
        raise StudyError(
            f"only its storage says that its study file is {named!r}, and an evaluator is code: give that file, or an "
            "evaluator",
            study=name,
        )
    file = str(started["study_file"])
    if not Path(file).exists():
        raise StudyError(f"its study file {file} is gone; give it, or an evaluator", study=name)
    return file


def _stored_attribute(study: Study) -> dict[str, Any] | None:
    """Return what `Task.as_attribute` was; None of versions that did not store it."""
    attributes = StudyAttributes(study.optuna)
    stored = attributes.get(TASK, Mapping[str, Any])
    if stored is None:
        return None
    hints: dict[str, Any] = {**get_type_hints(Task), "has_config": bool}
    hints |= dict.fromkeys(("prototxt", "weights", "out", "sampler"), str)
    hints |= dict.fromkeys(("cfg", "study_file"), str | None)
    with attributes.blaming(TASK):
        for key in ("out", "prototxt", "weights", "cfg", "study_file", "has_config"):
            if key not in stored:
                raise ValueError(f"it has no '{key}'")
        return {key: from_plain(hints[key], value, key) for key, value in stored.items() if key in hints}


def _stored_task(
    study: Study,
    stored: Mapping[str, Any],
    started: Mapping[str, Any] | None,
    evaluator: Any,
    out: Path,
    url: str,
    artifacts: str | None,
    trials: int | None,
) -> Task:
    """Put a task together from what the study stores; its paths are those that its folder knows.

    What is not on this machine any more, or not known, comes from the artifacts.
    """
    known = started or {"prototxt": "", "weights": "", "cfg": None, "artifacts": ""}
    task = Task(
        name=study.name,
        source=ModelPair(Path(known["prototxt"]), Path(known["weights"])),
        evaluator=evaluator,
        out=out,
        storage=url,
        cfg=known["cfg"] and Path(known["cfg"]),
        n_trials=StudyAttributes(study.optuna).get(TARGET_TRIALS, int) if trials is None else trials,
        **{key: stored[key] for key in (*PLAIN_FIELDS, "sampler") if key in stored} | {"artifacts": known["artifacts"]},
    )
    if artifacts is not None:
        task = replace(task, artifacts=absolute_location(artifacts, Path.cwd()))
    gone = [path for path in (task.source.model, task.source.weights, task.cfg) if path and not path.is_file()]
    if stored["has_config"] or gone:
        return Artifacts(task.artifacts_location).fetch(task, study.optuna)
    return task
