"""What a study and its trials leave behind, as plain data.

`search` writes these records (into the storage and the artifact folder), `report` draws them. They live below
both, so that neither room imports the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

MARGIN_LIMIT = 7.0
"""Margins are clipped to +-7: a drop 1,000 times smaller or larger than allowed says no more."""


def encode_levels(levels: Iterable[int]) -> str:
    """Write the levels of a codebook as 64 hexadecimal digits, bit i standing for level i - 128."""
    return f"{sum(1 << (int(level) + 128) for level in levels):064x}"


def decode_levels(code: str) -> tuple[int, ...]:
    """Read what `encode_levels` wrote: sorted levels.

    Examples
    --------
    >>> decode_levels(encode_levels([7, -8, 0]))
    (-8, 0, 7)
    """
    mask = int(code, 16)
    return tuple(level for level in range(-128, 128) if mask >> (level + 128) & 1)


@dataclass(frozen=True)
class LayerRecord:
    """One layer with weights.

    Attributes
    ----------
    name, type : str
        Caffe's layer name and type.
    weights : int
        Number of weights (bias not counted).
    treatment : {"nuq", "uniform", "float"}
        Searched codebook, all 256 int8 steps, or left as float32.
    reason : str
        Why the treatment is not "nuq"; empty otherwise.
    rates_bytes, distortions : tuple of float
        The layer's rate-distortion curve, by falling rate (one point for layers that are not searched).
    curve_levels : tuple of int
        Number of levels of each point of the curve (256 stands for uniform int8).
    histogram : tuple of int
        Count of each int8 code before NUQ, index = code + 128; empty if it was not recorded.
    codebooks : tuple of str
        Codebook of each point of the curve, as `encode_levels` writes it; empty if they were not recorded.
    """

    name: str
    type: str
    weights: int
    treatment: Literal["nuq", "uniform", "float"]
    reason: str = ""
    rates_bytes: tuple[int, ...] = ()
    distortions: tuple[float, ...] = ()
    curve_levels: tuple[int, ...] = ()
    histogram: tuple[int, ...] = ()
    codebooks: tuple[str, ...] = ()

    @property
    def original_bytes(self) -> int:
        """Size of the weights as float32."""
        return 4 * self.weights


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes
    ----------
    number : int
    state : {"complete", "failed", "running", "waiting"}
    ratio : float or None
        Overall weight-compression ratio; None unless complete.
    metric : float or None
        What the evaluator returned.
    satisfied : bool or None
        The evaluator's verdict.
    margin : float or None
        The constraint: log(drop / allowed drop), negative inside.
    size_bytes : int or None
        Compressed bytes of all quantizable layers' weights.
    points : mapping of str to int
        Index of the chosen point on each searched layer's curve.
    origin : str
        "seed" (a uniform level count), "sampler", or "copy of N" when an equal plan had been scored.
    started : str
        ISO 8601 in UTC, empty if not started.
    duration_s : float or None
    error : str
        Why the trial failed; empty otherwise.
    worker : str
        host:pid of the process that ran it.
    predicted : float or None
        The margin that the curves and the trials before this one let expect.
    standard_error : float or None
        Of the metric, where the evaluator can tell.
    part_margin : float or None
        The margin on a part of the batches, where the trial was raced.
    margin_error : float or None
        Of a trial that was stopped on a part: the standard deviation of `margin`, which is estimated then, as is
        `metric`. Such a trial is never satisfied.
    batches : int or None
        How many batches were scored for it in all.
    """

    number: int
    state: Literal["complete", "failed", "running", "waiting"]
    ratio: float | None = None
    metric: float | None = None
    satisfied: bool | None = None
    margin: float | None = None
    size_bytes: int | None = None
    points: Mapping[str, int] = field(default_factory=dict)
    origin: str = "sampler"
    started: str = ""
    duration_s: float | None = None
    error: str = ""
    worker: str = ""
    predicted: float | None = None
    standard_error: float | None = None
    part_margin: float | None = None
    margin_error: float | None = None
    batches: int | None = None

    @property
    def is_partial(self) -> bool:
        """Whether the trial was stopped on a part of the batches because its failure was clear."""
        return self.margin_error is not None

    @property
    def summary(self) -> str:
        """What came of the trial, in one line."""
        if self.state != "complete":
            return self.error
        estimated = ", estimated on a part of the batches" if self.is_partial else ""
        alone = ", verdict alone: is_satisfied shows no single edge" if abs(self.margin or 0.0) == 1.0 else ""
        return f"ratio {self.ratio:.2f}, metric {self.metric:g}{estimated}{alone}"


