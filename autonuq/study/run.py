"""A study from outside: start it, go on with it, export what it found.

What a killed process leaves is always resumable: `preparation` stores each result as soon as it exists, `runner`
finishes a trial by one transaction, and a trial whose worker died goes back into the queue (`claims`, `lease`).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autonuq.compress.calibration import calibrated
from autonuq.compress.export import export
from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import check_evaluator, evaluator_name
from autonuq.graph.files import ModelPair
from autonuq.quant.codecs import CODEC_NAMES
from autonuq.storage.open import default_url, open_storage
from autonuq.study.artifacts import Artifacts
from autonuq.study.confirmation import confirm
from autonuq.study.preparation import calibrate, prepare_points, score_original
from autonuq.study.stored import (
    CODEC,
    FINGERPRINT,
    FINISHED,
    PROVENANCE,
    STOPPED,
    TARGET_TRIALS,
    Study,
    check_fingerprint,
    load_study,
)
from autonuq.study.task import OnProgress, Progress, Task, check_folder, fingerprint_of, quantized_model
from autonuq.study.workers import PACKAGES, make_runner, run_local

__all__ = [
    "WINNER_FORMATS",
    "Study",
    "Task",
    "export_trial",
    "is_resumable",
    "load_study",
    "resume",
    "run_study",
    "tune",
]

WINNER_FORMATS = ("caffe", "packed")
"""What the best plan of a study is written as when the study ends."""


def tune(
    model_file: str | Path,
    weights_file: str | Path,
    evaluator: Any,
    *,
    out: str | Path,
    on_progress: OnProgress = lambda progress: None,
    timeout: float | None = None,
    jobs: int = 1,
    **options: Any,
) -> Study:
    """Start a study, run it to its end, and export the best plan to `out`.

    Parameters
    ----------
    model_file, weights_file : str or Path
        The float network.
    evaluator : object
        With `eval_model`, `is_satisfied` and `evaluate_batch_num`; see `Evaluator`.
    out : str or Path
        Folder for results and for what a resumed run needs.
    on_progress : callable
        Told of every step (`Progress`).
    timeout : float, optional
        Seconds after which no further trial is started.
    jobs : int
        Workers that run at the same time, through joblib: processes of this machine, or what its `parallel_config`
        says. `on_progress` is then called from a thread.
    **options
        Further fields of `Task`: `name` (default: the folder's name), `storage` (default: `study.journal` in the
        folder), `artifacts`, `n_trials`, `codec`, `sampler`, `seed`, `config`, `batch_num`, `activation_offset`,
        `amct_levels`, `python_layers`.

    Returns
    -------
    Study
        `best` is None if no trial satisfied the constraint; then nothing is exported.

    Raises
    ------
    StudyError
        The study exists already, or its storage or folder cannot be used.
    ModelError, QuantizationError, RuntimeFailure, EvaluatorError
        See `errors`; EvaluatorError after three failed trials in a row, too.
    """
    task = _task(model_file, weights_file, evaluator, out, options)
    return _run_and_export(task, exists=False, on_progress=on_progress, timeout=timeout, jobs=jobs)


def resume(
    model_file: str | Path,
    weights_file: str | Path,
    evaluator: Any,
    *,
    out: str | Path,
    on_progress: OnProgress = lambda progress: None,
    timeout: float | None = None,
    jobs: int = 1,
    **options: Any,
) -> Study:
    """Go on with a study up to `n_trials` in all; see `tune`.

    Raises
    ------
    StudyError
        The study does not exist, or model, configuration or evaluator are not those it was started with.
    """
    task = _task(model_file, weights_file, evaluator, out, options)
    return _run_and_export(task, exists=True, on_progress=on_progress, timeout=timeout, jobs=jobs)


def _task(
    model_file: str | Path, weights_file: str | Path, evaluator: Any, out: str | Path, options: dict[str, Any]
) -> Task:
    folder = Path(out)
    defaults = {"name": folder.resolve().name, "storage": default_url(folder.resolve())}
    source = ModelPair(Path(model_file), Path(weights_file))
    return Task(source=source, evaluator=evaluator, out=folder, **{**defaults, **options})


def _run_and_export(task: Task, *, exists: bool, on_progress: OnProgress, timeout: float | None, jobs: int) -> Study:
    study = run_study(task, exists=exists, on_progress=on_progress, timeout=timeout, jobs=jobs)
    if study.best is not None:
        export_trial(task, study, formats=WINNER_FORMATS)
    return study


def run_study(
    task: Task,
    *,
    exists: bool,
    on_progress: OnProgress = lambda progress: None,
    timeout: float | None = None,
    jobs: int = 1,
) -> Study:
    """Start (or, if it exists, go on with) a study and run it to its end; see `tune` and `resume`."""
    for evaluator in (task.evaluator, task.confirm):
        if evaluator is not None:
            check_evaluator(evaluator)
    if task.codec not in CODEC_NAMES:
        raise StudyError(f"codec must be one of {', '.join(CODEC_NAMES)}. Got '{task.codec}' instead.", study=task.name)
    deadline = None if timeout is None else time.monotonic() + timeout
    model = quantized_model(task)
    check_folder(task)
    storage = open_storage(task.storage)
    fingerprint = fingerprint_of(task, model)
    if exists:
        study = storage.load(task.name)
        check_fingerprint(study, fingerprint)
    else:
        study = storage.create(task.name)
        study.set_user_attr(PROVENANCE, _provenance(task, fingerprint))
        study.set_user_attr(CODEC, task.codec)
        study.set_user_attr(FINGERPRINT, fingerprint)
    study.set_user_attr(TARGET_TRIALS, task.n_trials)
    on_progress(Progress("study", "opened" if exists else "created", 1, 1))
    study.set_user_attr(STOPPED, "")
    score_original(task, study, on_progress)
    model = calibrate(task, model, on_progress)
    points = prepare_points(task, study, model, fingerprint, on_progress)
    Artifacts(task.artifacts_location).publish(task, study, model)
    runner = make_runner(task, storage, study, model, points, on_progress, is_first=True)
    runner.enqueue_seeds()
    if jobs == 1:
        runner.run(deadline)
    else:
        run_local(runner, jobs, deadline)
    confirm(task, study, model, points, on_progress)
    return Study(study)


def is_resumable(task: Task) -> bool:
    """Say whether the task's study exists, is of the same model, configuration and evaluator, and is unfinished."""
    try:
        study = load_study(task.name, task.storage).optuna
        check_fingerprint(study, fingerprint_of(task, quantized_model(task)))
    except StudyError:
        return False
    return len(study.get_trials(deepcopy=False, states=FINISHED)) < task.n_trials


