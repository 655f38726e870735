"""What the figures show, as plain data: every number is decided here and tested by its value.

A ``..._data`` function turns a `StudyRecord` into a frozen dataclass of arrays. Trials that failed or have not
finished are no points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from autonuq.headline import LEAST_SHARE
from autonuq.records import MARGIN_LIMIT, LayerRecord, StudyRecord, TrialRecord, decode_levels

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MOST_ROWS = 24  # layers that hurt most; the others have a row together
REST = "what no plan changes"
"""What the loss has beside the parts of the layers: activations in int8, and layers that are not searched."""
FAR_APART = 6.0  # the largest ratio by the median one, from which on ratios have a logarithmic axis
LONGEST_LEVELS_TEXT = 8  # layers; a hover box with more is summarized


@dataclass(frozen=True)
class HistoryData:
    """Ratio of each finished trial, in order of trial number; n trials.

    Attributes
    ----------
    numbers : ndarray of int64, shape (n,)
    ratios, metrics, sizes_bytes : ndarray of float64, shape (n,)
        NaN where the trial does not say.
    satisfied : ndarray of bool, shape (n,)
    best_ratios : ndarray of float64, shape (n,)
        Largest satisfied ratio up to and including each trial; NaN before the first.
    levels : tuple of str
        Each trial's levels in words.
    best : int or None
        Index of the trial that is exported.
    """

    numbers: Integers
    ratios: Floats
    metrics: Floats
    sizes_bytes: Floats
    satisfied: Flags
    best_ratios: Floats
    levels: tuple[str, ...]
    best: int | None = None

    @property
    def ratios_are_far_apart(self) -> bool:
        """Whether the largest ratio would press most others together on an axis that is not logarithmic."""
        return bool(len(self.ratios)) and float(self.ratios.max()) > FAR_APART * float(np.median(self.ratios))


@dataclass(frozen=True)
class FrontData:
    """Ratio against metric of each finished trial.

    Attributes
    ----------
    history : HistoryData
        The trials, n of them.
    original_metric, limit : float or None
        Metric of the float network, and where the constraint turns.
    larger_is_better : bool
        Which way the metric improves; see `StudyRecord.metric_rises`.
    front : ndarray of int64
        Indices of the non-dominated satisfied trials, by falling ratio.
    """

    history: HistoryData
    original_metric: float | None
    limit: float | None
    larger_is_better: bool
    front: Integers


@dataclass(frozen=True)
class LayersData:
    """What the best trial does to each of n layers, in network order.

    Attributes
    ----------
    names, types, treatments : tuple of str
    original_bytes, compressed_bytes : ndarray of float64, shape (n,)
        As float32, and under the best trial's plan; the latter NaN if no trial satisfied.
    original_shares, compressed_shares : ndarray of float64, shape (n,)
        The layer's part of all layers' bytes, in [0, 1].
    bits_per_weight : ndarray of float64, shape (n,)
        Of the compressed layer.
    levels : ndarray of float64, shape (n,)
        Levels kept, NaN for layers left as float32.
    trial : int or None
        Number of the best trial.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    treatments: tuple[str, ...]
    original_bytes: Floats
    compressed_bytes: Floats
    original_shares: Floats
    compressed_shares: Floats
    bits_per_weight: Floats
    levels: Floats
    trial: int | None


@dataclass(frozen=True)
class HurtData:
    """What each of n rows contributes to the loss of a plan, and to its bytes, the largest loss first.

    Attributes
    ----------
    names : tuple of str
        Layers; behind them, without a name of their own, what many small layers contribute together, and what no plan
        changes.
    layers : int
        How many of the rows are one layer each.
    others : int
        How many layers the row behind them stands for; 0 where there is no such row.
    losses, low, high : ndarray of float64, shape (n,)
        In `unit`, with one standard deviation of what is not known, below and above; NaN where no single one is known.
    loss_shares, byte_shares : ndarray of float64, shape (n,)
        In [0, 1], each adding up to 1.
    size_bytes : ndarray of float64, shape (n,)
        Compressed.
    unit : str
        Of the losses; "%" where only shares of the loss are known, empty where the metric has no unit.
    total, total_error : float or None
        What the plan is believed to lose, in `unit`, and the standard deviation of that.
    trial : int or None
        None where nothing is known.
    is_best : bool
        Whether that trial is the best one, or only nearest to the limit.
    """

    names: tuple[str, ...]
    layers: int
    others: int
    losses: Floats
    low: Floats
    high: Floats
    loss_shares: Floats
    byte_shares: Floats
    size_bytes: Floats
    unit: str
    total: float | None
    total_error: float | None
    trial: int | None
    is_best: bool


