"""The commands that take a network, or a file with one, and no study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from autonuq.cli.console import (
    JsonOption,
    LevelOption,
    ModelArgument,
    OutputOption,
    StageOption,
    WeightsArgument,
    duration,
    err,
    out,
    say,
    show,
    shown,
    unknown,
)
from autonuq.compress.chip import ChipView, view_on_chip
from autonuq.compress.needs import StudyNeeds, study_needs
from autonuq.compress.outputs import unpack as write_unpacked
from autonuq.compress.packed_file import load_packed
from autonuq.graph.capability import Capability
from autonuq.graph.files import load_graph
from autonuq.graph.hosted.permission import is_refused, refusal
from autonuq.graph.model import Layer
from autonuq.graph.passes import capabilities
from autonuq.quant.atc.chips import DDR_RATES
from autonuq.quant.config import QuantizationConfig


def inspect(
    model: ModelArgument,
    weights: WeightsArgument,
    chip: Annotated[str | None, typer.Option(help=f"What ATC would do on: {', '.join(DDR_RATES)}.")] = None,
    level: LevelOption = 0,
    stage: StageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each layer what can be quantized and why not.

    Example: `autonuq inspect net.prototxt net.caffemodel --chip ascend310`
    """
    if chip is not None and chip not in DDR_RATES:
        raise unknown("--chip", chip, DDR_RATES)
    graph = load_graph(model, weights, level=level, stages=stage or ())
    found = capabilities(graph)
    views = {} if chip is None else view_on_chip(graph, chip)
    quantized = [layer.name for layer in found if layer.quantizable]
    searched = [layer.name for layer in found if layer.nuq]
    refused = [layer for layer in graph.layers if is_refused(layer)]
    needs = None if refused else study_needs(graph, quantized, searched, QuantizationConfig.batch_num)
    if as_json:
        rows = [_inspected(layer, views.get(layer.name)) for layer in found]
        document = {"layers": rows, "weights": sum(layer.weights for layer in found), "needs": _needed(needs)}
        typer.echo(json.dumps(document | ({"python_layers": list(map(_not_run, refused))} if refused else {})))
        return
    table = Table(title=f"{model}", title_justify="left")
    for column, justify in (("layer", "left"), ("type", "left"), ("shape", "left"), ("weights", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column in ("int8", "codebook", "why not", *((f"marked on {chip}", "int8 kept compressed") if chip else ())):
        table.add_column(column)
    for layer in found:
        shape = "x".join(map(str, layer.shape))
        marks = ["yes" if able else "-" for able in (layer.quantizable, layer.nuq)]
        count = f"{layer.weights:,}" if layer.weights else ""
        seen = _chip_cells(views.get(layer.name)) if chip else ()
        table.add_row(layer.name, layer.type, shape, count, *marks, layer.reason, *seen)
    show(table)
    out.print(f"{sum(layer.weights for layer in found):,} weights; {len(searched)} layers can carry a codebook")
    if needs is not None:
        say(f"a study takes {needs.say()}; its curves about {duration(needs.curves_s)} on one core")
    for one in refused:
        say(f"not run: {refusal(one, model)}; behind it shapes are those of the weights, and needs are not known")
    if chip:
        marked = [name for name, view in views.items() if view.mark.is_marked]
        say(f"ATC on {chip} would mark {len(marked)}: {', '.join(marked) or 'none'}")


def _inspected(layer: Capability, view: ChipView | None) -> dict[str, object]:
    """Describe one layer for --json."""
    row: dict[str, object] = {
        "name": layer.name,
        "type": layer.type,
        "weights": layer.weights,
        "shape": list(layer.shape),
        "quantizable": layer.quantizable,
        "nuq": layer.nuq,
        "reason": layer.reason,
    }
    if view is not None:
        row["marked"], row["mark_reason"] = view.mark.is_marked, view.mark.reason
        row["int8_kept"], row["int8_compressed_bytes"] = view.judgement.is_kept, view.judgement.compressed_bytes
        row["device_bytes"] = view.judgement.device_bytes
    return row


def _needed(needs: StudyNeeds | None) -> dict[str, float] | None:
    """Describe what a study takes for --json."""
    if needs is None:
        return None
    sizes = {"memory_bytes": round(needs.memory_bytes), "disk_bytes": round(needs.disk_bytes)}
    return {**sizes, "curves_s": needs.curves_s}


def _not_run(layer: Layer) -> dict[str, str]:
    """Describe a layer whose code was not run for --json."""
    parameters = layer.message.python_param
    return {"name": layer.name, "module": parameters.module, "class": parameters.layer}


def _chip_cells(view: ChipView | None) -> tuple[str, str]:
    if view is None:
        return "", ""
    kept = "yes" if view.judgement.is_kept else "no"
    return f"{'yes' if view.mark.is_marked else 'no'}: {view.mark.reason}", f"{kept}: {view.judgement.ratio:.2f}"


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE.nuq", show_default=False)],
    output: OutputOption,
) -> None:
    """Write the network of a packed file as a fake-quant pair, bit for bit the one that was scored.

    Which study and trial it is and what it lost is said too.

    Example: `autonuq unpack out/fashion_lenet/fashion_lenet.nuq -o nets/lenet`
    """
    network = load_packed(file)
    pair = write_unpacked(network, output)
    if network.origin:
        err.print(network.origin, soft_wrap=True)
    for path in (pair.model, pair.weights):
        say(str(shown(path)))
