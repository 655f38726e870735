"""The table of a network's layers: it fits the terminal, however long names and reasons are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from autonuq.cli.console import out, show
from autonuq.compress.chip import ChipView
from autonuq.graph.capability import Capability
from autonuq.graph.model import Graph
from autonuq.visible import visible

_NARROWEST, _READABLE = 8, 15  # characters that are left of a name: at least, and with all columns
_FLOAT = 4  # bytes
_VARIABLE = re.compile(r"'[^']*'|\d+(?:[.x]\d+)*")  # in a reason: a layer's name, or a number


def float_bytes(graph: Graph, layers: Iterable[Capability]) -> dict[str, int]:
    """Return what each layer's weights take as float32.

    Those of layers that cannot be quantized count, too, if they are matrices, as those of an LSTM or an Embed; vectors,
    such as biases and what normalizes channels, do not.
    """
    sizes = {layer.name: _FLOAT * layer.weights for layer in layers}
    for layer in graph.layers:
        if not sizes[layer.name]:
            matrices = [blob for blob in layer.blobs if sum(side > 1 for side in blob.shape) > 1]
            sizes[layer.name] = sum(_FLOAT * math.prod(blob.shape) for blob in matrices)
    return sizes


def show_layers(
    layers: Sequence[Capability], sizes: Mapping[str, int], views: Mapping[str, ChipView], chip: str | None
) -> None:
    """Print the table, and below it the reasons that its last column numbers.

    Parameters
    ----------
    layers : sequence of Capability
        In the order in which they are shown.
    sizes : mapping of str to int
        Bytes as float32, by layer.
    views : mapping of str to ChipView
        By layer, where there is a chip.
    chip : str or None
    """
    reasons = Reasons()
    heads = ["type", "shape", "bytes", "can be", *(("mark", "kept") if chip else ()), "why"]
    names = [visible(layer.name) for layer in layers]
    rows = [_cells(layer, sizes[layer.name], views.get(layer.name), chip, reasons) for layer in layers]
    columns, gap, room = _fitted([list(column) for column in zip(heads, *rows, strict=True)], names)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True)
    for head, *_ in columns:
        table.add_column(head, no_wrap=True, justify="right" if head in ("bytes", "kept", "why") else "left")
    for name, *row in zip(names, *(cells for _, *cells in columns), strict=True):
        table.add_row(Text(shortened(name, room)), *map(Text, row))
    show(table)
    show_reasons(reasons.said())


def _fitted(columns: list[list[str]], names: Sequence[str]) -> tuple[list[list[str]], int, int]:
    """Return the columns that leave room for the names, the gap between them, and that room; the shape tells the type.

    Nothing that is a number is ever cut: where there is no room, the terminal breaks the lines.
    """
    wanted = min(_READABLE, max(map(cell_len, [*names, "layer"])))
    for shown, gap in ((columns, 2), (columns, 1), (columns[1:], 1)):
        room = out.width - sum(gap + max(map(len, column)) for column in shown)
        if room >= wanted:
            break
    return shown, gap, max(room, _NARROWEST)


def shortened(name: str, room: int) -> str:
    """Return a name with its middle left out where it is wider than so many places of a terminal.

    Examples
    --------
    >>> shortened("fire9/expand3x3", 12)
    'fire9..nd3x3'
    """
    kept = len(name)
    while cell_len(name) > room and kept > 2:
        kept -= 1
        end = kept // 2
        short = f"{name[: kept - end]}..{name[len(name) - end :]}"
        if cell_len(short) <= room:
            return short
    return name


def _cells(layer: Capability, size: int, view: ChipView | None, chip: str | None, reasons: Reasons) -> list[str]:
    can_be = "codebook" if layer.nuq else "int8" if layer.quantizable else "float" if size else ""
    why = [reasons.number(layer.reason)] if layer.reason else []
    seen: list[str] = []
    if view is not None:
        kept = "yes" if view.judgement.is_kept else "no"
        seen = ["yes" if view.mark.is_marked else "no", f"{kept} {view.judgement.ratio:.2f}"]
        why.append(reasons.number(f"{'marked' if view.mark.is_marked else 'not marked'}: {view.mark.reason}"))
    elif chip is not None:
        seen = ["", ""]
    shape = "x".join(map(str, layer.shape))
    return [layer.type, shape, f"{size:,}" if size else "", can_be, *seen, ",".join(why)]


class Reasons:
    """Reasons in words; those that differ in numbers and names only are one."""

    def __init__(self) -> None:
        self._found: dict[str, list[list[str]]] = {}

    def number(self, reason: str) -> str:
        """Take in a layer's reason, and return its number."""
        key = _VARIABLE.sub("\0", reason)
        self._found.setdefault(key, []).append(_VARIABLE.findall(reason))
        return str(list(self._found).index(key) + 1)

    def said(self) -> list[tuple[str, int]]:
        """Return each reason and of how many layers it is one."""
        return [(_filled(key, found), len(found)) for key, found in self._found.items()]


def _filled(key: str, found: Sequence[Sequence[str]]) -> str:
    """Put names and numbers back into a reason."""
    words = key.split("\0")
    columns = zip(zip(*found, strict=True), words[1:], strict=True)
    return words[0] + "".join(_together(own) + behind for own, behind in columns)


def _together(variants: Sequence[str]) -> str:
    """Say what stands at one place of a reason: the range of numbers, or the first name where there are several.

    Examples
    --------
    >>> _together(["2x2", "5x5", "3x3"]), _together(["'conv1'", "'conv2'"])
    ('2x2 to 5x5', "'conv1' or another")
    """
    every = list(dict.fromkeys(variants))
    if len(every) == 1:
        return every[0]
    if any(one.startswith("'") or one.count(".") > 1 for one in every):
        return f"{every[0]} or another"
    ranked = sorted(every, key=lambda one: [float(part) for part in one.split("x")])
    return f"{ranked[0]} to {ranked[-1]}"


def show_reasons(said: Iterable[tuple[str, int]]) -> None:
    """Print reasons below each other, each with its number and of how many layers it is one."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, (reason, layers) in enumerate(said, 1):
        table.add_row(str(number), Text(f"{reason} ({layers} layer{'s' * (layers != 1)})"))
    if table.row_count:
        out.print()
        show(table)
