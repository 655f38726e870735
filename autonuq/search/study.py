"""A study: prepare once, then trials that propose, apply and score a plan, all of it kept in Optuna's storage.

What a killed process leaves is always resumable: the baseline, the record file and the curves are stored as soon as
they exist, a trial is finished by one transaction, and a trial that was running goes back into the queue.

Keys in the storage carry the prefix `autonuq:`; their contents are the JSON forms of `records`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autonuq.compress import (
    Exported,
    ModelPair,
    QuantizedModel,
    build_curves,
    calibrated,
    default_config,
    export,
    layer_records,
    quantize,
    write_calibration_model,
    write_fake_quant,
)
from autonuq.errors import AutonuqError, EvaluatorError, StudyError
from autonuq.graph.files import load_graph
from autonuq.quant.codec import CODECS
from autonuq.quant.config import QuantizationConfig
from autonuq.quant.curve import Curve
from autonuq.records import LayerRecord, StudyRecord, TrialRecord
from autonuq.search.curves_file import load_curves, write_curves
from autonuq.search.evaluator import (
    check_evaluator,
    evaluator_fingerprint,
    is_satisfied,
    run_evaluator,
    score,
)
from autonuq.search.sampler import make_sampler
from autonuq.search.space import Space
from autonuq.search.storage import open_storage
from autonuq.search.verdict import margin

FAILURES_IN_A_ROW = 3
_FINGERPRINT, _ORIGINAL, _LAYERS, _TARGET = (
    "autonuq:fingerprint",
    "autonuq:original_metric",
    "autonuq:layers",
    "autonuq:target_trials",
)
_PROVENANCE, _CODEC, _TRIAL, _ORIGIN = "autonuq:provenance", "autonuq:codec", "autonuq:trial", "autonuq:origin"
CONSTRAINT = "satisfied"
_FINISHED = (TrialState.COMPLETE, TrialState.FAIL)


@dataclass(frozen=True)
class Task:
    """Everything that defines a study.

    Attributes
    ----------
    name : str
    source : ModelPair
        The float network.
    evaluator : object
        See `search.evaluator.Evaluator`.
    out : Path
        Folder of results and of what later runs need.
    storage : str
        URL of the storage.
    config : QuantizationConfig or None
        None quantizes every layer that can be, with `batch_num` and `activation_offset`.
    batch_num : int
        Forward passes of the calibration.
    activation_offset : bool
    codec : str
        Key of `quant.codec.CODECS`.
    sampler : str
        Key of `search.sampler.SAMPLERS`.
    seed : int
    n_trials : int
        Total of the study, resumed runs included.
    """

    name: str
    source: ModelPair
    evaluator: Any
    out: Path
    storage: str
    config: QuantizationConfig | None = None
    batch_num: int = 1
    activation_offset: bool = True
    codec: str = "entropy"
    sampler: str = "tpe"
    seed: int = 0
    n_trials: int = 40

    @property
    def prefix(self) -> str:
        """Beginning of the exported files' names."""
        return str(self.out / self.name)

    @property
    def record_file(self) -> Path:
        """The record file of the calibration."""
        return self.out / "calibration" / "record.txt"

    @property
    def curves_file(self) -> Path:
        """The curves, built once."""
        return self.out / "calibration" / "curves.npz"


@dataclass(frozen=True)
class Progress:
    """What just happened, for whoever shows it.

    Attributes
    ----------
    stage : {"baseline", "calibration", "curves", "trial"}
    message : str
    done, total : int
        Within the stage.
    trial, best : TrialRecord or None
    """

    stage: str
    message: str
    done: int
    total: int
    trial: TrialRecord | None = None
    best: TrialRecord | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Best:
    """The best satisfied trial.

    Attributes
    ----------
    trial : int
    ratio, metric : float
    levels : mapping of str to int
        Of every quantized layer.
    size_bytes : int
    """

    trial: int
    ratio: float
    metric: float
    levels: Mapping[str, int]
    size_bytes: int


