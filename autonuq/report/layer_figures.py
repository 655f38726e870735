"""Figures whose marks are layers: what each became, its curve, its codebook, and what it decides.

A figure with a row per layer grows with the layers, and has its axes above, where a long figure is read from.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import optuna
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autonuq.records import RATIO_PREFIX
from autonuq.report.data import CodebooksData, CurvesData, Floats, HurtData, Integers, LayerCurve, LayersData
from autonuq.report.optimization import FEWEST_TRIALS, ContourData, ImportanceData, metric_of
from autonuq.report.style import (
    BEST_MARKER,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    LONGEST_LABEL,
    ORANGE,
    PALE_BLUE,
    RATIO_TICKS,
    ROW_PX,
    SATISFIED_MARKER,
    TEMPLATE,
    TITLE_PX,
    UNSATISFIED_MARKER,
    VERMILLION,
    axis_labels,
    blank_figure,
    format_bytes,
    nullable,
    plotly_text,
    positive,
    segments,
    show_sentence,
)

SYMBOLS = {"nuq": "circle", "uniform": "diamond", "float": "square"}
TREATMENT_COLOURS = {"nuq": BLUE, "uniform": ORANGE, "float": GREY}
TREATMENT_NAMES = {"nuq": "codebook (NUQ)", "uniform": "uniform int8", "float": "float32, left alone"}

FEW_LAYERS = 12  # up to here, curves share their axes and rows of histograms are tall
ROOM_BEHIND = 1.5  # of an axis, for the numbers behind the longest bar
HISTOGRAM_HEIGHT = 0.85  # of a row

ROW_HOVER = (
    "<b>%{fullData.name}</b><br>%{customdata[0]} levels<br>%{customdata[1]:,} bytes, %{x:.3f} bits per weight"
    "<br>distortion 10^%{marker.color:.2f}<extra></extra>"
)
CURVES_TITLE = "Rate-distortion curves"
DISTORTION = "distortion (share of the layer's output energy)"

PANELS = ("%{x:,} bytes", "%{x:.2f}% of the network's bytes", "%{x:.3f} bits per weight", "%{x} levels")
"""What the hover boxes of the columns of the layer figure say."""

NO_SATISFIED_TRIAL = "no trial satisfied the constraint yet"
IMPORTANCE_TITLE = "Importance for the metric: which layers' ratios decide whether it drops"
NO_PARTS = "no trial tells which layers hurt yet"
NO_CURVE = "no layer has been searched"
NO_HISTOGRAM = "no histograms were recorded"
TOO_FEW_TRIALS = f"no importances with fewer than {FEWEST_TRIALS} finished trials"
NO_PAIR = f"no contour without two searched layers and {FEWEST_TRIALS} finished trials"


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
        rows=1,
        cols=4,
        shared_yaxes=True,
        column_widths=[0.34, 0.24, 0.2, 0.22],
        horizontal_spacing=0.045,
    )
    subject = "" if data.trial is None else f" (trial {data.trial})"
    figure.update_layout(template=TEMPLATE, title_text=f"Layers under the best plan{subject}")
    if data.trial is None:
        return show_sentence(figure, NO_SATISFIED_TRIAL)
    hover = _layer_hover(data)
    names = [f"<b>{plotly_text(name)}</b>" for name in data.names]
    _add_before(figure, data.original_bytes, data.compressed_bytes, names, column=1)
    _add_before(figure, 100 * data.original_shares, 100 * data.compressed_shares, names, column=2)
    for treatment in TREATMENT_NAMES:
        rows_of = np.flatnonzero(np.array(data.treatments) == treatment)
        if len(rows_of):
            texts = [[labels[row] for row in rows_of] for labels in (hover, names)]
            _add_treatment(figure, data, treatment, rows_of, *texts)
    _frame_layers(figure, axis_labels(data.names))
    return figure


def _add_before(figure: go.Figure, before: Floats, after: Floats, names: list[str], *, column: int) -> None:
    """Mark every layer's value as float32, and draw a line from there to its value after."""
    rows = np.arange(len(before))
    figure.add_scatter(
        x=segments(before, after),
        y=segments(rows, rows),
        mode="lines",
        line={"color": GREY, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=column,
    )
    figure.add_scatter(
        x=before.tolist(),
        y=rows.tolist(),
        name="as float32",
        legendgroup="as float32",
        showlegend=column == 1,
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 11, "color": GREY, "line": {"width": 2.5}},
        hovertext=names,
        hovertemplate=f"%{{hovertext}}<br>{PANELS[column - 1]} as float32<extra></extra>",
        row=1,
        col=column,
    )