@dataclass(frozen=True)
class LayerCurve:
    """One searched layer's rate-distortion curve of m points.

    Attributes
    ----------
    name : str
    bits_per_weight, distortions : ndarray of float64, shape (m,)
    rates_bytes, levels : ndarray of int64, shape (m,)
    chosen : int or None
        Index of the best trial's point.
    """

    name: str
    bits_per_weight: Floats
    distortions: Floats
    rates_bytes: Integers
    levels: Integers
    chosen: int | None


@dataclass(frozen=True)
class CurvesData:
    """The curves of all searched layers, in network order, and the best trial's number."""

    curves: tuple[LayerCurve, ...]
    trial: int | None


@dataclass(frozen=True)
class PredictedData:
    """What the sampler expected of its proposals and what they measured; n trials.

    Attributes
    ----------
    numbers : ndarray of int64, shape (n,)
    predicted, measured : ndarray of float64, shape (n,)
        Metrics.
    satisfied : ndarray of bool, shape (n,)
    original_metric, limit : float or None
    """

    numbers: Integers
    predicted: Floats
    measured: Floats
    satisfied: Flags
    original_metric: float | None
    limit: float | None


@dataclass(frozen=True)
class LayerCodebook:
    """The int8 codes of one layer and the levels that the best trial keeps.

    Attributes
    ----------
    name : str
    counts : ndarray of int64, shape (256,)
        Weights of each code before NUQ, index = code + 128.
    levels : ndarray of float64, shape (k,)
        In int8 steps; empty without a best trial.
    """

    name: str
    counts: Integers
    levels: Floats


@dataclass(frozen=True)
class CodebooksData:
    """Histogram and codebook of every quantized layer, in network order, and the best trial's number."""

    layers: tuple[LayerCodebook, ...]
    trial: int | None


@dataclass(frozen=True)
class TimelineData:
    """Who evaluated what and when; n trials that were started, by start.

    Attributes
    ----------
    numbers : ndarray of int64, shape (n,)
    workers, outcomes : tuple of str
        Outcome: satisfied, not satisfied, failed or running.
    starts : tuple of datetime
    durations_s : ndarray of float64, shape (n,)
        Of a running trial: until the last thing known of the study.
    """

    numbers: Integers
    workers: tuple[str, ...]
    outcomes: tuple[str, ...]
    starts: tuple[datetime, ...]
    durations_s: Floats


def history_data(record: StudyRecord) -> HistoryData:
    """Collect the finished trials of a study.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    HistoryData
        One entry per complete trial with a ratio.
    """
    trials = sorted(
        (trial for trial in record.trials if trial.state == "complete" and trial.ratio is not None),
        key=lambda trial: trial.number,
    )
    ratios = _floats(trial.ratio for trial in trials)
    satisfied = np.array([bool(trial.satisfied) for trial in trials], dtype=np.bool_)
    best = np.maximum.accumulate(np.where(satisfied, ratios, -np.inf)) if trials else ratios
    return HistoryData(
        numbers=np.array([trial.number for trial in trials], dtype=np.int64),
        ratios=ratios,
        metrics=_floats(trial.metric for trial in trials),
        sizes_bytes=_floats(trial.size_bytes for trial in trials),
        satisfied=satisfied,
        best_ratios=np.where(np.isfinite(best), best, np.nan),
        levels=tuple(_levels_in_words(record, trial) for trial in trials),
        best=next((index for index, trial in enumerate(trials) if record.best and trial is record.best), None),
    )


