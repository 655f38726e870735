"""Which layers stay float, decided once in a study's life, before its first trial.

All layers at int8 are scored first. Where that keeps the limit, no layer stays float. Where it does not, each layer's
harm alone is measured, and those layers are left float that harm most for the bytes that they take, as few as suffice
(as AMCT's accuracy-based calibration finds them); then what can be is quantized again, the least harmful first (the
largest first left more of them, and more bytes, float on EfficientNet-lite0: ten and six layers). Of N layers
this scores 1 + ceil(log2 N) + `MOST_REQUANTIZED` networks at most. The one that is found is the study's first trial: no
pass is wasted, and a network that is known to keep the limit is not lost. The sampler does not learn from it, for
without distortion it says nothing of the curves.

The harm is measured on inputs that the calibration kept, without the evaluator (`compress.sensitivity`). Where another
Caffe ran it, or this process cannot run the network, each layer costs one scoring pass instead.

Everything that was measured is stored as it comes, so that a killed study goes on where it was.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import optuna

from autonuq.compress.candidate import Candidate
from autonuq.compress.sensitivity import OutputErrors
from autonuq.errors import AutonuqError, EvaluatorError, StudyError, WriteFailure
from autonuq.plain import ANY_NUMBER, from_plain, with_digest, without_digest
from autonuq.records import (
    FLOAT_MEASURED,
    INT8,
    METRIC_CHANGE,
    OUTPUT_ERROR,
    FloatLayers,
    LayerCost,
    TrialRecord,
    format_metric,
    is_verdict_alone,
)
from autonuq.runtime.inputs import first_images, load_inputs
from autonuq.search.rollback import BinarySearchStrategy, Verdict, requantize, roll_back
from autonuq.search.trust import target_loss
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.scoring import FAILURES_IN_A_ROW, failed_in_a_row, score_plan
from autonuq.study.stored import original_metric, store_float_layers, stored_float_layers
from autonuq.study.task import OnProgress, Progress, Task
from autonuq.study.trials import record_as_data, record_from_data

IMAGES = 16
"""On which a layer's harm is measured."""
MOST_REQUANTIZED = 10
"""Networks that are scored to quantize layers again."""


def decide_float_layers(task: Task, study: optuna.Study, candidate: Candidate, on_progress: OnProgress) -> FloatLayers:
    """Return which layers stay float: what is stored, or what is found, which is stored then.

    Parameters
    ----------
    candidate : Candidate
        Of all layers that the configuration quantizes.

    Raises
    ------
    StudyError
        The study was decided otherwise than the task says.
    EvaluatorError
        Three scoring passes in a row failed.
    """
    found = stored_float_layers(study)
    if found is None:
        found = _Decision(task, study, candidate, on_progress).find()
        store_float_layers(study, found)
    if words := found.say():
        on_progress(Progress("float", words, 1, 1))
    if task.float_layers == "never" and (found.layers or found.hopeless):
        raise StudyError(
            f"was not started with float_layers = 'never': {found.say()}; restore it, or start a study of another name",
            study=study.study_name,
        )
    return found


def most_scored(layers: int) -> int:
    """Return how many networks are scored at most for so many layers, beside the one with all of them at int8."""
    return math.ceil(math.log2(max(1, layers))) + MOST_REQUANTIZED


def first_trial(study: optuna.Study, found: FloatLayers) -> TrialRecord | None:
    """Return what the layers that were not left float scored, all at int8; None where that was not measured."""
    return _Measured(study).record(found.layers)


@dataclass(frozen=True)
class _Measurement:
    kind: str
    layers: tuple[str, ...]
    value: float | Mapping[str, Any] = field(metadata=ANY_NUMBER)