def _add_treatment(
    figure: go.Figure, data: LayersData, treatment: str, rows: Integers, hover: list[str], names: list[str]
) -> None:
    """Mark bytes, share, bits per weight, and levels if there are any, of the layers that share a treatment."""
    panels = (data.compressed_bytes, 100 * data.compressed_shares, data.bits_per_weight, data.levels)
    for column, values in enumerate(panels, start=1):
        if column == 4 and treatment == "float":
            continue
        figure.add_scatter(
            x=values[rows].tolist(),
            y=rows.tolist(),
            name=TREATMENT_NAMES[treatment],
            legendgroup=treatment,
            showlegend=column == 1,
            mode="markers+text" if column == 4 else "markers",
            text=[f" {count:.0f}" for count in values[rows]] if column == 4 else None,
            textposition="middle right",
            textfont={"size": 12},
            marker={"symbol": SYMBOLS[treatment], "size": 10, "color": TREATMENT_COLOURS[treatment]},
            hovertext=hover if column == 1 else names,
            hovertemplate="%{hovertext}<extra></extra>"
            if column == 1
            else f"%{{hovertext}}<br>{PANELS[column - 1]}<extra></extra>",
            row=1,
            col=column,
        )


def _frame_layers(figure: go.Figure, labels: list[str]) -> None:
    """Give the layer figure a row per label and its four axes."""
    _frame_rows(figure, labels, legend_px=30)
    figure.update_xaxes(tickangle=0)
    powers = [10**exponent for exponent in range(1, 12, 2)]
    names = [format_bytes(power) for power in powers]
    figure.update_xaxes(type="log", tickvals=powers, ticktext=names, title_text="weights (bytes)", col=1)
    figure.update_xaxes(rangemode="tozero", ticksuffix="%", title_text="share of all bytes", col=2)
    bits = [0.25, 1, 4, 32]
    figure.update_xaxes(type="log", tickvals=bits, ticktext=list(map(str, bits)), title_text="bits per weight", col=3)
    room = [math.log10(1.6), math.log10(1400)]  # for the number to the right of 256
    figure.update_xaxes(type="log", tickvals=[4, 16, 64, 256], range=room, title_text="levels kept", col=4)


def _frame_rows(figure: go.Figure, labels: list[str], *, row_px: int = ROW_PX, legend_px: int = 0) -> None:
    """Give a figure a row per label, with its axes above."""
    rows_px = row_px * max(5, len(labels))
    axis_px, bottom_px = 62, 16
    top_px = TITLE_PX + legend_px + axis_px
    figure.update_layout(height=top_px + rows_px + bottom_px, margin={"t": top_px, "b": bottom_px})
    figure.update_layout(legend={"y": 1 + axis_px / rows_px})
    figure.update_yaxes(tickvals=list(range(len(labels))), range=[len(labels) - 0.4, -0.6])
    figure.update_yaxes(ticktext=labels, tickfont_size=12)
    figure.update_xaxes(side="top", title_standoff=6)