def front_data(record: StudyRecord) -> FrontData:
    """Set ratio against metric and find the satisfied trials that no other one beats in both.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    FrontData
    """
    history = history_data(record)
    front = np.searchsorted(history.numbers, [trial.number for trial in record.front()])
    return FrontData(history, record.original_metric, record.limit, record.metric_rises, front)


def layers_data(record: StudyRecord) -> LayersData:
    """Set each layer's bytes under the best trial beside its float32 bytes.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    LayersData
        Without a best trial, compressed bytes and levels are NaN.
    """
    rows = record.layer_rows(record.best)
    original = _floats(layer.original_bytes for layer in record.layers)
    compressed = _floats(row.size_bytes for row in rows)
    return LayersData(
        names=tuple(layer.name for layer in record.layers),
        types=tuple(layer.type for layer in record.layers),
        treatments=tuple(layer.treatment for layer in record.layers),
        original_bytes=original,
        compressed_bytes=compressed,
        original_shares=original / max(1.0, original.sum()),
        compressed_shares=compressed / max(1.0, compressed.sum()),
        bits_per_weight=_floats(row.bits_per_weight for row in rows),
        levels=_floats(row.levels for row in rows),
        trial=record.best.number if record.best else None,
    )


def hurt_data(record: StudyRecord) -> HurtData:
    """Set what each layer contributes to the loss beside its bytes, under the best trial's plan.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    HurtData
        The layers that cause most of the loss, `MOST_ROWS` at most, have rows of their own, the others one together.
    """
    parts = record.loss_parts
    trial = None if parts is None else next((one for one in record.trials if one.number == parts.trial), None)
    if parts is None or trial is None:
        nothing = np.empty(0)
        return HurtData((), 0, 0, *(nothing,) * 6, "", None, None, None, False)
    sizes = {row.layer.name: float(row.size_bytes or 0) for row in record.layer_rows(trial)}
    count = min(MOST_ROWS, sum(part.share >= LEAST_SHARE for part in parts.layers))
    count += len(parts.layers) == count + 1  # a row for the others may as well be the only one's
    own, others = parts.layers[:count], parts.layers[count:]
    rows = [(part.share, *parts.bounds(part), sizes[part.layer]) for part in own]
    if others:
        rows.append((sum(part.share for part in others), np.nan, np.nan, sum(sizes[part.layer] for part in others)))
    rest = sum(sizes.values()) - sum(row[-1] for row in rows)
    rows.append((parts.rest.share, *parts.bounds(parts.rest), rest))
    shares, low, high, size_bytes = np.array(rows, dtype=np.float64).T
    unit, factor = _loss_unit(record)
    scale = 100.0 if parts.loss is None else parts.loss * factor
    return HurtData(
        names=(*(part.layer for part in own), *([f"{len(others)} other layers"] if others else []), REST),
        layers=len(own),
        others=len(others),
        losses=shares * scale,
        low=low * scale,
        high=high * scale,
        loss_shares=shares,
        byte_shares=size_bytes / max(1.0, size_bytes.sum()),
        size_bytes=size_bytes,
        unit=unit,
        total=None if parts.loss is None else scale,
        total_error=None if parts.loss_error is None else parts.loss_error * factor,
        trial=trial.number,
        is_best=record.best is not None and record.best.number == trial.number,
    )


def _loss_unit(record: StudyRecord) -> tuple[str, float]:
    """Return what the losses of layers are said in, and by what they are multiplied for that."""
    if record.loss_parts is None or record.loss_parts.loss is None:
        return "%", 100.0
    return record.unit.name, record.unit.factor


def curves_data(record: StudyRecord) -> CurvesData:
    """Collect the rate-distortion curves of the layers that the study searches.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    CurvesData
        Layers that are not searched, having one operating point, are left out.
    """
    best = record.best
    searched = (layer for layer in record.layers if len(layer.rates_bytes) > 1)
    return CurvesData(
        curves=tuple(_layer_curve(layer, best) for layer in searched),
        trial=best.number if best else None,
    )


