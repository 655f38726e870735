"""A rehearsal: every step of a study once, on one batch, before hours are spent; and how long the study will take."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import optuna

from autonuq.atomic import temporary_folder
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import say_unsearched
from autonuq.compress.in_order import NetworkBuilder, is_buildable
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import QuantizedModel, refuse_observers
from autonuq.errors import AutonuqError, StudyError
from autonuq.evaluate.evaluator import (
    check_evaluator,
    data_digests,
    evaluator_name,
    is_satisfied,
    run_calibration,
    score,
)
from autonuq.evaluate.recipe import make_evaluator
from autonuq.evaluate.samples import Score
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.hosted.permission import check_permission
from autonuq.graph.model import Graph
from autonuq.masking import masked
from autonuq.quant.points import Tuning
from autonuq.records import say_verdict
from autonuq.runtime.inputs import count_images, load_inputs, request_inputs
from autonuq.storage.open import open_storage, storage_file
from autonuq.study.dispatch import check_workers
from autonuq.study.engines import engine
from autonuq.study.locate import task_of_study
from autonuq.study.preparation import check_original, warn_of_resolution
from autonuq.study.resources import check_resources, needs_of
from autonuq.study.stored import FINISHED, Study, check_fingerprint
from autonuq.study.task import Task, check_folder, check_name, fingerprint_of, quantized_model

SECONDS_TO_TIME_IN = 3.0
"""A batch that takes longer is timed once, with what is only done the first time."""

FEW_IMAGES = 500
"""Fewer that calibrate are worth a word: more of them would pay."""
# Measured on lenet-fashion and cifar10-quick; with 1,000 in place of 500 they become 3 or 4 % smaller (studies/LOG.md).
_WHAT_MORE_BRINGS = "with 1,000 in place of 200 two networks became 8 % smaller, and no worse"

_BATCHES_TIMED = 4
# What the choice of a way and the foretelling take, in all layers' curves and in networks of a trial.
_CURVES_IN_ALL, _BUILDS = 4.0, 24.0
_WEIGHTS_TIMED = 100_000  # points are timed for the quickest layer and for the slowest one up to this size


@dataclass(frozen=True)
class Check:
    """What came of one step.

    Attributes
    ----------
    name : str
    state : {"passed", "failed", "skipped"}
        A step is skipped where one that it needs did not pass.
    detail : str
    seconds : float
    error : AutonuqError or None
    """

    name: str
    state: Literal["passed", "failed", "skipped"]
    detail: str
    seconds: float = 0.0
    error: AutonuqError | None = None


@dataclass(frozen=True)
class Estimate:
    """How long a study with one worker will take, in seconds.

    Attributes
    ----------
    baseline_s, calibration_s, curves_s : float
        Once in a study's life; 0 where it is done already.
    trial_s : float
        Of each trial.
    trials : int
        Still to run.
    """

    baseline_s: float
    calibration_s: float
    curves_s: float
    trial_s: float
    trials: int

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.baseline_s + self.calibration_s + self.curves_s + self.trials * self.trial_s


@dataclass(frozen=True)
class _Timing:
    """Seconds of a scoring pass: once, and for each batch."""

    once_s: float
    batch_s: float

    def of(self, batches: int) -> float:
        return self.once_s + batches * self.batch_s


class Rehearsal:
    """The steps of one study.

    Parameters
    ----------
    task : Task
        Its evaluators are made by the steps that need them.
    """

    def __init__(self, task: Task) -> None:
        self._task = task_of_study(task)
        self._finished: int | None = None  # trials of a study that exists
        self._steps: tuple[tuple[str, tuple[str, ...], Callable[[], str]], ...] = (
            ("network", (), self._network),
            ("quantization", ("network",), self._quantization),
            ("memory and disk", ("quantization",), self._resources),
            ("evaluator", ("network",), self._evaluator),
            ("one batch", ("evaluator",), self._one_batch),
            ("calibration", ("quantization", "one batch"), self._calibration),
            ("curves", ("calibration",), self._curves),
            ("int8 batch", ("calibration",), self._int8_batch),
            *((("confirmation", ("evaluator",), self._confirmation),) if task.confirm is not None else ()),
            *((("workers", ("evaluator",), self._workers),) if task.workers.backend else ()),
            ("folder", (), self._folder),
            ("storage", ("folder",), self._storage),
            ("study", ("storage", "quantization", "evaluator"), self._study),
        )

    def run(self) -> Iterator[Check]:
        """Take the steps one after the other; nothing that they write stays.

        Yields
        ------
        Check
        """
        missed: set[str] = set()
        with temporary_folder() as self._temporary:
            for name, needs, step in self._steps:
                lacking = next((need for need in needs if need in missed), None)
                check = Check(name, "skipped", f"needs '{lacking}'") if lacking else _taken(name, step)
                if check.state != "passed":
                    missed.add(name)
                yield check

    def estimate(self) -> Estimate:
        """Say how long the study will take, after all steps have passed."""
        batches, new = self._task.evaluator.evaluate_batch_num, self._finished is None
        return Estimate(
            baseline_s=self._float_timing.of(batches) + (batches - 1) * self._first_time_s if new else 0.0,
            calibration_s=self._calibration_s * self._config.batch_num if new else 0.0,
            curves_s=self._curves_s if new else 0.0,
            trial_s=self._building_s * self._config.batch_num + self._write_s + self._int8_timing.of(batches),
            trials=max(0, self._task.n_trials - (self._finished or 0)),
        )

    def _network(self) -> str:
        self._graph = load_graph(self._task.source.model, self._task.source.weights)
        refuse_observers(self._graph)
        check_permission(self._graph)
        inputs = ", ".join(f"{blob} {'x'.join(map(str, shape))}" for blob, shape in self._graph.inputs.items())
        return f"{len(self._graph.layers)} layers; input {inputs}"

    def _quantization(self) -> str:
        self._model = quantized_model(self._task, self._graph)
        self._config = self._model.config
        searched, counted = len(self._model.nuq_layers), self._config.target.say()
        return f"{len(self._model.factors)} layers to int8, {searched} of them searched; codec {counted}"

    def _resources(self) -> str:
        self._needs = needs_of(self._model)
        check_resources(self._task, self._needs)
        return self._needs.say()

    def _evaluator(self) -> str:
        self._own = make_evaluator(self._task.evaluator, self._task.source)
        self._task = replace(self._task, evaluator=self._own)
        check_evaluator(self._own)
        return f"{evaluator_name(self._own)}, {self._own.evaluate_batch_num} batches"

    def _workers(self) -> str:
        with engine(self._task.workers) as connected:
            check_workers(self._task, connected, is_begun=False)
            return f"{connected.jobs} of {self._task.workers.backend} made the evaluator"

    def _one_batch(self) -> str:
        pair = self._task.source
        started = time.monotonic()
        metric = score(self._own, pair, 1)
        first_s = time.monotonic() - started
        self._original_metric = metric
        check_original(self._own, metric)
        if isinstance(metric, Score):
            warn_of_resolution(self._task, metric, len(metric.samples) * self._own.evaluate_batch_num)
        self._float_timing = self._timed(pair, first_s)
        self._first_time_s = max(0.0, first_s - self._float_timing.of(1))
        return f"metric {metric:g} of the original network"

    def _timed(self, pair: ModelPair, first_s: float) -> _Timing:
        """Time scoring passes of one batch and of several."""
        count = min(_BATCHES_TIMED, self._own.evaluate_batch_num)
        if first_s > SECONDS_TO_TIME_IN or count == 1:
            return _Timing(0.0, first_s)
        seconds = []
        for batches in (1, count):
            started = time.monotonic()
            score(self._own, pair, batches)
            seconds.append(time.monotonic() - started)
        batch_s = max(0.0, seconds[1] - seconds[0]) / (count - 1)
        return _Timing(max(0.0, seconds[0] - batch_s), batch_s)

    def _calibration(self) -> str:
        self._record = self._temporary / "record.txt"
        self._calibration_s = self._calibrate_a_batch(self._model)
        if self._config.batch_num > 1:  # that was the first of several, which see less each
            self._calibrate_a_batch(replace(self._model, config=replace(self._config, batch_num=1)))
        self._model = calibrated(self._model, self._record)
        self._building_s = self._timed_building()
        return f"ranges of {len(self._model.factors)} layers from one batch{self._hint_of_images()}"

    def _timed_building(self) -> float:
        """Build a network in order on the batch that was kept, and return the seconds; 0 where none was."""
        passes = load_inputs(self._record)
        if not passes or not is_buildable(self._model.graph):
            return 0.0
        builder = NetworkBuilder(self._model, passes)
        builder.build(Candidate(self._model))  # the engine prepares its parts
        started = time.monotonic()
        builder.build(Candidate(self._model))
        return time.monotonic() - started

    def _hint_of_images(self) -> str:
        """Say that more images would help; nothing where images are not counted, or another Caffe saw them."""
        images = count_images(load_inputs(self._record)) * self._config.batch_num
        if not 0 < images < FEW_IMAGES or not _takes_images(self._model.graph):
            return ""
        return f"; {images} images (batch_num {self._config.batch_num}) are few: {_WHAT_MORE_BRINGS}"

    def _calibrate_a_batch(self, model: QuantizedModel) -> float:
        """Run one batch of a calibration, and return the seconds; the record is complete if it is the only one."""
        started = time.monotonic()
        pair = ModelPair(self._temporary / "model.prototxt", self._temporary / "weights.caffemodel")
        write_calibration_model(model, pair, self._record, model.weights, python_layers=self._task.python_layers)
        request_inputs(self._record)
        run_calibration(self._own, pair, 1)
        return time.monotonic() - started

    def _curves(self) -> str:
        searched = {name: self._model.weight_counts[name] for name in self._model.nuq_layers}
        if unsearched := say_unsearched(self._model):
            self._curves_s = 0.0
            warnings.warn(f"{unsearched}; 'tune' will end with int8", stacklevel=2)
            return "none"
        expected = {layer.layer: layer.seconds for layer in self._needs.layers}
        first = min(searched, key=expected.__getitem__)
        small = [name for name in searched if searched[name] <= max(_WEIGHTS_TIMED, searched[first])]
        second = max(small, key=expected.__getitem__)
        once_s, found = self._timed_curve(first)
        speed = 1.0
        if expected[second] > expected[first]:
            speed = max(0.0, self._timed_curve(second)[0] - once_s) / (expected[second] - expected[first])
        curves_s = sum(once_s + speed * (expected[name] - expected[first]) for name in searched)
        self._curves_s = _CURVES_IN_ALL * curves_s + _BUILDS * self._building_s * self._config.batch_num
        return f"{found} operating points of layer '{first}'"

    def _timed_curve(self, name: str) -> tuple[float, int]:
        """Build a layer's operating points; return the seconds and how many there are."""
        single: QuantizedModel = replace(self._model, weights={name: self._model.weights[name]})
        started = time.monotonic()
        points = dict(build_network_points(single, self._record, tuning=Tuning()))[name]
        return time.monotonic() - started, len(points.curve.rates_bytes)

    def _int8_batch(self) -> str:
        pair = ModelPair(self._temporary / "int8.prototxt", self._temporary / "int8.caffemodel")
        started = time.monotonic()
        write_fake_quant(Candidate(self._model), pair, python_layers=self._task.python_layers)
        written = time.monotonic()
        metric = score(self._own, pair, 1)
        self._write_s = written - started
        self._int8_timing = self._timed(pair, time.monotonic() - written)
        satisfied = is_satisfied(self._own, self._original_metric, metric)
        looks = not satisfied and self._task.float_layers == "auto"
        hint = "; where all batches say so, too, the study finds layers to leave float" if looks else ""
        return f"metric {metric:g} with all layers at int8: {say_verdict(satisfied)}{hint}"

    def _confirmation(self) -> str:
        confirming = make_evaluator(self._task.confirm, self._task.source)
        if confirming is None:
            return "too few images to hold any back from the search; the winner will not be confirmed"
        check_evaluator(confirming)
        metric = score(confirming, self._task.source, 1)
        return f"{evaluator_name(confirming)}: metric {metric:g} of the original network"

    def _folder(self) -> str:
        """Write into the folder, or into the nearest one there is: it is made when the study starts."""
        place = next(folder for folder in (self._task.out, *self._task.out.parents) if folder.exists())
        check_folder(self._task, place)
        return str(self._task.out)

    def _storage(self) -> str:
        """Make a study of a name of its own and remove it again."""
        url, file = self._task.storage, storage_file(self._task.storage)
        if file is not None and not file.exists():
            if file.parent.exists() or file.parent == self._task.out:
                return f"{url}, new"
            raise StudyError(f"storage {url} cannot be used: its folder is not there")
        storage = open_storage(url)
        probe = storage.create(f"check-{secrets.token_hex(8)}")
        optuna.delete_study(study_name=probe.study_name, storage=storage.backend)
        return masked(url)

    def _study(self) -> str:
        if self._is_new():
            check_name(self._task)
            return f"'{self._task.name}' is new, {self._task.n_trials} trials"
        study = open_storage(self._task.storage).load(self._task.name)
        check_fingerprint(study, fingerprint_of(self._task, self._model), data_digests(self._task.evaluator))
        self._finished = sum(trial.state in FINISHED for trial in Study(study).own_trials())
        return f"'{self._task.name}' has {self._finished} of {self._task.n_trials} trials; 'autonuq resume' goes on"

    def _is_new(self) -> bool:
        file = storage_file(self._task.storage)
        if file is not None and not file.exists():
            return True
        return self._task.name not in open_storage(self._task.storage).names()


def _takes_images(graph: Graph) -> bool:
    """Say whether the first axis of the inputs counts images."""
    try:
        find_batch(graph)
    except MixesItems:
        return False
    return True


def _taken(name: str, step: Callable[[], str]) -> Check:
    started = time.monotonic()
    try:
        detail, error = step(), None
    except AutonuqError as caught:
        detail, error = str(caught), caught
    return Check(name, "failed" if error else "passed", detail, time.monotonic() - started, error)