class Study:
    """A handle of a study in its storage; it holds no state of its own.

    Parameters
    ----------
    optuna_study : optuna.Study
    """

    def __init__(self, optuna_study: optuna.Study) -> None:
        self.optuna = optuna_study

    @property
    def name(self) -> str:
        """The study's name."""
        return self.optuna.study_name

    def record(self) -> StudyRecord:
        """Read the study as plain data."""
        attributes = self.optuna.user_attrs
        return StudyRecord(
            name=self.name,
            codec=attributes.get(_CODEC, ""),
            original_metric=attributes.get(_ORIGINAL),
            layers=tuple(_layer_record(entry) for entry in attributes.get(_LAYERS, [])),
            trials=tuple(_trial_record(trial) for trial in self.optuna.get_trials(deepcopy=False)),
            target_trials=attributes.get(_TARGET, 0),
            provenance=attributes.get(_PROVENANCE, {}),
        )

    @property
    def best(self) -> Best | None:
        """The satisfied trial with the largest ratio, None if there is none."""
        record = self.record()
        found = record.best
        if found is None or found.ratio is None or found.metric is None or found.size_bytes is None:
            return None
        return Best(found.number, found.ratio, found.metric, record.layer_levels(found), found.size_bytes)


def _layer_record(entry: Mapping[str, Any]) -> LayerRecord:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return LayerRecord(**{**entry, **lists})


_STATES: dict[TrialState, Any] = {
    TrialState.COMPLETE: "complete",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
}


def _trial_record(trial: FrozenTrial) -> TrialRecord:
    stored = trial.user_attrs.get(_TRIAL, {})
    origin = stored.get("origin") or trial.user_attrs.get(_ORIGIN, "sampler")
    return TrialRecord(**{**stored, "number": trial.number, "state": _STATES[trial.state], "origin": origin})


