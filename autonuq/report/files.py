"""Figures to files, each written whole or not at all.

PNG and SVG need something that executes plotly.js: kaleido, an extra, which drives an installed Chrome or Chromium.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import plotly.graph_objects as go
import plotly.io

from autonuq.atomic import replace_file
from autonuq.errors import RuntimeFailure

IMAGE_WIDTH_PX = 960
IMAGE_SCALE = 2  # pixels of a PNG per layout pixel: sharp in print and on dense screens
PACKAGE_REMEDY = "pip install 'autonuq[images]', and install Chrome or Chromium"
BROWSER_REMEDY = "install Chrome or Chromium, or name its program in BROWSER_PATH"


def write_figure(figure: go.Figure, path: str | Path) -> None:
    """Write a figure in the format that the path's suffix names.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
    path : str or Path
        Ends in ``.html`` (self-contained page), ``.json`` (plotly's own), ``.png`` or ``.svg``. Missing
        folders are made; an existing file is replaced.

    Raises
    ------
    ValueError
        If the suffix is another one.
    RuntimeFailure
        If no engine for images is installed, or it failed.

    Notes
    -----
    **Cost**: an image takes some seconds, most of it the start of the browser; HTML writes 5 MB.
    """
    path = Path(path)
    build_content = _FORMATS.get(path.suffix.lower())
    if build_content is None:
        raise ValueError(
            f"The 'path' parameter of write_figure must end in {', '.join(_FORMATS)}. Got '{path.name}' instead."
        )
    content = build_content(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [content])


def _build_html(figure: go.Figure) -> bytes:
    page: str = plotly.io.to_html(
        figure,
        include_plotlyjs=True,
        include_mathjax=False,
        config={"displaylogo": False, "responsive": True},
    )
    return page.encode()


def _build_json(figure: go.Figure) -> bytes:
    text: str = plotly.io.to_json(figure, pretty=True)
    return text.encode()


def _build_png(figure: go.Figure) -> bytes:
    return _build_image(figure, "png")


def _build_svg(figure: go.Figure) -> bytes:
    return _build_image(figure, "svg")


_FORMATS: Mapping[str, Callable[[go.Figure], bytes]] = MappingProxyType(
    {".html": _build_html, ".json": _build_json, ".png": _build_png, ".svg": _build_svg}
)


def can_draw_images() -> bool:
    """Say whether the extra for PNG and SVG is installed."""
    return importlib.util.find_spec("kaleido") is not None


def _build_image(figure: go.Figure, image_format: str) -> bytes:
    if not can_draw_images():
        raise RuntimeFailure(
            f"a .{image_format} file needs the package kaleido; {PACKAGE_REMEDY} (or write .html, which needs neither)"
        )
    try:
        image: bytes = plotly.io.to_image(figure, format=image_format, width=IMAGE_WIDTH_PX, scale=IMAGE_SCALE)
    except Exception as error:  # kaleido hands on whatever its browser driver raised
        reason = str(error).strip().splitlines() or [repr(error)]
        raise RuntimeFailure(f"kaleido could not draw the .{image_format} ({reason[0]}); {BROWSER_REMEDY}") from error
    return image