def hurt_figure(data: HurtData) -> go.Figure:
    """Draw what each layer contributes to the loss, and beside it its bytes, the layer that hurts most above.

    Parameters
    ----------
    data : HurtData

    Returns
    -------
    plotly.graph_objects.Figure
        A bar's line reaches one standard deviation of what is not known to both sides. Rows that are not one layer's
        have numbers only: many layers together would make each one's bar invisible.
    """
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, column_widths=[0.5, 0.5], horizontal_spacing=0.05)
    figure.update_layout(template=TEMPLATE, title_text=_hurt_title(data))
    if data.trial is None:
        return show_sentence(figure, NO_PARTS)
    names = [f"<b>{plotly_text(name)}</b>" for name in data.names]
    unit = data.unit if data.unit == "%" else f" {plotly_text(data.unit)}".rstrip()
    shares = [f"{share:.1%}" for share in data.loss_shares]
    losses = [f"{loss:.2g}" for loss in data.losses]
    hover = [
        f"{name}<br>{loss}{unit} lost, {share} of the loss"
        for name, loss, share in zip(names, losses, shares, strict=True)
    ]
    numbers = (
        shares if data.total is None else [f"{loss} ({share})" for loss, share in zip(losses, shares, strict=True)]
    )
    _add_parts(figure, data, data.losses, numbers, hover, column=1)
    sizes = [
        f"{format_bytes(size)} ({share:.1%})" for size, share in zip(data.size_bytes, data.byte_shares, strict=True)
    ]
    hover = [f"{name}<br>{size:,.0f} bytes" for name, size in zip(names, data.size_bytes, strict=True)]
    _add_parts(figure, data, 100 * data.byte_shares, sizes, hover, column=2)
    _frame_rows(figure, axis_labels(data.names))
    figure.update_yaxes(ticklabelstandoff=6)
    measure = "share of the loss (%)" if data.unit == "%" else f"loss ({plotly_text(data.unit) or 'of the metric'})"
    figure.update_xaxes(title_text=measure, col=1)
    figure.update_xaxes(title_text="share of the compressed bytes", ticksuffix="%", col=2)
    return figure


def _hurt_title(data: HurtData) -> str:
    if data.trial is None:
        return "Which layers hurt"
    plan = "best plan" if data.is_best else "plan nearest to the limit"
    return f"Which layers hurt under the {plan} (trial {data.trial})"


def _add_parts(
    figure: go.Figure, data: HurtData, values: Floats, numbers: list[str], hover: list[str], *, column: int
) -> None:
    """Draw a bar for each layer, and behind it, or in its place, the number of each row."""
    rows, count, place = list(range(len(values))), data.layers, {"row": 1, "col": column}
    ends = np.concatenate([values[:count], np.zeros(len(values) - count)])
    bar: dict[str, object] = {"marker_color": BLUE}
    if column == 1:
        above, below = nullable(data.high[:count] - values[:count]), nullable(values[:count] - data.low[:count])
        spread = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        bar = {"marker_color": VERMILLION, "error_x": {**spread, "color": GREY, "thickness": 1.5, "width": 3}}
        ends[:count] = np.fmax(values[:count], data.high[:count])
    figure.add_bar(
        x=values[:count].tolist(),
        y=rows[:count],
        orientation="h",
        hovertext=hover[:count],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        **bar,
        **place,
    )
    figure.add_scatter(
        x=ends.tolist(),
        y=rows,
        mode="text",
        text=[f" {number}" for number in numbers],
        textposition="middle right",
        textfont={"size": 12},
        cliponaxis=False,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        **place,
    )
    figure.update_xaxes(range=[0, ROOM_BEHIND * max(float(ends.max()), 1e-12)], col=column)


