"""Figures to files, each written whole or not at all.

PNG and SVG need something that executes plotly.js. Kaleido 0.2.1 brings its own small browser in the wheel,
so ``pip install`` is all that a fresh or offline machine needs; plotly 7 no longer calls it, therefore this
module speaks its line protocol (one JSON request on stdin, one JSON answer on stdout) with the plotly.js of
the plotly that is installed. Kaleido 1 and later is used through plotly, and needs Chrome or Chromium.
"""

from __future__ import annotations

import base64
import importlib.resources
import importlib.util
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import plotly.graph_objects as go
import plotly.io

from autonuq.atomic import replace_file
from autonuq.errors import RuntimeFailure

IMAGE_WIDTH_PX = 960
IMAGE_SCALE = 2  # pixels of a PNG per layout pixel: sharp in print and on dense screens
IMAGE_TIMEOUTS_S = (20, 40, 80)
REMEDY = "install the engine with: pip install kaleido==0.2.1 (or write .html, which needs none)"


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
    **Cost**: an image takes under a second, most of it the start of the engine's browser; HTML writes 5 MB.
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


def _build_image(figure: go.Figure, image_format: str) -> bytes:
    if importlib.util.find_spec("kaleido") is None:
        raise RuntimeFailure(f"a .{image_format} file needs the package kaleido, which is not installed; {REMEDY}")
    if importlib.util.find_spec("kaleido.scopes") is not None:
        return _image_of_bundled_browser(figure, image_format)
    return _image_of_installed_browser(figure, image_format)


def _image_of_bundled_browser(figure: go.Figure, image_format: str) -> bytes:
    """Render with kaleido 0.2: ``kaleido plotly --plotlyjs=FILE``, greeting and answer are one line each."""
    scope = importlib.import_module("kaleido.scopes.plotly").PlotlyScope  # untyped, and not there in kaleido 1
    script = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    request = {
        "data": json.loads(plotly.io.to_json(figure)),
        "format": image_format,
        "width": IMAGE_WIDTH_PX,
        "height": figure.layout.height or figure.layout.template.layout.height or 500,
        "scale": IMAGE_SCALE,
    }
    command = [scope.executable_path(), "plotly", f"--plotlyjs={str(script)!r}", *scope.default_chromium_args()]
    try:
        answer = json.loads(_answer(command, json.dumps(request).encode() + b"\n"))
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"kaleido could not draw the .{image_format} ({error!r}); {REMEDY}") from error
    if answer.get("code", 0) != 0 or not answer.get("result"):
        raise RuntimeFailure(f"kaleido could not draw the .{image_format}: {answer.get('message')}; {REMEDY}")
    result: str = answer["result"]
    return result.encode() if image_format == "svg" else base64.b64decode(result)


def _answer(command: list[str], request: bytes) -> bytes:
    """Return the engine's answer to one request.

    On a busy machine kaleido 0.2 now and then hangs, before its answer or behind it: it is ended as soon as it has
    answered, and started again if it has not in time.
    """
    answer = b""
    for timeout_s in IMAGE_TIMEOUTS_S:
        answer = answer or _answer_in_time(command, request, timeout_s)
    return answer


def _answer_in_time(command: list[str], request: bytes, timeout_s: float) -> bytes:
    """Start the engine, ask, read greeting and answer, and end it; the answer is empty if there was none in time."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that the browser ends with its starter
    ) as engine:
        watchdog = threading.Timer(timeout_s, _end, [engine])
        watchdog.start()
        try:
            engine.stdin.write(request)  # type: ignore[union-attr]
            engine.stdin.flush()  # type: ignore[union-attr]
            engine.stdout.readline()  # type: ignore[union-attr]
            return engine.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            return b""
        finally:
            watchdog.cancel()
            _end(engine)


def _end(engine: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(engine.pid, signal.SIGKILL)


def _image_of_installed_browser(figure: go.Figure, image_format: str) -> bytes:
    """Render with kaleido 1, which looks for Chrome or Chromium on the machine."""
    try:
        image: bytes = plotly.io.to_image(figure, format=image_format, width=IMAGE_WIDTH_PX, scale=IMAGE_SCALE)
    except Exception as error:  # kaleido 1 hands on whatever its browser driver raised
        reason = str(error).strip().splitlines() or [repr(error)]
        raise RuntimeFailure(
            f"kaleido could not draw the .{image_format} ({reason[0]}); install Chrome or Chromium, or {REMEDY}"
        ) from error
    return image
