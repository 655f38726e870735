"""The command that says how far a study is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from autonuq.cli.console import JsonOption, OutOption, StorageOption, StudyArgument, duration, show
from autonuq.records import StudyRecord, format_metric
from autonuq.study.display import Standing, standing
from autonuq.study.locate import load_study, open_study
from autonuq.study.stored import Study
from autonuq.study.study_file import load_task


def folder_and_study(study: Path, storage: str | None, out: Path | None) -> tuple[Path, Study]:
    """Open the study of a study file, or the one that left a folder, as AMCT's call does; its folder comes first."""
    if study.is_dir():
        return out or study, load_study(study, storage)
    task = load_task(study, out=out, storage=storage)
    return task.out, open_study(task.name, task.storage)


def status(
    study: StudyArgument, storage: StorageOption = None, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Say how far a study is.

    In place of its file, here and in plot, report and dashboard, the folder that a study left will do, too.

    Example: `autonuq status studies/fashion_lenet.toml --json`
    """
    opened = folder_and_study(study, storage, out)[1]
    record = opened.record()
    if as_json:
        typer.echo(json.dumps(_status(record)))
    else:
        show(_status_table(record, standing(record)))


def _status(record: StudyRecord) -> dict[str, Any]:
    """Describe a study for --json."""
    best = record.best
    return {
        "study": record.name,
        "original_metric": record.original_metric,
        "trials": asdict(record.counts),
        **_when_there(record),
        "best": None
        if best is None
        else {
            "trial": best.number,
            "ratio": best.ratio,
            "metric": best.metric,
            "loss": record.loss(best),
            "loss_error": best.loss_error,
            "probability": best.probability,
            "confirmed": record.confirmed,
            "levels": record.layer_levels(best),
            "bytes": best.size_bytes,
            "original_bytes": record.original_bytes,
        },
    }


def _when_there(record: StudyRecord) -> dict[str, Any]:
    """Return the keys that only studies with a confirmation, an early end, float layers or a chip have."""
    found = {
        "stopped": record.stopped,
        "ignored": {str(number): why for number, why in record.ignored.items()},
        "float_layers": asdict(record.float_layers) if record.float_layers.say() else None,
        "confirmation": None if record.confirmation is None else asdict(record.confirmation),
        "chip": None if record.chip is None else {**asdict(record.chip), "int8_bytes": record.int8_bytes},
    }
    return {key: value for key, value in found.items() if value}


def _status_table(record: StudyRecord, now: Standing) -> Table:
    """Describe a study for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    left = f", about {duration(now.left_s)} to go" if now.left_s and now.done < now.target else ""
    failures = [trial for trial in record.trials if trial.state == "failed"]
    feasible = "" if now.feasible is None else f", {now.feasible:.0%} satisfied"
    table.add_row("study", f"{record.name}, codec {record.codec}")
    counts = f"{now.done} of {now.target}{feasible}, {len(failures)} failed, {len(now.running)} running"
    table.add_row("trials", counts + left)
    if now.best is None:
        table.add_row("best", "no trial satisfied the constraint so far")
    else:
        sizes = f"{record.original_bytes:,} -> {now.best.size_bytes:,} bytes"
        table.add_row("best", f"{now.best.ratio:.2f}x in trial {now.best.number}: {sizes}")
        if record.chip is not None:
            table.add_row("chip", Text(record.say_transfer()))
        before = format_metric(record.original_metric, record.original_standard_error)
        table.add_row("metric", f"{before} -> {format_metric(now.best.metric, now.best.standard_error)}")
        table.add_row("loss", Text(record.say_best()))
    if record.float_layers.layers:
        table.add_row("float", Text(record.float_layers.say()))
    if record.stopped:
        table.add_row("stopped", Text(record.stopped))
    for line in record.say_ignored():
        table.add_row("ignored", Text(line))
    for trial in now.running:
        table.add_row("running", f"trial {trial.number} on {trial.worker or 'a worker'}")
    for trial in failures:
        table.add_row("failed", Text(f"trial {trial.number}: {trial.error}"))
    return table