def curves_figure(data: CurvesData) -> go.Figure:
    """Draw the rate-distortion curve of each searched layer and mark the best trial's points.

    Parameters
    ----------
    data : CurvesData

    Returns
    -------
    plotly.graph_objects.Figure
        Up to `FEW_LAYERS` layers share one pair of axes, colour and dash together naming a layer; more have a row each,
        with the distortion as colour. Points of zero distortion have no place on a logarithmic scale.
    """
    if len(data.curves) > FEW_LAYERS:
        return _curve_rows_figure(data)
    figure = blank_figure(CURVES_TITLE, x="bits per weight", y=DISTORTION)
    if not data.curves:
        return show_sentence(figure, NO_CURVE)
    for index, curve in enumerate(data.curves):
        figure.add_scatter(
            x=curve.bits_per_weight.tolist(),
            y=positive(curve.distortions),
            name=plotly_text(curve.name, LONGEST_LABEL),
            mode="lines+markers",
            line={"color": COLOURS[index % 6], "dash": DASHES[index // 6 % 6], "width": 1.8},
            marker={"size": 5},
            customdata=_curve_hover(curve),
            hovertemplate="%{customdata}<extra></extra>",
        )
    _add_best_points(figure, data, [positive(curve.distortions) for curve in data.curves])
    legend = {"yref": "container", "y": 0, "yanchor": "bottom"}
    figure.update_layout(height=540, margin={"t": TITLE_PX + 12}, legend=legend)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, tickfont_size=11)
    return figure


def _curve_rows_figure(data: CurvesData) -> go.Figure:
    """Draw a curve as a row of marks at its rates, coloured by the logarithm of its distortions."""
    figure = blank_figure(CURVES_TITLE, x="bits per weight", y="")
    lowest, highest = math.inf, -math.inf
    for row, curve in enumerate(data.curves):
        logarithms = np.log10(np.where(curve.distortions > 0, curve.distortions, np.nan))
        lowest, highest = min(lowest, np.nanmin(logarithms)), max(highest, np.nanmax(logarithms))
        figure.add_scatter(  # arrays are written far shorter than lists
            x=curve.bits_per_weight.astype(np.float32),
            y=np.full(len(logarithms), row, dtype=np.int16),
            name=plotly_text(curve.name),
            mode="markers",
            marker={"symbol": "square", "size": 8, "color": logarithms.astype(np.float32), "coloraxis": "coloraxis"},
            customdata=np.stack([curve.levels, curve.rates_bytes], axis=1).astype(np.int32),
            hovertemplate=ROW_HOVER,
            showlegend=False,
        )
    exponents = range(math.floor(lowest), 1 + math.ceil(highest))
    bar = {
        "title": {"text": DISTORTION, "side": "right"},
        "tickvals": list(exponents),
        "ticktext": [f"10<sup>{exponent}</sup>" for exponent in exponents],
        "lenmode": "pixels",
        "len": 320,
        "y": 1,
        "yanchor": "top",
    }
    figure.update_layout(coloraxis={"colorscale": "Cividis", "colorbar": bar})
    _add_best_points(figure, data, [[float(row)] * len(curve.levels) for row, curve in enumerate(data.curves)])
    _frame_rows(figure, axis_labels([curve.name for curve in data.curves]), legend_px=30)
    figure.update_xaxes(rangemode="tozero")
    return figure


def _add_best_points(figure: go.Figure, data: CurvesData, heights: list[list[float | None]]) -> None:
    """Mark the chosen point of every curve; heights has the ordinate of each point."""
    chosen = [(row, curve, curve.chosen) for row, curve in enumerate(data.curves) if curve.chosen is not None]
    if not chosen:
        return
    figure.add_scatter(
        x=[float(curve.bits_per_weight[point]) for _, curve, point in chosen],
        y=[heights[row][point] for row, _, point in chosen],
        name=f"best trial ({data.trial})",
        mode="markers",
        marker=BEST_MARKER,
        customdata=[f"{_curve_hover(curve)[point]}<br>chosen by trial {data.trial}" for _, curve, point in chosen],
        hovertemplate="%{customdata}<extra></extra>",
    )


def codebooks_figure(data: CodebooksData) -> go.Figure:
    """Draw each layer's histogram of int8 codes, one row per layer, and the levels that the best trial keeps below it.

    Parameters
    ----------
    data : CodebooksData

    Returns
    -------
    plotly.graph_objects.Figure
        Heights are square roots of counts, each layer's largest count filling its row: tails stay visible.
    """
    subject = "" if data.trial is None else f", and the levels kept by trial {data.trial}"
    figure = blank_figure(f"Histograms of the int8 codes{subject}", x="int8 code", y="")
    if not data.layers:
        return show_sentence(figure, NO_HISTOGRAM)
    x, y = _outlines(data)
    figure.add_scatter(
        x=x.ravel(),
        y=y.ravel(),
        name="weights before (square root of the count)",
        mode="lines",
        fill="toself",
        fillcolor=PALE_BLUE,
        line={"color": BLUE, "width": 1, "shape": "hvh"},
        hoverinfo="skip",
    )
    if data.trial is not None:
        _add_levels(figure, data)
    few = len(data.layers) <= FEW_LAYERS
    _frame_rows(figure, axis_labels([layer.name for layer in data.layers]), row_px=80 if few else 30, legend_px=30)
    figure.update_yaxes(range=[len(data.layers) - 0.6, -1.1])
    figure.update_xaxes(range=[-131, 130], tickvals=[-128, -64, 0, 64, 127])
    return figure


def _outlines(data: CodebooksData) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Return closed polygons, shape (layers, 259), each with a gap behind it."""
    count = len(data.layers)
    x = np.tile(np.concatenate([[-128], np.arange(-128, 128), [127, 127]]), (count, 1)).astype(np.int16)
    y = np.tile(np.arange(count, dtype=np.float32)[:, None], (1, x.shape[1]))
    y[:, 1:-2] -= [HISTOGRAM_HEIGHT * np.sqrt(layer.counts / max(1, layer.counts.max())) for layer in data.layers]
    y[:, -1] = np.nan
    return x, y


def _add_levels(figure: go.Figure, data: CodebooksData) -> None:
    for row, layer in enumerate(data.layers):
        figure.add_scatter(
            x=layer.levels.astype(np.float32),
            y=np.full(len(layer.levels), row + 0.1, dtype=np.float32),
            name="levels kept",
            legendgroup="levels",
            showlegend=row == 0,
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 7, "color": VERMILLION, "line": {"width": 2}},
            hovertemplate=f"<b>{plotly_text(layer.name)}</b><br>level %{{x:.4g}} of {len(layer.levels)}<extra></extra>",
        )


def importance_figure(data: ImportanceData) -> go.Figure:
    """Draw how much each layer's ratio decides whether the metric drops, the most important above.

    Parameters
    ----------
    data : ImportanceData

    Returns
    -------
    plotly.graph_objects.Figure
    """
    figure = blank_figure(IMPORTANCE_TITLE, x="share of the importance for the metric", y="")
    if not data.names:
        return show_sentence(figure, TOO_FEW_TRIALS)
    shares = [100 * share for share in data.importances.tolist()]
    figure.add_bar(
        x=shares,
        y=list(range(len(shares))),
        orientation="h",
        marker_color=BLUE,
        text=[f" {share:.1f}%" for share in shares],
        textposition="outside",
        cliponaxis=False,
        hovertext=[f"<b>{plotly_text(name)}</b>: {share:.2f}%" for name, share in zip(data.names, shares, strict=True)],
        hovertemplate=f"%{{hovertext}} by PED-ANOVA over {data.trials} trials<extra></extra>",
        showlegend=False,
    )
    _frame_rows(figure, axis_labels(data.names))
    figure.update_xaxes(ticksuffix="%", range=[0, 1.15 * max(shares)])
    return figure


def contour_figure(data: ContourData) -> go.Figure:
    """Draw Optuna's contour of the metric over the ratios of the two most important layers.

    Parameters
    ----------
    data : ContourData

    Returns
    -------
    plotly.graph_objects.Figure
    """
    title = "Metric over the ratios of the two layers that decide it most"
    if not data.names:
        return show_sentence(blank_figure(title, x="", y=""), NO_PAIR)
    parameters = [RATIO_PREFIX + name for name in data.names]
    figure = optuna.visualization.plot_contour(data.study, params=parameters, target=metric_of, target_name="metric")
    across, up = (plotly_text(name.removeprefix(RATIO_PREFIX), LONGEST_LABEL) for name in sorted(parameters))
    figure.update_layout(template=TEMPLATE, title_text=title)
    figure.update_xaxes(title_text=f"{across}: compression ratio (×)", tickvals=RATIO_TICKS)
    figure.update_yaxes(title_text=f"{up}: compression ratio (×)", tickvals=RATIO_TICKS)
    contour, satisfied, unsatisfied = figure.data
    contour.update(colorscale="Cividis", reversescale=False, opacity=0.85)
    outline = {"line_width": 1, "line_color": "#ffffff"}
    satisfied.update(name="satisfied", showlegend=True, marker=SATISFIED_MARKER | outline)
    unsatisfied.update(name="not satisfied", showlegend=True, marker=UNSATISFIED_MARKER)
    return figure


def _layer_hover(data: LayersData) -> list[str]:
    return [
        f"<b>{plotly_text(name)}</b> ({plotly_text(kind)}), {TREATMENT_NAMES[treatment]}"
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
        f"<b>{plotly_text(curve.name)}</b><br>{levels} levels<br>{rate:,} bytes, {bits:.3f} bits per weight"
        f"<br>distortion {distortion:.4g}"
        for levels, rate, bits, distortion in zip(
            curve.levels, curve.rates_bytes, curve.bits_per_weight, curve.distortions, strict=True
        )
    ]