def tune(
    model_file: str | Path,
    weights_file: str | Path,
    evaluator: Any,
    *,
    out: str | Path,
    on_progress: OnProgress = lambda progress: None,
    timeout: float | None = None,
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
    **options
        Further fields of `Task`: `name` (default: the folder's name), `storage` (default: `study.db` in the
        folder), `n_trials`, `codec`, `sampler`, `seed`, `config`, `batch_num`, `activation_offset`.

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
    return _run_and_export(task, exists=False, on_progress=on_progress, timeout=timeout)


def resume(
    model_file: str | Path,
    weights_file: str | Path,
    evaluator: Any,
    *,
    out: str | Path,
    on_progress: OnProgress = lambda progress: None,
    timeout: float | None = None,
    **options: Any,
) -> Study:
    """Go on with a study up to `n_trials` in all; see `tune`.

    Raises
    ------
    StudyError
        The study does not exist, or model, configuration or evaluator are not those it was started with.
    """
    task = _task(model_file, weights_file, evaluator, out, options)
    return _run_and_export(task, exists=True, on_progress=on_progress, timeout=timeout)


def _task(
    model_file: str | Path, weights_file: str | Path, evaluator: Any, out: str | Path, options: dict[str, Any]
) -> Task:
    folder = Path(out)
    defaults = {"name": folder.resolve().name, "storage": f"sqlite:///{folder.resolve() / 'study.db'}"}
    source = ModelPair(Path(model_file), Path(weights_file))
    return Task(source=source, evaluator=evaluator, out=folder, **{**defaults, **options})


def _run_and_export(task: Task, *, exists: bool, on_progress: OnProgress, timeout: float | None) -> Study:
    study = run_study(task, exists=exists, on_progress=on_progress, timeout=timeout)
    if study.best is not None:
        export_trial(task, study)
    return study


def load_study(name: str, storage: str) -> Study:
    """Open a stored study to look at it.

    Raises
    ------
    StudyError
        It does not exist, or the storage cannot be read.
    """
    return Study(open_storage(storage).load(name))


def run_study(
    task: Task,
    *,
    exists: bool,
    on_progress: OnProgress = lambda progress: None,
    timeout: float | None = None,
) -> Study:
    """Start (or, if it exists, go on with) a study and run it to its end; see `tune` and `resume`."""
    check_evaluator(task.evaluator)
    if task.codec not in CODECS:
        raise StudyError(f"codec must be one of {', '.join(CODECS)}. Got '{task.codec}' instead.", study=task.name)
    deadline = None if timeout is None else time.monotonic() + timeout
    model = _quantized(task)
    _check_folder(task)
    storage = open_storage(task.storage)
    fingerprint = _fingerprint(task, model)
    if exists:
        study = storage.load(task.name)
        _check_fingerprint(study, fingerprint)
        _requeue_orphans(study)
    else:
        study = storage.create(task.name)
        study.set_user_attr(_PROVENANCE, _provenance(task, fingerprint))
        study.set_user_attr(_CODEC, task.codec)
        study.set_user_attr(_FINGERPRINT, fingerprint)
    study.set_user_attr(_TARGET, task.n_trials)
    original_metric = _baseline(task, study, on_progress)
    model = _calibrate(task, model, on_progress)
    curves = _curves(task, study, model, fingerprint, on_progress)
    study.sampler = make_sampler(task.sampler, task.seed + len(study.get_trials(deepcopy=False)))
    _Runner(task, study, model, curves, original_metric, on_progress).run(deadline)
    return Study(study)


def is_resumable(task: Task) -> bool:
    """Say whether the task's study exists, is of the same model, configuration and evaluator, and is unfinished."""
    url = task.storage
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return False
    try:
        study = open_storage(url).load(task.name)
        _check_fingerprint(study, _fingerprint(task, _quantized(task)))
    except StudyError:
        return False
    return len(study.get_trials(deepcopy=False, states=_FINISHED)) < task.n_trials


def export_trial(
    task: Task,
    study: Study,
    number: int | None = None,
    *,
    prefix: str | None = None,
    record_file: Path | None = None,
) -> Exported:
    """Write the files of a trial's plan.

    Parameters
    ----------
    number : int, optional
        The best satisfied trial by default.
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
    model = _quantized(task)
    fingerprint = _fingerprint(task, model)
    _check_fingerprint(study.optuna, fingerprint)
    model = calibrated(model, task.record_file)
    curves = load_curves(task.curves_file, _curves_key(fingerprint))
    if curves is None:
        curves = build_curves(model, CODECS[task.codec])
    return export(model, curves, found.points, prefix or task.prefix, record_file=record_file)


def _quantized(task: Task) -> QuantizedModel:
    graph = load_graph(task.source.model, task.source.weights)
    config = task.config or default_config(
        graph, batch_num=task.batch_num, activation_offset=task.activation_offset
    )
    return quantize(graph, config)


def _check_folder(task: Task) -> None:
    """Make the folders and write into them once, before hours are spent."""
    try:
        task.record_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=task.out):
            pass
    except OSError as error:
        raise StudyError(
            f"the output folder {task.out} cannot be written: {error.strerror}; choose another with --out",
            study=task.name,
        ) from error


def _fingerprint(task: Task, model: QuantizedModel) -> dict[str, str]:
    """Digest everything that changes a measurement, under the words that a user knows."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    config = json.dumps(asdict(replace(model.config, layers={})), sort_keys=True) + json.dumps(
        {name: asdict(settings) for name, settings in model.config.layers.items()}
    )
    return {
        "prototxt": digest(task.source.model),
        "weights": digest(task.source.weights),
        "quantization": hashlib.sha256(config.encode()).hexdigest(),
        "codec": task.codec,
        "evaluator": evaluator_fingerprint(task.evaluator),
    }


def _check_fingerprint(study: optuna.Study, fingerprint: Mapping[str, str]) -> None:
    stored = study.user_attrs.get(_FINGERPRINT, {})
    different = [key for key, value in fingerprint.items() if stored.get(key) != value]
    if different:
        raise StudyError(
            f"was started with another {', another '.join(different)}; restore it, or start a study of another name",
            study=study.study_name,
        )


