"""The figures of a study: first plain data, then plotly.

Every kind is two steps. A ``..._data`` function turns a `StudyRecord` into a frozen dataclass of arrays,
where every number is decided and tested; a ``..._figure`` function only draws that. Trials that failed or
have not finished are no points. A study without a point gives a figure that says so.

Colours are those of Okabe & Ito, *Color Universal Design* (2008), without the yellow and the black, which
vanish on white and on dark paper; symbols or dashes repeat what a colour says. Names that users chose are
escaped, because plotly reads its texts as HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autonuq.records import LayerRecord, StudyRecord, TrialRecord

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
GREY = "#808080"  # legible on white and on near-black
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = {"nuq": "circle", "uniform": "diamond", "float": "square"}
TREATMENT_COLOURS = {"nuq": BLUE, "uniform": ORANGE, "float": GREY}
TREATMENT_NAMES = {"nuq": "codebook (NUQ)", "uniform": "uniform int8", "float": "float32, left alone"}

NO_TRIAL = "no finished trial yet"
NO_SATISFIED_TRIAL = "no trial satisfied the constraint yet"
NO_CURVE = "no layer has been searched"

LONGEST_LEVELS_TEXT = 8  # layers; a hover box with more is summarized
LONGEST_LABEL = 26  # characters of a layer's name on an axis
ROW_PX = 19
TITLE_PX = 44  # height of the title above everything else; a page with its own headings takes it off

TEMPLATE = go.layout.Template(
    layout={
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Lato, sans-serif",
            "size": 13,
            "color": "#24292f",
        },
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
        "title_pad": {"t": 18},
        "title_font": {"size": 17},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 64, "r": 24, "t": TITLE_PX + 40, "b": 60},
        "height": 460,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"color": "#24292f", "size": 13}},
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"gridcolor": "#e3e6ea", "zeroline": False, "automargin": True, "ticks": "outside"},
        "yaxis": {"gridcolor": "#e3e6ea", "zeroline": False, "automargin": True},
    }
)


def format_bytes(size_bytes: float) -> str:
    """Write a size with three digits and an SI unit: 1723000 -> '1.72 MB'."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= divisor:
            return f"{size_bytes / divisor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


# --- plain data ---


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
    """

    numbers: Integers
    ratios: Floats
    metrics: Floats
    sizes_bytes: Floats
    satisfied: Flags
    best_ratios: Floats
    levels: tuple[str, ...]


@dataclass(frozen=True)
class FrontData:
    """Ratio against metric of each finished trial.

    Attributes
    ----------
    history : HistoryData
        The trials, n of them.
    original_metric : float or None
    larger_is_better : bool
        Which way the metric improves; see `front_data`.
    front : ndarray of int64
        Indices of the non-dominated satisfied trials, by falling ratio.
    """

    history: HistoryData
    original_metric: float | None
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
    levels: Floats
    trial: int | None


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
    )


def front_data(record: StudyRecord) -> FrontData:
    """Set ratio against metric and find the satisfied trials that no other one beats in both.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    FrontData

    Notes
    -----
    A verdict does not tell which way a metric improves (accuracy up, loss down). What compression costs does:
    the metric is taken to improve upwards unless the unsatisfied trials (all, if none is unsatisfied) lie on
    average above the original.

    **Source**: own derivation.
    """
    history = history_data(record)
    known = np.isfinite(history.metrics)
    worse = known & ~history.satisfied
    worse = worse if worse.any() else known
    larger_is_better = (
        record.original_metric is None
        or not worse.any()
        or bool(history.metrics[worse].mean() <= record.original_metric)
    )
    candidates = np.flatnonzero(known & history.satisfied)
    quality = history.metrics if larger_is_better else -history.metrics
    # By falling ratio, the better metric first among equals: who beats every metric before it, stays.
    order = candidates[np.lexsort((-quality[candidates], -history.ratios[candidates]))]
    before = np.concatenate(([-np.inf], np.maximum.accumulate(quality[order])))[: len(order)]
    return FrontData(history, record.original_metric, larger_is_better, order[quality[order] > before])


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
    best = record.best
    sizes = record.layer_bytes(best) if best else {}
    levels = record.layer_levels(best) if best else {}
    original = _floats(layer.original_bytes for layer in record.layers)
    compressed = _floats(sizes.get(layer.name) for layer in record.layers)
    return LayersData(
        names=tuple(layer.name for layer in record.layers),
        types=tuple(layer.type for layer in record.layers),
        treatments=tuple(layer.treatment for layer in record.layers),
        original_bytes=original,
        compressed_bytes=compressed,
        original_shares=original / max(1.0, original.sum()),
        compressed_shares=compressed / max(1.0, compressed.sum()),
        levels=_floats(levels.get(layer.name) for layer in record.layers),
        trial=best.number if best else None,
    )


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


def _floats(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _levels_in_words(record: StudyRecord, trial: TrialRecord) -> str:
    """Name every layer's levels, or their range if the layers are many."""
    levels = {name: count for name, count in record.layer_levels(trial).items() if name in trial.points}
    if len(levels) <= LONGEST_LEVELS_TEXT:
        return ", ".join(f"{name} {count}" for name, count in levels.items())
    counts = list(levels.values())
    return f"{min(counts)} to {max(counts)}, median {np.median(counts):.0f}, over {len(counts)} layers"


