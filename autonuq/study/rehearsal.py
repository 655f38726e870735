"""A rehearsal: every step of a study once, on one batch, before hours are spent; and how long the study will take."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import optuna

from autonuq.atomic import temporary_folder
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import say_unsearched
from autonuq.compress.formats import export
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import refuse_observers
from autonuq.errors import AutonuqError, StudyError
from autonuq.evaluate.builtin import ImageEvaluator
from autonuq.evaluate.builtin.plausible import warn_of_doubts
from autonuq.evaluate.evaluator import (
    check_evaluator,
    data_digests,
    evaluator_name,
    is_satisfied,
    run_calibration,
    score,
)
from autonuq.evaluate.isolation import IsolatedEvaluator
from autonuq.evaluate.recipe import make_evaluator
from autonuq.evaluate.samples import Score
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.hosted.permission import check_permission
from autonuq.graph.model import Graph
from autonuq.masking import masked
from autonuq.records import ON_RANDOM_DATA, ORIGINAL_METRIC, POINTS, say_verdict
from autonuq.runtime.inputs import count_images, load_inputs, request_inputs
from autonuq.runtime.memory import resident_memory
from autonuq.storage.open import open_storage, storage_file
from autonuq.study.attributes import StudyAttributes
from autonuq.study.dispatch import check_workers
from autonuq.study.engines import engine
from autonuq.study.estimate import Estimate
from autonuq.study.float_layers import IMAGES, most_scored
from autonuq.study.locate import task_of_study
from autonuq.study.preparation import check_original, warn_of_resolution
from autonuq.study.resources import check_resources, needs_of, warn_of_resources
from autonuq.study.run import WINNER_FORMATS
from autonuq.study.stored import FINISHED, Study, check_fingerprint, stored_confirmation
from autonuq.study.task import Task, check_folder, check_name, fingerprint_of, quantized_model
from autonuq.study.timing import BATCHES_TIMED, SECONDS_TO_TIME_IN, PreparationPace, ScoringPace

FEW_IMAGES = 500
"""Fewer that calibrate are worth a word: more of them would pay."""
# Measured on lenet-fashion and cifar10-quick; with 1,000 in place of 500 they become 3 or 4 % smaller (studies/LOG.md).
_WHAT_MORE_BRINGS = "with 1,000 in place of 200 two networks became 8 % smaller, and no worse"

_TRIAL_S, _REPORT_S = 0.1, 0.4  # what a trial takes beside its network and its scoring, and writing the report
_KEPT_AT_MOST = 1 << 29  # bytes of pictures that evaluators keep from trial to trial


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
    warnings: tuple[str, ...] = ()


class Rehearsal:
    """The steps of one study.

    Parameters
    ----------
    task : Task
        Its evaluators are made by the steps that need them.
    """

    def __init__(self, task: Task) -> None:
        self._task = task_of_study(task)
        self._done = _Done()
        self._confirming: Any = None
        self._kept_bytes = 0.0
        self._steps: tuple[tuple[str, tuple[str, ...], Callable[[], str]], ...] = (
            ("network", (), self._network),
            ("quantization", ("network",), self._quantization),
            ("memory and disk", ("quantization",), self._resources),
            ("evaluator", ("network",), self._evaluator),
            ("one batch", ("evaluator",), self._one_batch),
            ("plausibility", ("one batch",), self._plausibility),
            ("calibration", ("quantization", "one batch"), self._calibration),
            ("curves", ("calibration",), self._curves),
            ("int8 batch", ("calibration",), self._int8_batch),
            ("export", ("calibration",), self._export),
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
        """Say what the study will take until its end, after all steps have passed."""
        batches, config, done = self._task.evaluator.evaluate_batch_num, self._config, self._done
        float_s = self._write_s + self._int8_pace.of(batches)
        trial_s = self._build_s + self._sizes_s + float_s + _TRIAL_S
        trials = max(0, self._task.n_trials - done.finished)
        scores_int8 = self._task.float_layers == "auto" and not done.is_prepared
        if say_unsearched(self._model):
            trials = min(trials, 1)
        confirms = self._confirming is not None and (trials > 0 or not done.is_confirmed)
        return Estimate(
            baseline_s=0.0 if done.has_baseline else self._pace.first_of(batches),
            calibration_s=0.0 if done.has_points else self._calibration_once_s + config.batch_num * self._pass_s,
            ways_s=0.0 if done.has_points else self._ways_s,
            curves_s=0.0 if done.has_points else self._curves_s,
            int8_s=float_s if scores_int8 else 0.0,
            foretelling_s=0.0 if done.is_prepared else self._foretelling_s,
            trial_s=trial_s,
            scoring_s=self._int8_pace.of(batches),
            first_trial_s=self._first_build_s,
            trials=trials,
            confirmation_s=self._confirmation_s(done) if confirms else 0.0,
            export_s=self._export_s + _REPORT_S,
            float_search_s=self._float_search_s(float_s) if scores_int8 else 0.0,
            memory_bytes=self._memory_bytes(),
            disk_bytes=self._needs.disk_bytes,
        )

    def _confirmation_s(self, done: _Done) -> float:
        """Return what scoring the original and the winner on other data takes."""
        pace, batches = self._confirming_pace, int(self._confirming.evaluate_batch_num)
        original_s = pace.of(batches) if done.is_confirmed else pace.first_of(batches) + pace.of(batches)
        own_s: float = original_s + self._write_s
        return own_s + (0.0 if done.is_confirmed else pace.first_once_s)

    def _float_search_s(self, scoring_s: float) -> float:
        """Return what the search for layers to leave float takes at most."""
        layers = len(self._model.factors)
        batches = 1 if self._images == 0 else -(-IMAGES // self._images)
        return layers * (self._write_s + self._int8_pace.of(batches)) + most_scored(layers) * scoring_s

    def _memory_bytes(self) -> float:
        """Return what the study takes at most: what the rehearsal has now, and what its full size takes more."""
        own = resident_memory()
        if own is None:
            return self._needs.memory_bytes
        batches = int(self._task.evaluator.evaluate_batch_num)
        kept = min(self._kept_bytes * max(0, batches - BATCHES_TIMED), float(_KEPT_AT_MOST))
        return own + kept + self._needs.beyond_process_bytes

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
        return f"{self._needs.say()}, by the prototxt's batch"

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
        before = resident_memory()
        self._pace = ScoringPace.timed(partial(score, self._own, pair), self._own.evaluate_batch_num, first_s)
        count = min(BATCHES_TIMED, self._own.evaluate_batch_num)
        grown = (resident_memory() or 0.0) - (before or 0.0)
        self._kept_bytes = max(0.0, grown) / (count - 1) if count > 1 else 0.0
        return f"metric {metric:g} of the original network"

    def _plausibility(self) -> str:
        own = self._own.here if isinstance(self._own, IsolatedEvaluator) else self._own
        if getattr(own, "random_data", False) is True:
            warnings.warn(f"the evaluator scores a network {ON_RANDOM_DATA}", stacklevel=2)
        return warn_of_doubts(own) if isinstance(own, ImageEvaluator) else "an evaluator of your own is not looked into"

    def _calibration(self) -> str:
        self._record = self._temporary / "record.txt"
        self._calibration_once_s, self._pass_s = self._timed_calibration()
        self._model = calibrated(self._model, self._record)
        kept = load_inputs(self._record)
        self._images = count_images(kept) if _takes_images(self._model.graph) else 0
        if kept:
            shapes = {blob: values.shape for blob, values in kept[0].items()}
            self._needs = needs_of(self._model, shapes)
            warn_of_resources(self._task, self._needs)
        return f"ranges of {len(self._model.factors)} layers from one batch{self._hint_of_images()}"

    def _hint_of_images(self) -> str:
        """Say that more images would help; nothing where images are not counted, or another Caffe saw them."""
        images = self._images * self._config.batch_num
        if not 0 < images < FEW_IMAGES:
            return ""
        return f"; {images} images (batch_num {self._config.batch_num}) are few: {_WHAT_MORE_BRINGS}"

    def _timed_calibration(self) -> tuple[float, float]:
        """Return the seconds of a calibration, once and for each pass; the last one that is timed is complete."""
        if self._config.batch_num == 1:
            return 0.0, self._calibrate(1)
        first_s = self._calibrate(1, of=2)  # without the search for ranges at the end
        if first_s > SECONDS_TO_TIME_IN:
            return max(0.0, self._calibrate(1) - first_s), first_s
        several_s, one_s = self._calibrate(2), self._calibrate(1)
        pass_s = max(0.0, several_s - one_s)
        return max(0.0, one_s - pass_s), pass_s

    def _calibrate(self, passes: int, of: int | None = None) -> float:
        """Run so many passes, of as many by default, and return the seconds."""
        started = time.monotonic()
        pair = ModelPair(self._temporary / "model.prototxt", self._temporary / "weights.caffemodel")
        model = replace(self._model, config=replace(self._config, batch_num=of or passes))
        write_calibration_model(model, pair, self._record, model.weights, python_layers=self._task.python_layers)
        request_inputs(self._record)
        run_calibration(self._own, pair, passes)
        return time.monotonic() - started

    def _curves(self) -> str:
        if unsearched := say_unsearched(self._model):
            warnings.warn(f"{unsearched}; 'tune' will end with int8", stacklevel=2)
        pace = PreparationPace.timed(self._model, self._record)
        self._ways_s, self._curves_s, self._foretelling_s = pace.ways_s, pace.curves_s, pace.foretelling_s
        self._build_s, self._first_build_s, self._sizes_s = pace.build_s, pace.first_build_s, pace.sizes_s
        return f"{pace.found} operating points of layer '{pace.first}'" if pace.first else "none"

    def _int8_batch(self) -> str:
        pair = ModelPair(self._temporary / "int8.prototxt", self._temporary / "int8.caffemodel")
        started = time.monotonic()
        write_fake_quant(Candidate(self._model), pair, python_layers=self._task.python_layers)
        written = time.monotonic()
        metric = score(self._own, pair, 1)
        self._write_s = written - started
        self._int8_pace = ScoringPace.timed(
            partial(score, self._own, pair), self._own.evaluate_batch_num, time.monotonic() - written
        )
        satisfied = is_satisfied(self._own, self._original_metric, metric)
        looks = not satisfied and self._task.float_layers == "auto"
        hint = "; where all batches say so, too, the study finds layers to leave float" if looks else ""
        return f"metric {metric:g} with all layers at int8: {say_verdict(satisfied)}{hint}"

    def _export(self) -> str:
        """Write what a winner is written as."""
        started = time.monotonic()
        written = export(Candidate(self._model), str(self._temporary / "export" / "network"), WINNER_FORMATS)
        self._export_s = time.monotonic() - started
        return f"{len(written)} files of the network with all layers at int8"

    def _confirmation(self) -> str:
        confirming = make_evaluator(self._task.confirm, self._task.source)
        if confirming is None:
            return "too few images to hold any back from the search; the winner will not be confirmed"
        check_evaluator(confirming)
        started = time.monotonic()
        metric = score(confirming, self._task.source, 1)
        first_s = time.monotonic() - started
        run = partial(score, confirming, self._task.source)
        self._confirming = confirming
        self._confirming_pace = ScoringPace.timed(run, confirming.evaluate_batch_num, first_s)
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
        self._done = _Done.of(study)
        return (
            f"'{self._task.name}' has {self._done.finished} of {self._task.n_trials} trials; 'autonuq resume' goes on"
        )

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


@dataclass(frozen=True)
class _Done:
    """How far a study is; not begun by default.

    Attributes
    ----------
    has_baseline, has_points, is_prepared : bool
        The original network is scored; the operating points are there; all is done that comes before the trials.
    finished : int
        Trials.
    is_confirmed : bool
        The winner of these trials, or what there is in its place.
    """

    has_baseline: bool = False
    has_points: bool = False
    is_prepared: bool = False
    finished: int = 0
    is_confirmed: bool = False

    @staticmethod
    def of(study: optuna.Study) -> _Done:
        attributes = StudyAttributes(study)
        finished = sum(trial.state in FINISHED for trial in Study(study).own_trials())
        confirmed = stored_confirmation(study).found
        return _Done(
            has_baseline=attributes.get(ORIGINAL_METRIC, float | None) is not None,
            has_points=bool(attributes.get(POINTS, str, "")),
            is_prepared=attributes.is_sealed,
            finished=finished,
            is_confirmed=confirmed is not None and confirmed.finished == finished and not confirmed.error,
        )


def _taken(name: str, step: Callable[[], str]) -> Check:
    """Take a step; what it warns of is part of what came of it."""
    started = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            detail, error = step(), None
        except AutonuqError as raised:
            detail, error = str(raised), raised
    said = tuple(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning)))
    return Check(name, "failed" if error else "passed", detail, time.monotonic() - started, error, said)