def _provenance(task: Task, fingerprint: Mapping[str, str]) -> dict[str, str]:
    packages = {name: version(name) for name in ("autonuq", "optuna", "numpy", "onnxruntime")}
    return {
        "prototxt": str(task.source.model),
        "weights": str(task.source.weights),
        "evaluator": f"{type(task.evaluator).__module__}.{type(task.evaluator).__qualname__}",
        "evaluate_batch_num": str(task.evaluator.evaluate_batch_num),
        "sampler": task.sampler,
        "seed": str(task.seed),
        **{f"sha256 {key}": value for key, value in fingerprint.items() if len(value) == 64},
        **{f"{name} version": number for name, number in packages.items()},
    }


def _baseline(task: Task, study: optuna.Study, on_progress: OnProgress) -> float:
    """Return the original metric; it is scored once in a study's life."""
    stored = study.user_attrs.get(_ORIGINAL)
    if stored is not None:
        return float(stored)
    on_progress(Progress("baseline", "scoring the original network", 0, 1))
    metric = score(task.evaluator, task.source)
    if not is_satisfied(task.evaluator, metric, metric):
        raise EvaluatorError(
            f"is_satisfied({metric:g}, {metric:g}) is false: not even the original network satisfies it"
        )
    study.set_user_attr(_ORIGINAL, metric)
    on_progress(Progress("baseline", f"original metric {metric:g}", 1, 1))
    return metric


def _calibrate(task: Task, model: QuantizedModel, on_progress: OnProgress) -> QuantizedModel:
    """Return the calibrated model; a complete record file of an earlier run is used again."""
    with suppress(AutonuqError):
        return calibrated(model, task.record_file)
    on_progress(Progress("calibration", f"{model.config.batch_num} forward passes", 0, 1))
    folder = task.record_file.parent.resolve()
    pair = ModelPair(folder / "modified_model.prototxt", folder / "modified_weights.caffemodel")
    write_calibration_model(model, pair, task.record_file.resolve())
    run_evaluator(task.evaluator, pair, model.config.batch_num)
    model = calibrated(model, task.record_file)
    on_progress(Progress("calibration", f"ranges of {len(model.factors)} layers", 1, 1))
    return model


def _curves_key(fingerprint: Mapping[str, str]) -> str:
    parts = [fingerprint[key] for key in ("prototxt", "weights", "quantization", "codec")]
    return hashlib.sha256("".join([*parts, version("autonuq")]).encode()).hexdigest()


def _curves(
    task: Task, study: optuna.Study, model: QuantizedModel, fingerprint: Mapping[str, str], on_progress: OnProgress
) -> dict[str, Curve]:
    key = _curves_key(fingerprint)
    curves = load_curves(task.curves_file, key)
    if curves is None:
        done: list[str] = []

        def on_layer(name: str) -> None:
            done.append(name)
            on_progress(Progress("curves", name, len(done), len(model.weights)))

        curves = build_curves(model, CODECS[task.codec], on_layer)
        write_curves(task.curves_file, key, curves)
    if _LAYERS not in study.user_attrs:
        study.set_user_attr(_LAYERS, [asdict(record) for record in layer_records(model, curves)])
    return curves


