"""HTML for notebooks: what `_repr_html_` of studies and curves returns. What comes from outside is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from autonuq.visible import visible

PLOT_PX = (320, 120)
"""Width and height of a line plot."""


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a caption above it, that scrolls where it is long.

    Parameters
    ----------
    caption : str
        Lines.
    heads : sequence of str
    rows : iterable of sequences
        Cells are written by `str`.
    """
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    said = "<br>".join(map(_text, caption.splitlines()))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if heads else ""
    return f'<div>{said}</div><div style="max-height:30em;overflow:auto">{table}</div>'


def html_line(x: Sequence[float], y: Sequence[float], label: str) -> str:
    """Return a line plot as inline SVG, its axes running from the least to the largest value.

    Parameters
    ----------
    x, y : sequences of float
        Finite.
    label : str
        What is plotted, for those who hear rather than see it.
    """
    width, height = PLOT_PX
    places = [(_place(value, x), _place(other, y)) for value, other in zip(x, y, strict=True)]
    points = " ".join(f"{width * across:.1f},{height * (1 - up):.1f}" for across, up in places)
    return (
        f'<svg role="img" aria-label="{_text(label)}" width="{width}" height="{height}" '
        f'viewBox="-4 -4 {width + 8} {height + 8}"><title>{_text(label)}</title>'
        f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="2"/></svg>'
    )


def html_progress(name: str, done: int, total: int, words: str) -> str:
    """Return one line: a name, a bar, and words."""
    bar = f'<progress value="{done}" max="{max(1, total)}" style="width:10em;vertical-align:middle"></progress>'
    return f'<div style="white-space:pre-wrap">{_text(name)} {bar} {_text(words)}</div>'


def _place(value: float, values: Sequence[float]) -> float:
    """Return where a value lies between the least (0) and the largest (1)."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def _text(text: str) -> str:
    return html.escape(visible(text))