# --- drawing ---


def history_figure(data: HistoryData) -> go.Figure:
    """Draw the ratio of each trial, and the best satisfied one so far, against the trial number.

    Parameters
    ----------
    data : HistoryData

    Returns
    -------
    plotly.graph_objects.Figure
    """
    figure = _blank_figure("Compression ratio by trial", x="trial number", y="compression ratio (×)")
    if not len(data.numbers):
        return _say(figure, NO_TRIAL)
    if data.satisfied.any():
        figure.add_scatter(
            x=data.numbers.tolist(),
            y=_nullable(data.best_ratios),
            name="best so far",
            mode="lines",
            line={"shape": "hv", "color": BLUE, "width": 2},
            hoverinfo="skip",
        )
    for trace in _verdict_traces(data, data.numbers, data.ratios):
        figure.add_trace(trace)
    figure.update_yaxes(rangemode="tozero")
    return figure


def front_figure(data: FrontData) -> go.Figure:
    """Draw metric against ratio, the original's metric, and the front of the satisfied trials.

    Parameters
    ----------
    data : FrontData

    Returns
    -------
    plotly.graph_objects.Figure
    """
    history = data.history
    direction = "larger" if data.larger_is_better else "smaller"
    figure = _blank_figure(
        "Metric against compression ratio", x="compression ratio (×)", y=f"metric ({direction} is better)"
    )
    if not len(history.numbers):
        return _say(figure, NO_TRIAL)
    if len(data.front):
        figure.add_scatter(
            x=history.ratios[data.front].tolist(),
            y=history.metrics[data.front].tolist(),
            name="best trade-offs",
            mode="lines",
            line={"color": BLUE, "width": 2},
            hoverinfo="skip",
        )
    for trace in _verdict_traces(history, history.ratios, history.metrics):
        figure.add_trace(trace)
    if data.original_metric is not None:
        figure.add_hline(
            y=data.original_metric,
            line={"color": GREY, "dash": "dash", "width": 1.5},
            annotation={
                "text": f"original {data.original_metric:.6g}",
                "xanchor": "right",
                "yanchor": "bottom",
                "x": 1,
                "showarrow": False,
            },
        )
    return figure


def layers_figure(data: LayersData) -> go.Figure:
    """Draw each layer's bytes before and after, and its levels, one row per layer.

    Parameters
    ----------
    data : LayersData

    Returns
    -------
    plotly.graph_objects.Figure
        Its height grows with the layers. The byte axis is logarithmic, so the line between a layer's two
        marks is as long as its ratio.
    """
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, column_widths=[0.66, 0.34], horizontal_spacing=0.03
    )
    subject = "" if data.trial is None else f" (trial {data.trial})"
    figure.update_layout(template=TEMPLATE, title_text=f"Layers under the best plan{subject}")
    if data.trial is None:
        return _say(figure, NO_SATISFIED_TRIAL)
    rows = np.arange(len(data.names))
    hover = _layer_hover(data)
    figure.add_scatter(
        x=_segments(data.original_bytes, data.compressed_bytes),
        y=_segments(rows, rows),
        mode="lines",
        line={"color": GREY, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=data.original_bytes.tolist(),
        y=rows.tolist(),
        name="as float32",
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 11, "color": GREY, "line": {"width": 2.5}},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
    )
    for treatment in TREATMENT_NAMES:
        rows_of = np.flatnonzero(np.array(data.treatments) == treatment)
        if len(rows_of):
            _add_treatment(figure, data, treatment, rows_of, [hover[row] for row in rows_of])
    _frame_layers(figure, [_plotly_text(name, LONGEST_LABEL) for name in data.names])
    return figure


