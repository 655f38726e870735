"""The command that says how far a study is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from autonuq.cli.console import JsonOption, OutOption, StorageOption, StudyArgument, duration, say, show
from autonuq.headline import Headline, Hurting, Step, headline, next_steps
from autonuq.records import LossParts, StudyRecord, TrialRecord, format_metric
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
    """Say what a study reached and what to do next.

    Also which layers hurt most, and how far the study is.

    In place of its file, here and in plot, report and dashboard, the folder that a study left will do, too.

    Example: `autonuq status studies/fashion_lenet.toml --json`
    """
    opened = folder_and_study(study, storage, out)[1]
    record = opened.record()
    if as_json:
        typer.echo(json.dumps(_status(record)))
    else:
        first, now = headline(record), standing(record)
        show(_rows(_first_rows(record, first, now.best)))
        if first.hurting:
            say("")
            show(_hurting_table(first.hurting))
            say("")
        show(_rows(_running_rows(record, now)))


def _status(record: StudyRecord) -> dict[str, Any]:
    """Describe a study for --json."""
    best = record.best
    return {
        "study": record.name,
        "original_metric": record.original_metric,
        "trials": asdict(record.counts),
        **_when_there(record),
        "next": [_step(step) for step in next_steps(record)],
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


def _step(step: Step) -> dict[str, Any]:
    """Describe a step, with the numbers and layers that it has."""
    return {key: value for key, value in asdict(step).items() if value}


def layer_losses(parts: LossParts) -> dict[str, Any]:
    """Describe which layers cause the loss of a trial."""
    every = [
        {"layer": part.layer or None, "share": part.share, "loss": parts.loss_of(part), "deviation": part.deviation}
        for part in (*parts.layers, parts.rest)
    ]
    return {"trial": parts.trial, "loss": parts.loss, "loss_error": parts.loss_error, "parts": every}


def _when_there(record: StudyRecord) -> dict[str, Any]:
    """Return the keys that only some studies have, such as those with a confirmation, an early end or a chip."""
    found = {
        "warning": record.warning,
        "meaning": record.meaning,
        "layer_losses": None if record.loss_parts is None else layer_losses(record.loss_parts),
        "stopped": record.stopped,
        "ignored": {str(number): why for number, why in record.ignored.items()},
        "float_layers": asdict(record.float_layers) if record.float_layers.say() else None,
        "confirmation": None if record.confirmation is None else asdict(record.confirmation),
        "chip": None if record.chip is None else {**asdict(record.chip), "int8_bytes": record.int8_bytes},
    }
    return {key: value for key, value in found.items() if value}


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    """Make a table of words and what they are, which stands well below another."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=len("confirmed"))
    for word, value in rows:
        table.add_row(word, Text(value, style="bold" if word == "warning" else ""))
    return table


def _first_rows(record: StudyRecord, first: Headline, best: TrialRecord | None) -> Iterator[tuple[str, str]]:
    """Yield what was reached, and what to do next."""
    if first.warning:
        yield "warning", first.warning
    yield "study", f"{record.name}, codec {record.codec}"
    if first.meaning:
        yield "meaning", first.meaning
    yield "ratio", first.ratio if best is None else f"{first.ratio}, trial {best.number}"
    if best is not None:
        if record.chip is not None:
            yield "chip", record.say_transfer()
        yield "loss", first.loss
        yield "confirmed", first.confirmed
    for index, step in enumerate(first.steps):
        yield "" if index else "next", step.text


def _hurting_table(layers: tuple[Hurting, ...]) -> Table:
    """Describe the layers that hurt most."""
    table = Table(box=None, pad_edge=False, title="layers that hurt most", title_justify="left", title_style="")
    table.add_column("layer", overflow="fold")
    has_losses = any(one.loss for one in layers)
    for column in (*(["loss"] if has_losses else []), "of the loss", "bytes", "of all bytes"):
        table.add_column(column, justify="right")
    for one in layers:
        loss = [one.loss] if has_losses else []
        table.add_row(Text(one.part.layer), *loss, one.share, f"{one.size_bytes:,}", f"{one.byte_share:.1%}")
    return table


def _running_rows(record: StudyRecord, now: Standing) -> Iterator[tuple[str, str]]:
    """Yield how the study runs, a row for each thing that there is to say."""
    left = f", about {duration(now.left_s)} to go" if now.left_s and now.done < now.target else ""
    failures = [trial for trial in record.trials if trial.state == "failed"]
    feasible = "" if now.feasible is None else f", {now.feasible:.0%} satisfied"
    counts = f"{now.done} of {now.target}{feasible}, {len(failures)} failed, {len(now.running)} running"
    yield "trials", counts + left
    if now.best is not None:
        before = format_metric(record.original_metric, record.original_standard_error)
        yield "metric", f"{before} -> {format_metric(now.best.metric, now.best.standard_error)}"
    if record.float_layers.layers:
        yield "float", record.float_layers.say()
    if record.stopped:
        yield "stopped", record.stopped
    for line in record.say_ignored():
        yield "ignored", line
    for trial in now.running:
        yield "running", f"trial {trial.number} on {trial.worker or 'a worker'}"
    for trial in failures:
        yield "failed", f"trial {trial.number}: {trial.error}"