def _layer_curve(layer: LayerRecord, best: TrialRecord | None) -> LayerCurve:
    rates = np.array(layer.rates_bytes, dtype=np.int64)
    return LayerCurve(
        name=layer.name,
        bits_per_weight=8.0 * rates / layer.weights,
        distortions=_floats(layer.distortions),
        rates_bytes=rates,
        levels=np.array(layer.curve_levels, dtype=np.int64),
        chosen=best.points.get(layer.name, 0) if best else None,
    )


def predicted_data(record: StudyRecord) -> PredictedData:
    """Set the metric that the sampler expected beside the one that was measured.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    PredictedData
        Empty if the sampler predicts nothing, or the constraint's edge is unknown.

    Notes
    -----
    A predicted margin m means the metric original + (limit - original) exp(m).
    """
    original, limit = record.original_metric, record.limit
    trials = [
        trial
        for trial in record.trials
        if trial.state == "complete" and trial.predicted is not None and trial.metric is not None
    ]
    if original is None or limit is None:
        trials = []
    margins = np.clip(_floats(trial.predicted for trial in trials), -MARGIN_LIMIT, MARGIN_LIMIT)
    return PredictedData(
        numbers=np.array([trial.number for trial in trials], dtype=np.int64),
        predicted=(original or 0.0) + ((limit or 0.0) - (original or 0.0)) * np.exp(margins),
        measured=_floats(trial.metric for trial in trials),
        satisfied=np.array([bool(trial.satisfied) for trial in trials], dtype=np.bool_),
        original_metric=original,
        limit=limit,
    )


def codebooks_data(record: StudyRecord) -> CodebooksData:
    """Collect each layer's histogram and the levels that the best trial keeps.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    CodebooksData
        Layers without a recorded histogram are left out.
    """
    best = record.best
    return CodebooksData(
        tuple(_layer_codebook(layer, best) for layer in record.layers if layer.histogram),
        trial=best.number if best else None,
    )


def _layer_codebook(layer: LayerRecord, best: TrialRecord | None) -> LayerCodebook:
    histogram = np.array(layer.histogram, dtype=np.int64)
    if best is None or not layer.codebooks:
        return LayerCodebook(layer.name, histogram, np.empty(0))
    point = best.points.get(layer.name, 0)
    step = layer.steps[point] if layer.steps else 1.0
    return LayerCodebook(layer.name, histogram, step * np.array(decode_levels(layer.codebooks[point]), np.float64))


def timeline_data(record: StudyRecord) -> TimelineData:
    """Order the trials that were started by their start.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    TimelineData
    """
    trials = sorted((trial for trial in record.trials if trial.started), key=lambda trial: trial.started)
    starts = [datetime.fromisoformat(trial.started) for trial in trials]
    ends = [start + timedelta(seconds=trial.duration_s or 0.0) for start, trial in zip(starts, trials, strict=True)]
    last = max(ends, default=None)
    return TimelineData(
        numbers=np.array([trial.number for trial in trials], dtype=np.int64),
        workers=tuple(trial.worker or "unknown" for trial in trials),
        outcomes=tuple(trial.outcome for trial in trials),
        starts=tuple(starts),
        durations_s=_floats(
            (last - start).total_seconds() if last and trial.state == "running" else trial.duration_s
            for start, trial in zip(starts, trials, strict=True)
        ),
    )


def _floats(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _levels_in_words(record: StudyRecord, trial: TrialRecord) -> str:
    """Name every layer's levels, or their range if the layers are many."""
    levels = {name: count for name, count in record.layer_levels(trial).items() if name in trial.points}
    if len(levels) <= LONGEST_LEVELS_TEXT:
        return ", ".join(f"{name} {count}" for name, count in levels.items())
    counts = list(levels.values())
    return f"{min(counts)} to {max(counts)}, median {np.median(counts):.0f}, over {len(counts)} layers"