class _Measured:
    """What a study stores of measurements, in the order in which they were made.

    Of a kind INT8 it is what a network scored some of whose layers are float, of a kind OUTPUT_ERROR what one layer
    costs.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study, attributes = study, StudyAttributes(study)
        self._entries: list[_Measurement] = []
        for index in range(attributes.get(FLOAT_MEASURED, int, 0)):
            self._entries.append(self._stored(attributes, f"{FLOAT_MEASURED}/{index}"))

    def _stored(self, attributes: StudyAttributes, key: str) -> _Measurement:
        with attributes.blaming(key):
            entry = without_digest(attributes.long(key, Mapping[str, Any], {}))
            found: _Measurement = from_plain(_Measurement, entry)
            if found.kind == INT8:
                record_from_data(found.value, 0)
            return found

    def add(self, kind: str, layers: Collection[str], value: Any) -> None:
        entry = _Measurement(kind, tuple(sorted(layers)), value)
        store_long(self._study, f"{FLOAT_MEASURED}/{len(self._entries)}", with_digest(asdict(entry)))
        self._entries.append(entry)
        self._study.set_user_attr(FLOAT_MEASURED, len(self._entries))  # last: what is not counted is not there

    def value(self, kind: str, layers: Collection[str]) -> Any:
        wanted = tuple(sorted(layers))
        return next((one.value for one in self._entries if (one.kind, one.layers) == (kind, wanted)), None)

    def record(self, floats: Collection[str]) -> TrialRecord | None:
        stored = self.value(INT8, floats)
        return None if stored is None else record_from_data(stored, 0)

    def records(self) -> list[tuple[tuple[str, ...], TrialRecord]]:
        return [(one.layers, record_from_data(one.value, 0)) for one in self._entries if one.kind == INT8]


class _Decision:
    """One way to a decision."""

    def __init__(self, task: Task, study: optuna.Study, candidate: Candidate, on_progress: OnProgress) -> None:
        self._task, self._study, self._candidate, self._on_progress = task, study, candidate, on_progress
        self._measured, self._original = _Measured(study), original_metric(study)
        self._layers = tuple(candidate.model.factors)
        counts = candidate.model.weight_counts
        self._float_bytes = {name: 4 * counts.get(name, 0) for name in self._layers}
        self._scored = self._failures = 0

    def find(self) -> FloatLayers:
        """Return what the task says, or what measurements do."""
        if self._task.float_layers != "auto":
            names = tuple(self._task.named_float_layers)
            return FloatLayers(names, "float_layers names them" if names else "")
        if not self._layers:
            return FloatLayers()
        everything = self._score(())
        if everything.error:  # a passing trouble, or a network that is broken: the second time tells
            everything = self._score(())
        return FloatLayers() if everything.satisfied else self._blamed(everything)

    def _blamed(self, everything: TrialRecord) -> FloatLayers:
        """Say which layers int8 is not good enough for."""
        measure, costs = self._costs()
        floats = self._least(_verdict(everything), costs)
        before = format_metric(float(self._original))
        after = everything.error or f"metric {before} -> {format_metric(everything.metric)}"
        table = [LayerCost(name, self._float_bytes[name], cost) for name, cost in costs.items()]
        return FloatLayers(
            layers=tuple(name for name in self._layers if name in (floats or ())),
            reason=f"with every layer at int8 the limit is not kept ({after})",
            measure=measure,
            costs=tuple(sorted(table, key=lambda one: -_harm(one.cost))),
            hopeless=floats is None,
        )

    def _least(self, verdict: Verdict, costs: Mapping[str, float | None]) -> Sequence[str] | None:
        """Return few bytes of layers that suffice if they stay float; None if there are none.

        Parameters
        ----------
        verdict : tuple of bool and float
            On all layers at int8.
        costs : mapping of str to float or None
            Of each layer alone.
        """
        harms = {name: _harm(cost) for name, cost in costs.items()}
        ranking = {name: -harm / max(1, self._float_bytes[name]) for name, harm in harms.items()}
        quantized, _ = roll_back(ranking, BinarySearchStrategy(), verdict, self._probe)
        floats = sorted((name for name in quantized if not quantized[name]), key=lambda name: harms[name])
        if self._is_int8_left(floats):
            return requantize(floats, self._accepts, MOST_REQUANTIZED)
        lucky = [names for names, one in self._measured.records() if one.satisfied and self._is_int8_left(names)]
        return min(lucky, key=lambda names: sum(self._float_bytes[name] for name in names), default=None)

    def _is_int8_left(self, floats: Collection[str]) -> bool:
        """Say whether a layer with weights is left to quantize."""
        return any(self._float_bytes[name] and name not in floats for name in self._layers)

    def _probe(self, quantized: Mapping[str, bool]) -> Verdict:
        floats = [name for name in quantized if not quantized[name]]
        return self._accepts(floats), math.nan

    def _accepts(self, floats: Sequence[str]) -> bool:
        """Say whether a network keeps the limit, with the study's confidence where errors are known."""
        if not self._is_int8_left(floats):
            return False
        record = self._score(floats)
        error, margin = record.relative_error, record.margin
        if not record.satisfied or error is None or margin is None or is_verdict_alone(margin):
            return bool(record.satisfied)
        return math.exp(margin) <= target_loss(error, self._task.confidence)

    def _score(self, floats: Collection[str]) -> TrialRecord:
        """Return what the network scores with some layers float and all others at int8; failed passes are not stored.

        Raises
        ------
        EvaluatorError
            Several in a row failed.
        """
        known = self._measured.record(floats)
        if known is not None:
            return known
        what = f"all layers at int8 but {len(floats)} of {len(self._layers)}" if floats else "all layers at int8"
        self._on_progress(Progress("float", f"scoring {what}", self._scored, self._scored + 1))
        try:
            record = self._scored_network(self._candidate.leaving_float(floats))
            self._measured.add(INT8, floats, record_as_data(record))
            self._failures = 0
        except EvaluatorError as error:
            record = TrialRecord(0, "failed", error=str(error))
            self._failures += 1
            if self._failures == FAILURES_IN_A_ROW:
                raise failed_in_a_row(str(error)) from error
        self._scored += 1
        outcome = record.error or f"metric {format_metric(record.metric, record.standard_error)}, {record.outcome}"
        self._on_progress(Progress("float", f"{what}: {outcome}", self._scored, self._scored))
        return record

    def _scored_network(self, candidate: Candidate) -> TrialRecord:
        """Return what a network without a plan scores, as its trial will have it."""
        at, started = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
        record = TrialRecord(0, "complete", origin=INT8, started=at)
        found = score_plan(self._task, candidate, self._original, record)
        return replace(found, duration_s=round(time.monotonic() - started, 3))

    def _costs(self) -> tuple[str, Mapping[str, float | None]]:
        """Measure what each layer costs alone: on kept inputs where that is possible, by the evaluator elsewhere."""
        passes = first_images(load_inputs(self._task.record_file), IMAGES)
        if not passes:
            return METRIC_CHANGE, self._metric_changes("another Caffe ran the calibration, or its inputs are gone")
        try:
            return OUTPUT_ERROR, self._output_errors(passes)
        except WriteFailure:
            raise
        except AutonuqError as error:
            return METRIC_CHANGE, self._metric_changes(f"the network cannot be run here ({error})")

    def _output_errors(self, passes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        costs: dict[str, float] = {}
        folder = self._task.scratch_folder
        folder.mkdir(exist_ok=True)
        try:
            errors = OutputErrors(self._candidate, passes, folder)
            for name in self._layers:
                known = self._measured.value(OUTPUT_ERROR, [name])
                costs[name] = errors.measure(name) if known is None else known
                if known is None:
                    self._measured.add(OUTPUT_ERROR, [name], costs[name])
                words = f"'{name}' alone: error {costs[name]:.3%} of the outputs"
                self._on_progress(Progress("float", words, len(costs), len(self._layers)))
        finally:
            shutil.rmtree(folder)
        return costs

    def _metric_changes(self, why: str) -> dict[str, float | None]:
        self._on_progress(Progress("float", f"{why}: scoring every layer alone", 0, len(self._layers)))
        costs: dict[str, float | None] = {}
        for name in self._layers:
            metric = self._score([other for other in self._layers if other != name]).metric
            costs[name] = None if metric is None else abs(float(self._original) - metric)
        return costs


def _verdict(record: TrialRecord) -> Verdict:
    return bool(record.satisfied), math.nan


def _harm(cost: float | None) -> float:
    """Return what layers are ranked by: nothing harms more than what could not be scored."""
    return math.inf if cost is None else cost
