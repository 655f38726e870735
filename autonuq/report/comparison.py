"""Several studies, or trials of one, side by side: what can be compared, in numbers and in one figure of fronts.

Losses are compared, not metrics: those of different networks begin elsewhere. Where metrics are not the same, what is
comparable is the share of the loss that each one's own limit allows. Layers are compared where they are those of one
network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from autonuq.headline import say_confirmed
from autonuq.records import Confirmation, StudyRecord, TrialRecord
from autonuq.report.data import Floats, FrontData, front_data
from autonuq.report.style import BEST_MARKER, COLOURS, DASHES, LONGEST_LABEL, blank_figure, plotly_text, show_sentence

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon")
NOTHING_COMMON = "no losses that can be compared"
SAME_METRIC = 1e-6  # relative; the original network's, scored twice


@dataclass(frozen=True)
class Compared:
    """One column: a study, and the trial of it that is looked at.

    Attributes
    ----------
    label : str
        What the column is called.
    record : StudyRecord
    trial : TrialRecord or None
        None where no trial is satisfied.
    """

    label: str
    record: StudyRecord
    trial: TrialRecord | None

    @property
    def is_best(self) -> bool:
        """Whether the trial is the one that the study exports."""
        best = self.record.best
        return best is not None and self.trial is not None and best.number == self.trial.number

    @property
    def loss(self) -> float | None:
        """What the trial lost on the data of the search, in the metric's unit."""
        return None if self.trial is None else self.record.loss(self.trial)

    @property
    def confirmed(self) -> str:
        """Whether the trial holds on data that the search never saw."""
        if self.trial is None:
            return ""
        return say_confirmed(self.record) if self.is_best else "no: only the best trial is"

    @property
    def elsewhere(self) -> Confirmation | None:
        """What the trial scored on data that the search never saw, where it did."""
        found = self.record.confirmation
        is_of_it = found is not None and self.trial is not None and found.trial == self.trial.number
        return found if is_of_it and found is not None and found.loss is not None else None

    @property
    def time_s(self) -> float:
        """How long the study's trials took together."""
        return sum(trial.duration_s or 0.0 for trial in self.record.trials)


@dataclass(frozen=True)
class LayerDifference:
    """One layer in every column.

    Attributes
    ----------
    layer : str
    levels, size_bytes : tuple of int or None
        Of each column; levels are None where the layer is float, both where there is no trial.
    """

    layer: str
    levels: tuple[int | None, ...]
    size_bytes: tuple[int | None, ...]

    @property
    def spread_bytes(self) -> int:
        """How far its largest size is from its smallest."""
        known = [size for size in self.size_bytes if size is not None]
        return max(known) - min(known) if known else 0


@dataclass(frozen=True)
class ComparisonData:
    """What can be compared.

    Attributes
    ----------
    columns : tuple of Compared
    reservations : tuple of str
        What cannot be compared, and why.
    layers : tuple of LayerDifference
        The largest difference in bytes first; none of different networks.
    ratios, losses : tuple of ndarray of float64, one of shape (n,) for each study
        Of its satisfied trials that no other one beats, by falling ratio; losses in `unit`.
    unit : str
        Of those losses; "% of the limit" where metrics are not the same.
    limits : tuple of float or None
        Of each study, in `unit`.
    chosen : tuple of (float, float) or None
        Ratio and loss of each column's trial.
    """

    columns: tuple[Compared, ...]
    reservations: tuple[str, ...]
    layers: tuple[LayerDifference, ...]
    ratios: tuple[Floats, ...]
    losses: tuple[Floats, ...]
    unit: str
    limits: tuple[float | None, ...]
    chosen: tuple[tuple[float, float] | None, ...]


def comparison_data(columns: Sequence[Compared]) -> ComparisonData:
    """Find what can be compared of several studies, or of trials.

    Parameters
    ----------
    columns : sequence of Compared
        Two or more.
    """
    records = [column.record for column in columns]
    reservations = []
    one_network = all(_network(record) == _network(records[0]) for record in records)
    if not one_network:
        reservations.append("of different networks: ratios and losses can be compared, layers cannot")
    one_metric = all(_is_same_metric(record, records[0]) for record in records)
    if not one_metric:
        what = "losses stand beside their own limits, and the figure shows them as shares of these"
        reservations.append(f"of different metrics or data: {what}")
    for column in columns:
        if column.record.warning:
            reservations.append(f"{column.record.name}: {column.record.warning}")
        if not one_metric and column.record.allowed is None:
            reservations.append(f"{column.record.name}: its limit is not known, so that the figure lacks it")
    scales = [_scale(record, one_metric) for record in records]
    fronts = [_front(front_data(record), record, scale) for record, scale in zip(records, scales, strict=True)]
    unit = records[0].unit.name if one_metric else "% of the limit"
    return ComparisonData(
        columns=tuple(columns),
        reservations=tuple(dict.fromkeys(reservations)),
        layers=_layer_differences(columns) if one_network else (),
        ratios=tuple(ratios for ratios, _ in fronts),
        losses=tuple(losses for _, losses in fronts),
        unit=unit,
        limits=tuple(
            None if record.allowed is None or scale is None else record.allowed * scale
            for record, scale in zip(records, scales, strict=True)
        ),
        chosen=tuple(_chosen(column, scale) for column, scale in zip(columns, scales, strict=True)),
    )


