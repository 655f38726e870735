"""The commands that quantize as AMCT's configuration says, without a search."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from autonuq import amct
from autonuq.atomic import temporary_folder
from autonuq.cli.console import (
    NOT_SATISFIED,
    LevelOption,
    ModelArgument,
    OutputOption,
    PythonLayersOption,
    StageOption,
    WeightsArgument,
    err,
    say,
    shown,
)
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import load_graph, write_prototxt
from autonuq.graph.hosted.permission import python_layers
from autonuq.records import format_metric, say_verdict


def _quiet_log() -> None:
    """Keep AMCT's log off the screen under --quiet; its file has it."""
    if err.quiet:
        os.environ.setdefault("AMCT_LOG_LEVEL", "WARNING")


@contextmanager
def _chosen(model: Path, level: int, stages: list[str] | None) -> Iterator[Path]:
    """Give a prototxt of the layers that level and stages keep: evaluators open files without saying such things."""
    if not level and not stages:
        yield model
        return
    with temporary_folder() as folder:
        yield write_prototxt(load_graph(model, level=level, stages=stages or ()), folder / model.name)


def config(
    model: ModelArgument,
    weights: WeightsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="config.json to write.")],
    cfg: Annotated[Path | None, typer.Option(help="AMCT's simplified configuration.")] = None,
    level: LevelOption = 0,
    stage: StageOption = None,
) -> None:
    """Write AMCT's config.json for a network.

    Example: `autonuq config net.prototxt net.caffemodel -o config.json --cfg quant.cfg`
    """
    _quiet_log()
    definition = None if cfg is None else str(cfg)
    with _chosen(model, level, stage) as prototxt:
        amct.create_quant_config(str(output), str(prototxt), str(weights), config_defination=definition)
    say(str(shown(output)))


def quantize(
    model: ModelArgument,
    weights: WeightsArgument,
    config: Annotated[Path, typer.Option(help="config.json, as `autonuq config` writes it.")],
    evaluator: Annotated[str, typer.Option(help="file.py:Class or package.module:Class.")],
    output: OutputOption,
    batches: Annotated[int, typer.Option(min=1, help="Of the score, where the class does not say.")] = 1,
    level: LevelOption = 0,
    stage: StageOption = None,
    allow_python_layers: PythonLayersOption = False,
) -> None:
    """Quantize as config.json says, without a search: uniform int8, and codebooks of 16 or 32 levels.

    The evaluator feeds the calibration with the batch_num of config.json, then scores the original and the result;
    exit code 8 says that it is not satisfied (the files are there all the same).

    Example: `autonuq quantize net.prototxt net.caffemodel --config config.json --evaluator eval.py:Top1 -o nets/i8`
    """
    _quiet_log()
    with python_layers(allow_python_layers), _chosen(model, level, stage) as prototxt:
        chosen = load_evaluator(evaluator, Path.cwd(), batches)
        result = amct.quantize_static(prototxt, weights, config, chosen, output)
    verdict = say_verdict(result.satisfied)
    say(f"metric  {format_metric(result.original_metric)} -> {format_metric(result.metric)} ({verdict})")
    for name, levels in result.levels.items():
        say(f"layer   {name}: {levels} levels")
    say("wrote")
    for path in result.written:
        say(f"  {shown(path)}")
    if not result.satisfied:
        raise typer.Exit(NOT_SATISFIED)