def _requeue_orphans(study: optuna.Study) -> None:
    """Put trials that no living process runs back into the queue, with the parameters they had."""
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker_host, _, pid = trial.user_attrs.get(_ORIGIN + ":worker", f"{host}:0").rpartition(":")
        if worker_host == host and not _is_alive(int(pid)):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def _is_alive(pid: int) -> bool:
    if pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Runner:
    """Runs trials one after the other until the study has as many as it shall have."""

    def __init__(
        self,
        task: Task,
        study: optuna.Study,
        model: QuantizedModel,
        curves: Mapping[str, Curve],
        original_metric: float,
        on_progress: OnProgress,
    ) -> None:
        self.task, self.study, self.model, self.curves = task, study, model, curves
        self.original_metric, self.on_progress = original_metric, on_progress
        self.space = Space(curves, {name: uniform.codes.size for name, uniform in model.weights.items()})
        self.layers = Study(study).record().layers
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def run(self, deadline: float | None) -> None:
        """Run what is left; raise EvaluatorError after three failures in a row."""
        if not self.study.get_trials(deepcopy=False):
            self._enqueue_seeds()
        failures = 0
        target = min(self.task.n_trials, self.space.size)
        while self._finished() < target and (deadline is None or time.monotonic() < deadline):
            trial = self.study.ask()
            trial.set_user_attr(_ORIGIN + ":worker", self.worker)
            try:
                record = self._run_trial(trial)
            except BaseException:
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
                raise
            failures = failures + 1 if record.state == "failed" else 0
            self.on_progress(self._progress(record))
            if failures == FAILURES_IN_A_ROW:
                raise EvaluatorError(
                    f"{failures} trials in a row failed, the last with: {record.error}; mend the evaluator, "
                    "then start a study of another name"
                )

    def _enqueue_seeds(self) -> None:
        for plan in self.space.seeds():
            self.study.enqueue_trial(self.space.parameters(plan), user_attrs={_ORIGIN: "seed"})

    def _finished(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=_FINISHED))

    def _progress(self, record: TrialRecord) -> Progress:
        message = record.error or f"ratio {record.ratio:.2f}, metric {record.metric:g}"
        best = Study(self.study).record().best
        return Progress("trial", message, self._finished(), self.task.n_trials, record, best)

    def _run_trial(self, trial: optuna.Trial) -> TrialRecord:
        """Propose, apply and score one plan, and finish the trial in the storage."""
        started = time.monotonic()
        parameters = {
            name: trial.suggest_float(name, distribution.low, distribution.high, log=True)
            for name, distribution in self.space.distributions.items()
        }
        plan = self.space.plan(parameters)
        origin = trial.user_attrs.get(_ORIGIN, "sampler")
        record = TrialRecord(
            trial.number,
            "running",
            size_bytes=self._size_bytes(plan),
            points=plan,
            origin=origin,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            worker=self.worker,
        )
        known = self._scored(plan)
        try:
            if known is not None:
                origin = f"copy of {known.number}"
                record = replace(record, metric=known.metric, satisfied=known.satisfied, margin=known.margin, origin=origin)
            else:
                record = self._score(record)
        except (EvaluatorError, AutonuqError) as error:
            record = replace(record, state="failed", error=str(error))
        else:
            original_bytes = sum(layer.original_bytes for layer in self.layers)
            record = replace(record, state="complete", ratio=original_bytes / max(1, record.size_bytes or 0))
        return self._finish(trial, replace(record, duration_s=round(time.monotonic() - started, 3)))

    def _size_bytes(self, plan: Mapping[str, int]) -> int:
        return sum(layer.rates_bytes[plan.get(layer.name, 0)] for layer in self.layers)

    def _scored(self, plan: Mapping[str, int]) -> TrialRecord | None:
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        records = (_trial_record(trial) for trial in trials)
        return next((record for record in records if record.points == plan), None)

    def _score(self, record: TrialRecord) -> TrialRecord:
        folder = self.task.out / f"trial{record.number}"  # the same one if the trial was killed and runs again
        folder.mkdir(exist_ok=True)
        try:
            pair = ModelPair(folder / "model.prototxt", folder / "weights.caffemodel")
            write_fake_quant(self.model, self.curves, record.points, pair)
            metric = score(self.task.evaluator, pair)
        finally:
            shutil.rmtree(folder)
        satisfied = is_satisfied(self.task.evaluator, self.original_metric, metric)
        edge = margin(self.task.evaluator.is_satisfied, self.original_metric, metric)
        return replace(record, metric=metric, satisfied=satisfied, margin=edge)

    def _finish(self, trial: optuna.Trial, record: TrialRecord) -> TrialRecord:
        stored = {key: value for key, value in asdict(record).items() if key not in ("number", "state")}
        trial.set_user_attr(_TRIAL, stored)
        if record.state == "failed" or record.margin is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_constraint(CONSTRAINT, record.margin)
            self.study.tell(trial, record.ratio)
        return record
