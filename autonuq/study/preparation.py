"""What happens once in a study's life: the baseline, the calibration, the curves.

Each result is stored as soon as it exists, so that a killed study loses at most the one it was working on.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import optuna

from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.in_order import is_buildable
from autonuq.compress.operating_points import build_network_points, describe_layers
from autonuq.compress.quantized import QuantizedModel
from autonuq.compress.ways import ChosenWay, choose_way
from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.evaluator import is_satisfied, loss_unit, run_calibration, score, standard_error
from autonuq.evaluate.samples import Score, samples_as_data
from autonuq.graph.files import ModelPair
from autonuq.records import ORIGINAL_ERROR, ORIGINAL_METRIC, ORIGINAL_SAMPLES, UNIT, ComparedWay, Rounding
from autonuq.runtime.inputs import count_images, load_inputs, request_inputs
from autonuq.runtime.memory import give_back_memory
from autonuq.runtime.moments import remove_left_moments, remove_moments
from autonuq.storage.journal_file import FileLock
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.foretelling import corrected
from autonuq.study.kept_files import KeptFiles
from autonuq.study.plan_networks import discard_plans
from autonuq.study.points_cache import StoredPoints, store_points
from autonuq.study.resolution import resolution_warning
from autonuq.study.stored import (
    store_layers,
    store_rounding,
    stored_float_layers,
    stored_layers,
    stored_rounding,
)
from autonuq.study.task import OnProgress, Progress, Task


@contextmanager
def preparing_alone(task: Task, on_progress: OnProgress) -> Iterator[None]:
    """Keep out whoever would prepare a study in the same folder; two calibrations would add up."""
    lock = FileLock(task.out / ".preparation")
    if not lock.acquire(0):
        on_progress(Progress("waiting", f"another process prepares a study in {task.out}", 0, 1))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def score_original(task: Task, study: optuna.Study, on_progress: OnProgress) -> None:
    """Score the original network, once in a study's life, and store its metric."""
    if StudyAttributes(study).get(ORIGINAL_METRIC, float | None) is not None:
        return
    on_progress(Progress("baseline", "scoring the original network", 0, 1))
    metric = score(task.evaluator, task.source)
    check_original(task.evaluator, metric)
    if isinstance(metric, Score):
        store_long(study, ORIGINAL_SAMPLES, samples_as_data(metric.samples))
        warn_of_resolution(task, metric, len(metric.samples))
    study.set_user_attr(UNIT, asdict(loss_unit(task.evaluator)))
    study.set_user_attr(ORIGINAL_ERROR, standard_error(task.evaluator, metric))
    study.set_user_attr(ORIGINAL_METRIC, float(metric))
    on_progress(Progress("baseline", f"original metric {metric:g}", 1, 1))


def check_original(evaluator: Any, metric: float) -> None:
    """Refuse a constraint that the original network breaks.

    Raises
    ------
    EvaluatorError
        It does.
    """
    if not is_satisfied(evaluator, metric, metric):
        raise EvaluatorError(
            f"is_satisfied({metric:g}, {metric:g}) is false: not even the original network satisfies it"
        )


def warn_of_resolution(task: Task, original: float, samples: int) -> None:
    """Warn where the limit is below what the data can tell."""
    if message := resolution_warning(task.evaluator, original, samples, task.confidence):
        warnings.warn(message, stacklevel=2)


def calibrate(task: Task, model: QuantizedModel, study: optuna.Study, on_progress: OnProgress) -> QuantizedModel:
    """Return the calibrated model; what an earlier run of this study left is used again, if it is as it was left.

    Raises
    ------
    StudyError
        The study is prepared, and its calibration, which was lost, was another one.
    """
    kept = KeptFiles(task, study)
    if kept.is_calibrated() and (kept.points("") is not None or kept.has_moments()):
        _remove_modified(task)
        return calibrated(model, task.record_file)
    on_progress(Progress("calibration", f"{model.config.batch_num} forward passes", 0, 1))
    pair = _modified(task)
    write_calibration_model(model, pair, task.record_file.resolve(), model.weights, python_layers=task.python_layers)
    request_inputs(task.record_file)
    run_calibration(task.evaluator, pair, model.config.batch_num)
    _remove_modified(task)
    model = calibrated(model, task.record_file)
    kept.store_calibration()
    on_progress(Progress("calibration", f"ranges of {len(model.factors)} layers", 1, 1))
    return model


def _modified(task: Task) -> ModelPair:
    """Return where the network with calibration layers is, while that lasts."""
    folder = task.record_file.parent.resolve()
    return ModelPair(folder / "modified_model.prototxt", folder / "modified_weights.caffemodel")


def _remove_modified(task: Task) -> None:
    """Delete it; a run that was killed left it behind."""
    pair = _modified(task)
    for path in (pair.model, pair.weights):
        path.unlink(missing_ok=True)