def export_trial(
    task: Task,
    study: Study,
    number: int | None = None,
    *,
    formats: Iterable[str] = ("caffe",),
    prefix: str | None = None,
    record_file: Path | None = None,
) -> tuple[Path, ...]:
    """Write the files of a trial's plan and return their paths.

    Parameters
    ----------
    number : int, optional
        The best satisfied trial by default.
    formats : iterable of str
        Out of `export.FORMATS`.
    prefix : str, optional
        Folder and beginning of the file names; `<out>/<name>` by default.
    record_file : Path, optional
        Where the record goes; `<prefix>_record.txt` by default.

    Raises
    ------
    StudyError
        There is no such finished trial, or the study is another model's.
    """
    record = study.record()
    found = record.best if number is None else next((t for t in record.trials if t.number == number), None)
    if found is None or found.state != "complete":
        what = "no trial satisfied the constraint" if number is None else f"trial {number} is not a finished trial"
        raise StudyError(f"{what}, so there is nothing to export", study=study.name)
    model = quantized_model(task)
    fingerprint = fingerprint_of(task, model)
    check_fingerprint(study.optuna, fingerprint)
    model = calibrated(model, task.record_file)
    points = prepare_points(task, study.optuna, model, fingerprint, lambda progress: None)
    provenance = {
        "study": study.name,
        "trial": str(found.number),
        "ratio": f"{found.ratio}",
        "codec": task.codec,
        "metric": f"{found.metric}",
        "original metric": f"{record.original_metric}",
        **_hashes(fingerprint),
    }
    return export(
        model,
        points,
        found.points,
        prefix or task.prefix,
        task.codec,
        formats,
        record_file=record_file,
        provenance=provenance,
    )


def _provenance(task: Task, fingerprint: Mapping[str, str]) -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    return {
        **task.provenance,
        "prototxt": str(task.source.model),
        "weights": str(task.source.weights),
        "evaluator": evaluator_name(task.evaluator),
        "evaluate_batch_num": str(task.evaluator.evaluate_batch_num),
        "sampler": task.sampler,
        "seed": str(task.seed),
        **_hashes(fingerprint),
        **{f"{name} version": number for name, number in packages.items()},
        "python version": platform.python_version(),
    }


def _hashes(fingerprint: Mapping[str, str]) -> dict[str, str]:
    return {f"sha256 {key}": value for key, value in fingerprint.items() if len(value) == 64}
