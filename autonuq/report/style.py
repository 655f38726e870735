"""What all figures share: colours, the template, words, and small pieces of plotly.

Colours are those of Okabe & Ito, *Color Universal Design* (2008), without the yellow and the black, which vanish on
white and on dark paper; symbols or dashes repeat what a colour says. Names that users chose are escaped, because
plotly reads its texts as HTML.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from autonuq.report.data import Floats, Integers
from autonuq.visible import visible

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
PALE_BLUE = "rgba(0, 114, 178, 0.4)"  # of areas, on any paper
GREY = "#808080"  # legible on white and on near-black
SATISFIED_MARKER = {"symbol": "circle", "size": 9, "color": BLUE}
UNSATISFIED_MARKER = {"symbol": "x-thin-open", "size": 8, "color": VERMILLION, "line_width": 2}
BEST_MARKER = {"symbol": "star", "size": 13, "color": VERMILLION, "line": {"color": "#ffffff", "width": 1}}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

RATIO_TICKS = [step * 10**power for power in range(5) for step in (1, 2, 5)]
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
        "yaxis": {"gridcolor": "#e3e6ea", "zeroline": False, "automargin": True, "title": {"standoff": 14}},
    }
)


def format_bytes(size_bytes: float) -> str:
    """Write a size with three digits and an SI unit: 1723000 -> '1.72 MB'."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= divisor:
            return f"{size_bytes / divisor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def blank_figure(title: str, *, x: str, y: str) -> go.Figure:
    """Make a figure with its title and its axes' titles."""
    return go.Figure(layout={"template": TEMPLATE, "title": {"text": title}, "xaxis_title": x, "yaxis_title": y})


def show_sentence(figure: go.Figure, sentence: str) -> go.Figure:
    """Put a sentence where the points would be."""
    place = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    figure.add_annotation(text=sentence, font={"size": 18}, **place)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=220, margin={"t": TITLE_PX, "b": 24})
    return figure


def plotly_text(text: str, longest: int | None = None) -> str:
    """Escape a user's string for plotly, cutting its middle if it is longer than `longest` characters.

    Not even in a template of plotly's does anything in it mean more than itself.
    """
    text = visible(text)
    if longest is not None and len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def axis_labels(names: Sequence[str]) -> list[str]:
    """Write layers' names as an axis takes them."""
    return [plotly_text(name, LONGEST_LABEL) for name in names]


def nullable(values: Floats) -> list[float | None]:
    """Turn what is not finite into gaps."""
    return [float(value) if np.isfinite(value) else None for value in values]


def positive(values: Floats) -> list[float | None]:
    """Turn what has no place on a logarithmic axis into gaps."""
    return nullable(np.where(values > 0, values, np.nan))


def segments(starts: Floats | Integers, ends: Floats | Integers) -> Sequence[float | None]:
    """Interleave start, end and a gap, so that one trace draws n separate lines."""
    return [value for start, end in zip(starts, ends, strict=True) for value in (float(start), float(end), None)]