def _add_treatment(
    figure: go.Figure, data: LayersData, treatment: str, rows: Integers, hover: list[str]
) -> None:
    """Mark the bytes, and the levels if there are any, of the layers that share a treatment."""
    common = {
        "y": rows.tolist(),
        "name": TREATMENT_NAMES[treatment],
        "legendgroup": treatment,
        "marker": {"symbol": SYMBOLS[treatment], "size": 10, "color": TREATMENT_COLOURS[treatment]},
        "hovertext": hover,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    figure.add_scatter(x=data.compressed_bytes[rows].tolist(), mode="markers", row=1, col=1, **common)
    if treatment == "float":
        return
    figure.add_scatter(
        x=data.levels[rows].tolist(),
        mode="markers+text",
        text=[f" {count:.0f}" for count in data.levels[rows]],
        textposition="middle right",
        textfont={"size": 12},
        showlegend=False,
        row=1,
        col=2,
        **common,
    )


def _frame_layers(figure: go.Figure, labels: list[str]) -> None:
    """Give the layer figure a row per label, and its axes above, where a long figure is read from."""
    rows_px = ROW_PX * max(5, len(labels))
    axis_px, legend_px, bottom_px = 62, 30, 16
    top_px = TITLE_PX + legend_px + axis_px
    figure.update_layout(height=top_px + rows_px + bottom_px, margin={"t": top_px, "b": bottom_px})
    figure.update_layout(legend={"y": 1 + axis_px / rows_px})
    rows = list(range(len(labels)))
    figure.update_yaxes(tickvals=rows, range=[len(labels) - 0.4, -0.6])
    figure.update_yaxes(ticktext=labels, tickfont_size=12, col=1)
    figure.update_xaxes(type="log", side="top", tickangle=0, title_standoff=6)
    powers = [10**exponent for exponent in range(12)]
    names = [format_bytes(power) for power in powers]
    figure.update_xaxes(tickvals=powers, ticktext=names, title_text="weights (bytes)", col=1)
    room = [math.log10(1.6), math.log10(900)]  # for the number to the right of 256
    figure.update_xaxes(tickvals=[4, 16, 64, 256], range=room, title_text="levels", col=2)


def curves_figure(data: CurvesData) -> go.Figure:
    """Draw the rate-distortion curve of each searched layer and mark the best trial's points.

    Parameters
    ----------
    data : CurvesData

    Returns
    -------
    plotly.graph_objects.Figure
        Colour and dash together name a layer (36 combinations); points of zero distortion have no place on
        the logarithmic axis.
    """
    figure = _blank_figure(
        "Rate-distortion curves", x="bits per weight", y="distortion (squared output error)"
    )
    if not data.curves:
        return _say(figure, NO_CURVE)
    colours = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
    crowded = len(data.curves) > 20
    for index, curve in enumerate(data.curves):
        figure.add_scatter(
            x=curve.bits_per_weight.tolist(),
            y=_positive(curve.distortions),
            name=_plotly_text(curve.name, LONGEST_LABEL),
            mode="lines+markers",
            line={
                "color": colours[index % 6],
                "dash": DASHES[index // 6 % 6],
                "width": 1 if crowded else 1.8,
            },
            marker={"size": 3 if crowded else 5},
            customdata=_curve_hover(curve),
            hovertemplate="%{customdata}<extra></extra>",
        )
    if data.trial is not None:
        _add_best_points(figure, data, crowded=crowded)
    # Below the plot and at most a quarter of the height: plotly scrolls what is longer.
    legend = {"yref": "container", "y": 0, "yanchor": "bottom", "maxheight": 0.25}
    figure.update_layout(height=540, margin={"t": TITLE_PX + 12}, legend=legend)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, tickfont_size=11)
    return figure


def _add_best_points(figure: go.Figure, data: CurvesData, *, crowded: bool) -> None:
    chosen = [(curve, curve.chosen) for curve in data.curves if curve.chosen is not None]
    figure.add_scatter(
        x=[float(curve.bits_per_weight[point]) for curve, point in chosen],
        y=[_positive(curve.distortions)[point] for curve, point in chosen],
        name=f"best trial ({data.trial})",
        mode="markers",
        marker={
            "symbol": "star",
            "size": 7 if crowded else 13,
            "color": GREY,
            "line": {"color": "#ffffff", "width": 0.5},
        },
        customdata=[
            _curve_hover(curve)[point] + f"<br>chosen by trial {data.trial}" for curve, point in chosen
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


FIGURES: Mapping[str, Callable[[StudyRecord], go.Figure]] = MappingProxyType(
    {
        "curves": lambda record: curves_figure(curves_data(record)),
        "front": lambda record: front_figure(front_data(record)),
        "history": lambda record: history_figure(history_data(record)),
        "layers": lambda record: layers_figure(layers_data(record)),
    }
)
"""Every kind of figure, sorted by name: what ``autonuq plot`` and the report page offer."""


def _blank_figure(title: str, *, x: str, y: str) -> go.Figure:
    return go.Figure(
        layout={"template": TEMPLATE, "title": {"text": title}, "xaxis_title": x, "yaxis_title": y}
    )


def _say(figure: go.Figure, sentence: str) -> go.Figure:
    """Put a sentence where the points would be."""
    place = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    figure.add_annotation(text=sentence, font={"size": 18}, **place)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=220, margin={"t": TITLE_PX, "b": 24})
    return figure


def _verdict_traces(data: HistoryData, x: Floats | Integers, y: Floats) -> list[go.Scatter]:
    """Draw satisfied and unsatisfied trials apart, by colour and by symbol."""
    hover = _trial_hover(data)
    kinds = (
        ("satisfied", data.satisfied, {"symbol": "circle", "size": 9, "color": BLUE}),
        (
            "not satisfied",
            ~data.satisfied,
            {"symbol": "x-thin-open", "size": 8, "color": VERMILLION, "line_width": 2},
        ),
    )
    return [
        go.Scatter(
            x=x[chosen].tolist(),
            y=_nullable(y[chosen]),
            name=name,
            mode="markers",
            marker=marker,
            customdata=[hover[index] for index in np.flatnonzero(chosen)],
            hovertemplate="%{customdata}<extra></extra>",
        )
        for name, chosen, marker in kinds
        if chosen.any()
    ]


def _trial_hover(data: HistoryData) -> list[str]:
    rows = zip(
        data.numbers, data.ratios, data.metrics, data.sizes_bytes, data.satisfied, data.levels, strict=True
    )
    return [
        f"<b>trial {number}</b>, {'satisfied' if satisfied else 'not satisfied'}"
        f"<br>ratio {ratio:.3f}×, metric {metric:.6g}"
        + (f"<br>{size:,.0f} bytes" if np.isfinite(size) else "")
        + (f"<br>levels: {_plotly_text(levels)}" if levels else "")
        for number, ratio, metric, size, satisfied, levels in rows
    ]


def _layer_hover(data: LayersData) -> list[str]:
    return [
        f"<b>{_plotly_text(name)}</b> ({_plotly_text(kind)}), {TREATMENT_NAMES[treatment]}"
        f"<br>{before:,.0f} → {after:,.0f} bytes, ratio {before / after if after else np.inf:.2f}×"
        f"<br>{100 * share_before:.1f}% of the network before, {100 * share_after:.1f}% after"
        + (f"<br>{levels:.0f} levels" if np.isfinite(levels) else "")
        for name, kind, treatment, before, after, share_before, share_after, levels in zip(
            data.names,
            data.types,
            data.treatments,
            data.original_bytes,
            data.compressed_bytes,
            data.original_shares,
            data.compressed_shares,
            data.levels,
            strict=True,
        )
    ]


def _curve_hover(curve: LayerCurve) -> list[str]:
    return [
        f"<b>{_plotly_text(curve.name)}</b><br>{levels} levels<br>{rate:,} bytes, {bits:.3f} bits per weight"
        f"<br>distortion {distortion:.4g}"
        for levels, rate, bits, distortion in zip(
            curve.levels, curve.rates_bytes, curve.bits_per_weight, curve.distortions, strict=True
        )
    ]


def _plotly_text(text: str, longest: int | None = None) -> str:
    """Escape a user's string for plotly, cutting its middle if it is longer than `longest` characters."""
    if longest is not None and len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return html.escape(text, quote=False)


def _nullable(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _positive(values: Floats) -> list[float | None]:
    return _nullable(np.where(values > 0, values, np.nan))


def _segments(starts: Floats | Integers, ends: Floats | Integers) -> Sequence[float | None]:
    """Interleave start, end and a gap, so that one trace draws n separate lines."""
    return [
        value for start, end in zip(starts, ends, strict=True) for value in (float(start), float(end), None)
    ]