@dataclass(frozen=True)
class Confirmation:
    """What another evaluator, or the same on other data, says of the winner; the search never saw it.

    Attributes
    ----------
    evaluator : str
        Its name and number of batches.
    trial : int
        The winner that was scored.
    original_metric, metric : float or None
        Of the original network and of the winner; None where `error` says why not.
    satisfied : bool or None
        The verdict of the confirming evaluator.
    original_standard_error, standard_error : float or None
        Of both metrics, where the evaluator can tell.
    error : str
        Why it could not be had; empty otherwise.
    """

    evaluator: str
    trial: int
    original_metric: float | None = None
    metric: float | None = None
    satisfied: bool | None = None
    original_standard_error: float | None = None
    standard_error: float | None = None
    error: str = ""

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        if self.metric is None:
            return f"trial {self.trial} could not be confirmed: {self.error}"
        before = format_metric(self.original_metric, self.original_standard_error)
        after = format_metric(self.metric, self.standard_error)
        verdict = "satisfied" if self.satisfied else "not satisfied"
        return f"trial {self.trial} by {self.evaluator}: metric {before} -> {after}, {verdict}"


@dataclass(frozen=True)
class StudyRecord:
    """A study at one moment.

    Attributes
    ----------
    name, codec : str
    original_metric : float or None
        Metric of the float32 network; None before it was scored.
    layers : tuple of LayerRecord
        Every layer with weights, in network order.
    trials : tuple of TrialRecord
        By number.
    target_trials : int
        How many trials the study shall have in all.
    provenance : mapping of str to str
        What is needed to repeat it: versions, seed, hashes, files.
    confirmation : Confirmation or None
        Of the best trial at the end of the last run, where the study has it.
    original_standard_error : float or None
        Of the original metric, where the evaluator can tell.
    stopped : str
        Why the study ended before it had all its trials; empty otherwise.
    """

    name: str
    codec: str
    original_metric: float | None
    layers: tuple[LayerRecord, ...]
    trials: tuple[TrialRecord, ...]
    target_trials: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    confirmation: Confirmation | None = None
    original_standard_error: float | None = None
    stopped: str = ""

    @property
    def original_bytes(self) -> int:
        """Float32 bytes of all layers' weights."""
        return sum(layer.original_bytes for layer in self.layers)

    @property
    def best(self) -> TrialRecord | None:
        """Satisfied trial with the largest ratio; the earlier one of equals; None if there is none."""
        satisfied = [trial for trial in self.trials if trial.state == "complete" and trial.satisfied]
        return max(satisfied, key=lambda trial: (trial.ratio or 0.0, -trial.number), default=None)

    @property
    def limit(self) -> float | None:
        """The metric at which the constraint turns, out of the trial nearest to it; None if no margin tells.

        A margin is log(drop / allowed drop), so original + (metric - original) / exp(margin) is the limit. Margins of
        -1, 0 and 1, which stand for the verdict alone, and clipped ones tell nothing.
        """
        if self.original_metric is None:
            return None
        telling = [
            (abs(trial.margin), trial.margin, trial.metric)
            for trial in self.trials
            if trial.metric is not None
            and trial.margin is not None
            and not trial.is_partial
            and trial.metric != self.original_metric
            and 0 < abs(trial.margin) < MARGIN_LIMIT
            and abs(trial.margin) != 1
        ]
        if not telling:
            return None
        _, margin, metric = min(telling)
        return self.original_metric + (metric - self.original_metric) * math.exp(-margin)

    def layer_bytes(self, trial: TrialRecord) -> dict[str, int]:
        """Compressed bytes of every layer's weights under a trial's plan."""
        return {layer.name: layer.rates_bytes[trial.points.get(layer.name, 0)] for layer in self.layers}

    def layer_levels(self, trial: TrialRecord) -> dict[str, int]:
        """Levels of every quantized layer under a trial's plan."""
        return {
            layer.name: layer.curve_levels[trial.points.get(layer.name, 0)]
            for layer in self.layers
            if layer.treatment != "float"
        }


def format_metric(metric: float | None, standard_error: float | None = None) -> str:
    """Write a metric, with its standard error where that is known."""
    if metric is None:
        return "-"
    return f"{metric:g}" if standard_error is None else f"{metric:g} ± {standard_error:.2g}"
