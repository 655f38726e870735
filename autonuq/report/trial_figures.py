"""Figures whose marks are trials: history, front, measured against predicted, timeline of the workers."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from autonuq.report.data import Flags, Floats, FrontData, HistoryData, Integers, PredictedData, TimelineData
from autonuq.report.style import (
    BEST_MARKER,
    BLUE,
    GREY,
    PURPLE,
    RATIO_TICKS,
    ROW_PX,
    SATISFIED_MARKER,
    TITLE_PX,
    UNSATISFIED_MARKER,
    VERMILLION,
    blank_figure,
    nullable,
    plotly_text,
    show_sentence,
)

NO_TRIAL = "no finished trial yet"
NO_PREDICTION = "no trial with a prediction and a known limit yet"
NO_STARTED_TRIAL = "no trial was started yet"

OUTCOME_STYLES = {
    "satisfied": (BLUE, ""),
    "not satisfied": (VERMILLION, "/"),
    "failed": (PURPLE, "x"),
    "running": (GREY, "."),
}


def history_figure(data: HistoryData) -> go.Figure:
    """Draw the ratio of each trial, and the best satisfied one so far, against the trial number.

    Parameters
    ----------
    data : HistoryData

    Returns
    -------
    plotly.graph_objects.Figure
    """
    figure = blank_figure("Compression ratio by trial", x="trial number", y="compression ratio (×)")
    if not len(data.numbers):
        return show_sentence(figure, NO_TRIAL)
    if data.satisfied.any():
        figure.add_scatter(
            x=data.numbers.tolist(),
            y=nullable(data.best_ratios),
            name="best so far",
            mode="lines",
            line={"shape": "hv", "color": BLUE, "width": 2},
            hoverinfo="skip",
        )
    for trace in _verdict_traces(data.satisfied, data.numbers, data.ratios, _trial_hover(data)):
        figure.add_trace(trace)
    _add_winner(figure, data, data.numbers, data.ratios)
    if data.ratios_are_far_apart:
        figure.update_yaxes(type="log", tickvals=RATIO_TICKS)
    else:
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
    figure = blank_figure(
        "Metric against compression ratio", x="compression ratio (×)", y=f"metric ({direction} is better)"
    )
    if not len(history.numbers):
        return show_sentence(figure, NO_TRIAL)
    if len(data.front):
        figure.add_scatter(
            x=history.ratios[data.front].tolist(),
            y=history.metrics[data.front].tolist(),
            name="best trade-offs",
            mode="lines",
            line={"color": BLUE, "width": 2},
            hoverinfo="skip",
        )
    for trace in _verdict_traces(history.satisfied, history.ratios, history.metrics, _trial_hover(history)):
        figure.add_trace(trace)
    _add_winner(figure, history, history.ratios, history.metrics)
    if history.ratios_are_far_apart:
        figure.update_xaxes(type="log", tickvals=RATIO_TICKS)
    _add_metric_line(figure, data.original_metric, "original", GREY, "dash")
    _add_metric_line(figure, data.limit, "limit", VERMILLION, "dot", below=data.larger_is_better)
    return figure


def predicted_figure(data: PredictedData) -> go.Figure:
    """Draw the measured metric against the one that the sampler expected; perfect predictions lie on the line.

    Parameters
    ----------
    data : PredictedData

    Returns
    -------
    plotly.graph_objects.Figure
    """
    figure = blank_figure("Measured against predicted metric", x="predicted metric", y="measured metric")
    if not len(data.numbers):
        return show_sentence(figure, NO_PREDICTION)
    low, high = _span(np.concatenate([data.predicted, data.measured]))
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        name="as predicted",
        mode="lines",
        line={"color": GREY, "width": 1.5},
        hoverinfo="skip",
    )
    hover = [
        f"<b>trial {number}</b><br>predicted {predicted:.6g}, measured {measured:.6g}"
        for number, predicted, measured in zip(data.numbers, data.predicted, data.measured, strict=True)
    ]
    for trace in _verdict_traces(data.satisfied, data.predicted, data.measured, hover):
        figure.add_trace(trace)
    _add_metric_line(figure, data.limit, "limit", VERMILLION, "dot")
    figure.update_xaxes(range=_span(data.predicted))
    return figure


def _span(values: Floats) -> tuple[float, float]:
    margin = 0.04 * float(np.ptp(values)) or 1e-3
    return float(values.min()) - margin, float(values.max()) + margin


def timeline_figure(data: TimelineData) -> go.Figure:
    """Draw every trial as a bar in its worker's row, from its start to its end.

    Parameters
    ----------
    data : TimelineData

    Returns
    -------
    plotly.graph_objects.Figure
        A running trial's bar ends at the last thing known of the study.
    """
    figure = blank_figure("Timeline of the workers", x="time (UTC)", y="worker (host:process)")
    if not len(data.numbers):
        return show_sentence(figure, NO_STARTED_TRIAL)
    outcomes = np.array(data.outcomes)
    for outcome, (colour, pattern) in OUTCOME_STYLES.items():
        rows = np.flatnonzero(outcomes == outcome)
        if not len(rows):
            continue
        figure.add_bar(
            base=[data.starts[row].replace(tzinfo=None) for row in rows],
            x=nullable(1000 * data.durations_s[rows]),  # milliseconds, as plotly's time axis wants them
            y=[plotly_text(data.workers[row]) for row in rows],
            name=outcome,
            orientation="h",
            marker={
                "color": colour,
                "pattern": {"shape": pattern, "size": 5, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.7},
                "line": {"color": "#ffffff", "width": 1},
            },
            customdata=[
                f"<b>trial {data.numbers[row]}</b>, {outcome}<br>{data.starts[row]:%H:%M:%S}, "
                f"{data.durations_s[row]:.1f} s<br>{plotly_text(data.workers[row])}"
                for row in rows
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    workers = len(set(data.workers))
    figure.update_layout(barmode="overlay", bargap=0.25, height=TITLE_PX + 110 + max(3, workers) * 2 * ROW_PX)
    figure.update_xaxes(type="date")
    figure.update_yaxes(type="category", categoryorder="category descending")
    return figure


def _add_metric_line(
    figure: go.Figure, metric: float | None, name: str, colour: str, dash: str, *, below: bool = False
) -> None:
    """Draw a named horizontal line at a metric, if there is one."""
    if metric is None:
        return
    figure.add_hline(
        y=metric,
        line={"color": colour, "dash": dash, "width": 1.5},
        annotation={
            "text": f"{name} {metric:.6g}",
            "xanchor": "right",
            "yanchor": "top" if below else "bottom",
            "x": 1,
            "showarrow": False,
        },
    )


def _verdict_traces(satisfied: Flags, x: Floats | Integers, y: Floats, hover: list[str]) -> list[go.Scatter]:
    """Draw satisfied and unsatisfied trials apart, by colour and by symbol."""
    kinds = (
        ("satisfied", satisfied, SATISFIED_MARKER),
        ("not satisfied", ~satisfied, UNSATISFIED_MARKER),
    )
    return [
        go.Scatter(
            x=x[chosen].tolist(),
            y=nullable(y[chosen]),
            name=name,
            mode="markers",
            marker=marker,
            customdata=[hover[index] for index in np.flatnonzero(chosen)],
            hovertemplate="%{customdata}<extra></extra>",
        )
        for name, chosen, marker in kinds
        if chosen.any()
    ]


def _add_winner(figure: go.Figure, data: HistoryData, x: Floats | Integers, y: Floats) -> None:
    """Mark and name the trial that is exported, if there is one."""
    if data.best is None:
        return
    number = data.numbers[data.best]
    figure.add_scatter(
        x=x[data.best : data.best + 1].tolist(),
        y=nullable(y[data.best : data.best + 1]),
        name=f"best trial ({number})",
        mode="markers+text",
        marker=BEST_MARKER,
        text=[f"<b>trial {number}</b>"],
        textposition="top center",
        cliponaxis=False,
        customdata=[_trial_hover(data)[data.best] + "<br>the best trial: it is exported"],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _trial_hover(data: HistoryData) -> list[str]:
    rows = zip(data.numbers, data.ratios, data.metrics, data.sizes_bytes, data.satisfied, data.levels, strict=True)
    return [
        f"<b>trial {number}</b>, {'satisfied' if satisfied else 'not satisfied'}"
        f"<br>ratio {ratio:.3f}×, metric {metric:.6g}"
        + (f"<br>{size:,.0f} bytes" if np.isfinite(size) else "")
        + (f"<br>levels: {plotly_text(levels)}" if levels else "")
        for number, ratio, metric, size, satisfied, levels in rows
    ]