def points_key(fingerprint: Mapping[str, str]) -> str:
    """Digest what the operating points depend on."""
    parts = [fingerprint[key] for key in ("prototxt", "weights", "quantization", "codec", "evaluator")]
    later = [fingerprint.get(key, "") for key in ("folding", "marked layers")]
    return hashlib.sha256("".join([*parts, *later, version("autonuq")]).encode()).hexdigest()


def prepare_points(
    task: Task, model: QuantizedModel, fingerprint: Mapping[str, str], study: optuna.Study, on_progress: OnProgress
) -> StoredPoints:
    """Return the operating points of an earlier run, or build them, as it fits the network; the study is told how.

    Raises
    ------
    StudyError
        The study is prepared, and its points, which were lost, were others.
    """
    key, kept = points_key(fingerprint), KeptFiles(task, study)
    found = kept.points(key)
    if is_new := found is None:
        found = _build_points(task, model, key, kept, on_progress)
    told = stored_rounding(study)
    if not kept.is_final and replace(told, factors={}) != found.rounding:
        store_rounding(study, found.rounding)
    kept.store_points(found)
    if is_new:
        remove_moments(task.record_file)
    else:
        remove_left_moments(task.record_file, model.factors)
    return found


def _build_points(
    task: Task, model: QuantizedModel, key: str, kept: KeptFiles, on_progress: OnProgress
) -> StoredPoints:
    done: list[str] = []

    def on_layer(name: str) -> None:
        done.append(name)
        on_progress(Progress("curves", name, len(done), len(model.weights)))

    give_back_memory()
    passes = load_inputs(task.record_file)
    choice = _chosen_way(task, model, passes, on_progress)
    costs = choice.costs if choice else None
    tuning = choice.way.tuning if choice else None
    built = build_network_points(model, task.record_file, on_layer, costs=costs, tuning=tuning)
    rounding = _rounding(choice, passes, choice is not None and is_buildable(model.graph))
    discard_plans(task.points_folder)
    return store_points(task.points_folder, key, built, rounding, kept.calibration_digest)


def kept_candidate(task: Task, model: QuantizedModel, study: optuna.Study) -> Candidate:
    """Return a prepared study's network with what can become of it, from what is kept in the task's folder.

    Raises
    ------
    StudyError
        Files there are not what they were, nor are they intact among the artifacts.
    """
    kept = KeptFiles(task, study)
    kept.mend()
    found = kept.points("") if kept.is_calibrated() else None
    if found is None:
        raise kept.damaged()
    return settled(task, study, Candidate(calibrated(model, task.record_file), found.points))


def _chosen_way(
    task: Task, model: QuantizedModel, passes: Sequence[Mapping[str, Any]], on_progress: OnProgress
) -> ChosenWay | None:
    """Choose how layers are rounded; None where another Caffe ran the calibration, and nothing is known."""
    if not model.nuq_layers:
        return None
    if not passes:
        on_progress(Progress("ways", "another Caffe ran the calibration: layers are rounded alone", 1, 1))
        return None
    tried: list[str] = []

    def on_way(text: str) -> None:
        tried.append(text)
        on_progress(Progress("ways", text, len(tried), len(tried)))

    found = choose_way(model, task.record_file, passes, on_way)
    for layer, reason in found.unknown.items():
        on_progress(Progress("ways", f"'{layer}': what its errors do to the results is not known: {reason}", 1, 1))
    on_progress(Progress("ways", f"chosen: {found.way.say()}", len(tried), len(tried)))
    return found


def _rounding(choice: ChosenWay | None, passes: Sequence[Mapping[str, Any]], in_order: bool) -> Rounding:
    if choice is None:
        return Rounding()
    compared = tuple(ComparedWay(one.way.say(), one.ratio, one.divergence) for one in choice.tried)
    return Rounding(choice.way.say(), compared, dict(choice.unknown), in_order=in_order, images=count_images(passes))


def settled(task: Task, study: optuna.Study, candidate: Candidate) -> Candidate:
    """Return the network with the layers float that the study leaves float; its layers are stored the first time.

    Raises
    ------
    StudyError
        The operating points were lost, and what was built again differs from what the study's trials were made of.
    """
    found = stored_float_layers(study)
    floats = {} if found is None else dict.fromkeys(found.layers, f"stays float: {found.reason}")
    candidate = corrected(candidate.leaving_float(floats), stored_rounding(study))
    layers = describe_layers(candidate.model, candidate.points, floats)
    stored = stored_layers(study)
    if not stored:
        store_layers(study, layers)
    elif [layer.rates_bytes for layer in layers] != [layer.rates_bytes for layer in stored]:
        raise StudyError(
            f"its operating points in {task.points_folder} were lost and cannot be built again as they were; start a "
            "study of another name",
            study=task.name,
        )
    return candidate