def _network(record: StudyRecord) -> tuple[object, ...]:
    """Return what tells networks apart: the digest of the weights and the layers, whatever codec they have."""
    layers = tuple((layer.name, layer.weights) for layer in record.layers)
    return record.provenance.get("sha256 weights", ""), layers


def _is_same_metric(one: StudyRecord, other: StudyRecord) -> bool:
    """Say whether losses of two studies mean the same: of one evaluator and, for one network, one original metric."""
    evaluators = {(record.provenance.get("evaluator", ""), record.meaning, record.unit) for record in (one, other)}
    if len(evaluators) > 1:
        return False
    if _network(one) != _network(other) or one.original_metric is None or other.original_metric is None:
        return one.samples == other.samples
    return bool(np.isclose(one.original_metric, other.original_metric, rtol=SAME_METRIC, atol=0.0))


def _scale(record: StudyRecord, one_metric: bool) -> float | None:
    """Return what losses are multiplied by to be compared; None where nothing makes them comparable."""
    if one_metric:
        return record.unit.factor
    return 100.0 / record.allowed if record.allowed else None


def _front(data: FrontData, record: StudyRecord, scale: float | None) -> tuple[Floats, Floats]:
    if scale is None or record.original_metric is None:
        return np.empty(0), np.empty(0)
    losses = (record.original_metric - data.history.metrics[data.front]) * (1 if data.larger_is_better else -1)
    return data.history.ratios[data.front], losses * scale


def _chosen(column: Compared, scale: float | None) -> tuple[float, float] | None:
    if column.trial is None or column.trial.ratio is None or column.loss is None or scale is None:
        return None
    return column.trial.ratio, column.loss * scale


def _layer_differences(columns: Sequence[Compared]) -> tuple[LayerDifference, ...]:
    rows = [column.record.layer_rows(column.trial) for column in columns]
    found = [
        LayerDifference(same[0].layer.name, tuple(row.levels for row in same), tuple(row.size_bytes for row in same))
        for same in zip(*rows, strict=True)
    ]
    return tuple(sorted(found, key=lambda layer: -layer.spread_bytes))


def comparison_figure(data: ComparisonData) -> go.Figure:
    """Draw the fronts of all studies, loss against ratio, and mark the trials that are compared.

    Parameters
    ----------
    data : ComparisonData

    Returns
    -------
    plotly.graph_objects.Figure
        Colour, dash and symbol together name a study; trials of one study share its front.
    """
    unit = data.unit or "of the metric"
    title = "Fronts of the studies" if len(_studies(data)) > 1 else "Trials of one study on its front"
    figure = blank_figure(title, x="compression ratio (×)", y=f"loss ({unit}; smaller is better)")
    if not any(map(len, data.ratios)) and not any(data.chosen):
        return show_sentence(figure, NOTHING_COMMON)
    studies = _studies(data)
    for place, (record, index) in enumerate(studies):
        name = record.name if len(studies) < len(data.columns) else data.columns[index].label
        _add_front(figure, data, index, place, plotly_text(name, LONGEST_LABEL))
    for index, column in enumerate(data.columns):
        place = next(place for place, (record, _) in enumerate(studies) if record is column.record)
        _add_chosen(figure, data, index, COLOURS[place % len(COLOURS)])
    limits = {round(limit, 9) for limit in data.limits if limit is not None}
    if len(limits) == 1:
        (limit,) = limits
        line = {"color": COLOURS[1], "dash": "dot", "width": 1.5}
        figure.add_hline(y=limit, line=line, annotation={"text": f"limit {limit:.4g}", "xanchor": "right", "x": 1})
    return figure


def _studies(data: ComparisonData) -> list[tuple[StudyRecord, int]]:
    """Return every study once, with its first column."""
    found: list[tuple[StudyRecord, int]] = []
    for index, column in enumerate(data.columns):
        if not any(record is column.record for record, _ in found):
            found.append((column.record, index))
    return found


def _add_front(figure: go.Figure, data: ComparisonData, index: int, place: int, name: str) -> None:
    figure.add_scatter(
        x=data.ratios[index].tolist(),
        y=data.losses[index].tolist(),
        name=name,
        mode="lines+markers",
        line={"color": COLOURS[place % len(COLOURS)], "dash": DASHES[place % len(DASHES)], "width": 2},
        marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
        hovertemplate=f"<b>{name}</b><br>ratio %{{x:.3f}}×, loss %{{y:.4g}}<extra></extra>",
    )


def _add_chosen(figure: go.Figure, data: ComparisonData, index: int, colour: str) -> None:
    """Mark and name the trial of one column."""
    place, column = data.chosen[index], data.columns[index]
    if place is None or column.trial is None:
        return
    label = plotly_text(f"{column.label}, trial {column.trial.number}", 2 * LONGEST_LABEL)
    figure.add_scatter(
        x=[place[0]],
        y=[place[1]],
        name=label,
        mode="markers+text",
        marker=BEST_MARKER | {"color": colour, "size": 15},
        text=[f"trial {column.trial.number}"],
        textposition="top center",
        hovertemplate=f"<b>{label}</b><br>ratio %{{x:.3f}}×, loss %{{y:.4g}}<extra></extra>",
        showlegend=False,
    )
