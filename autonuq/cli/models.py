"""The commands that take a network, or a file with one, and no study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from autonuq.cli.layer_table import Reasons, float_bytes, show_layers
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

_IMAGES = 200
"""With so many that calibrate it is said how long a study is prepared."""
_REASONS = 3  # the commonest ones, that are said in words


def inspect(
    model: ModelArgument,
    weights: WeightsArgument,
    chip: Annotated[str | None, typer.Option(help=f"What ATC would do on: {', '.join(DDR_RATES)}.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every layer in the network's order, not only those with weights.")
    ] = False,
    level: LevelOption = 0,
    stage: StageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each layer with weights what can be quantized and why not, the widest first.

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
    sizes = float_bytes(graph, found)
    if as_json:
        rows = [_inspected(layer, sizes[layer.name], views.get(layer.name)) for layer in found]
        document = {"layers": rows, "weights": sum(layer.weights for layer in found), "needs": _needed(needs)}
        typer.echo(json.dumps(document | ({"python_layers": list(map(_not_run, refused))} if refused else {})))
        return
    heavy = sorted((layer for layer in found if sizes[layer.name]), key=lambda layer: -sizes[layer.name])
    show_layers(found if every else heavy, sizes, views, chip)
    _print_totals(heavy, sizes)
    if needs is not None:
        prepared, curves = duration(needs.preparation_s(_IMAGES)), duration(needs.curves_s)
        out.print(f"a study takes {needs.say()}")
        out.print(f"before its trials: about {prepared} on one core with {_IMAGES} images (curves {curves})")
        out.print("what a trial takes depends on the data: 'autonuq check' measures it")
    for one in refused:
        say(f"not run: {refusal(one, model)}; behind it shapes are those of the weights, and needs are not known")
    if chip:
        marked = [name for name, view in views.items() if view.mark.is_marked]
        say(f"ATC on {chip} would mark {len(marked)}: {', '.join(marked) or 'none'}")


def _print_totals(layers: Sequence[Capability], sizes: Mapping[str, int]) -> None:
    """Print how many layers and bytes can become what, and why others are left alone."""
    whole = sum(sizes[layer.name] for layer in layers)
    kinds = {
        "with weights": layers,
        "can be int8": [layer for layer in layers if layer.quantizable],
        "can carry a codebook": [layer for layer in layers if layer.nuq],
        "left alone": [layer for layer in layers if not layer.quantizable],
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    for words, own in kinds.items():
        size = sum(sizes[layer.name] for layer in own)
        count = f"{len(own)} layer{'s' * (len(own) != 1)}"
        table.add_row(words, count, f"{size:,} bytes", f"{size / whole:.1%}" if whole else "")
    out.print()
    show(table)
    reasons = Reasons()
    for layer in kinds["left alone"]:
        reasons.number(layer.reason)
    commonest = sorted(reasons.said(), key=lambda one: -one[1])[:_REASONS]
    if commonest:
        say(f"left alone because: {'; '.join(f'{reason} ({count})' for reason, count in commonest)}")


def _inspected(layer: Capability, size: int, view: ChipView | None) -> dict[str, object]:
    """Describe one layer for --json."""
    row: dict[str, object] = {
        "name": layer.name,
        "type": layer.type,
        "weights": layer.weights,
        "shape": list(layer.shape),
        "quantizable": layer.quantizable,
        "nuq": layer.nuq,
        "reason": layer.reason,
        "float_bytes": size,
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
    return {**sizes, "curves_s": needs.curves_s, "preparation_s": needs.preparation_s(_IMAGES)}


def _not_run(layer: Layer) -> dict[str, str]:
    """Describe a layer whose code was not run for --json."""
    parameters = layer.message.python_param
    return {"name": layer.name, "module": parameters.module, "class": parameters.layer}


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
