"""The command that sets several studies, or trials of one, side by side. It loads plotly only for the figure."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from autonuq.cli.console import JsonOption, StorageOption, duration, say, show, shown
from autonuq.cli.looking import folder_and_study
from autonuq.errors import StudyError
from autonuq.records import StudyRecord, TrialRecord

if TYPE_CHECKING:
    from autonuq.report.comparison import Compared, ComparisonData

MOST_LAYERS = 10
"""Of which differences are shown, without --all."""

ABSENT = "-"


def compare(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY.toml...", show_default=False)],
    trials: Annotated[
        list[str] | None,
        typer.Option("--trial", help="'best' (the default) or a trial's number, of every study; may be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="FILE.html, .png, .svg or .json.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The differences of all layers.")] = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set several studies side by side, or trials of one: ratios, losses, layers, and one figure of their fronts.

    In place of a study's file the folder that it left will do, too. With --trial, each study has a column for each
    trial that is named. `loss` is on the data of the search, `elsewhere` on data that it never saw.

    Example: `autonuq compare a.toml b.toml -o compare.html`, `autonuq compare a.toml --trial 3 --trial best`
    """
    from autonuq.report.comparison import comparison_data, comparison_figure
    from autonuq.report.files import write_figure

    wanted = trials or ["best"]
    for trial in wanted:
        if trial != "best" and not trial.isdecimal():
            raise typer.BadParameter(f"--trial must be 'best' or a number, got '{trial}'")
    if len(studies) * len(wanted) < 2:
        raise typer.BadParameter("there is one column only; name two studies, or two trials of one by --trial")
    data = comparison_data(_columns(studies, wanted, storage))
    if as_json:
        typer.echo(json.dumps(_document(data)))
    else:
        _print(data, every)
    if output is not None:
        try:
            write_figure(comparison_figure(data), output)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if not as_json:
            say(str(shown(output)))


def _columns(studies: list[Path], wanted: list[str], storage: str | None) -> list[Compared]:
    """Open the studies, and name each so that it cannot be taken for another."""
    from autonuq.report.comparison import Compared

    records = [(path, folder_and_study(path, storage, None)[1].record()) for path in studies]
    times = Counter(record.name for _, record in records)
    columns = []
    for path, record in records:
        name = record.name if times[record.name] == 1 else str(path)
        for one in wanted:
            trial = _trial(record, one)
            number = trial.number if trial is not None and (len(wanted) > 1 or one != "best") else None
            columns.append(Compared(name if number is None else f"{name} #{number}", record, trial))
    return columns


def _trial(record: StudyRecord, wanted: str) -> TrialRecord | None:
    """Return the trial that is meant; None where the best is, and no trial is satisfied."""
    if wanted == "best":
        return record.best
    found = next((trial for trial in record.trials if trial.number == int(wanted)), None)
    if found is None or found.state != "complete":
        raise StudyError(f"trial {wanted} is not a finished trial", study=record.name)
    return found


def _print(data: ComparisonData, every: bool) -> None:
    """Print what can be compared, and what cannot."""
    for reservation in data.reservations:
        say(f"note: {reservation}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in data.columns:
        table.add_column(Text(column.label), overflow="fold")
    described = [_described(column) for column in data.columns]
    for word in described[0]:
        values = [values[word] for values in described]
        if any(value != ABSENT for value in values):
            table.add_row(word, *map(Text, values))
    show(table)
    if data.layers:
        say("")
        show(_layers_table(data, every))


def _described(column: Compared) -> dict[str, str]:
    """Put a column into words."""
    record, trial = column.record, column.trial
    counts = record.counts
    is_scored = trial is not None and trial.ratio is not None and trial.size_bytes is not None
    loss = ABSENT if column.loss is None or trial is None else record.unit.say(column.loss, trial.loss_error)
    return {
        "ratio": f"{trial.ratio:.2f}x" if trial is not None and is_scored else "none satisfied",
        "bytes": f"{trial.size_bytes:,}" if trial is not None and is_scored else ABSENT,
        "of": f"{record.original_bytes:,}",
        "loss": loss,
        "elsewhere": _say_elsewhere(column),
        "limit": ABSENT if record.allowed is None else record.unit.say(record.allowed, None),
        "confirmed": column.confirmed or ABSENT,
        "trial": ABSENT if trial is None else f"{trial.number}{', the best' if column.is_best else ''}",
        "trials": f"{counts.finished} of {record.target_trials}, {counts.satisfied} satisfied",
        "time": duration(column.time_s),
        "codec": record.codec,
        "chip": ABSENT if record.chip is None else record.chip.chip,
        "metric": record.meaning or record.provenance.get("evaluator", ABSENT),
        "samples": ABSENT if record.samples is None else f"{record.samples:,}",
    }


def _say_elsewhere(column: Compared) -> str:
    """Say what the trial lost on data that the search never saw."""
    found = column.elsewhere
    return ABSENT if found is None else column.record.unit.say(found.loss or 0.0, found.loss_error)


def _layers_table(data: ComparisonData, every: bool) -> Table:
    """Describe what each column makes of the layers: their levels and bytes."""
    layers = data.layers if every else data.layers[:MOST_LAYERS]
    more = "" if len(layers) == len(data.layers) else f"; {len(layers)} of {len(data.layers)} layers, --all shows all"
    title = f"levels, bytes of each layer, the largest differences first{more}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="")
    table.add_column("layer", overflow="fold")
    for column in data.columns:
        table.add_column(Text(column.label), justify="right", overflow="fold")
    table.add_column("difference", justify="right")
    for layer in layers:
        cells = [
            ABSENT if size is None else f"{'float' if levels is None else levels}, {size:,}"
            for levels, size in zip(layer.levels, layer.size_bytes, strict=True)
        ]
        table.add_row(Text(layer.layer), *cells, f"{layer.spread_bytes:,}")
    return table


def _document(data: ComparisonData) -> dict[str, Any]:
    """Describe a comparison for --json."""
    return {
        "notes": list(data.reservations),
        "studies": [_column_document(column) for column in data.columns],
        "layers": [
            {"layer": layer.layer, "levels": list(layer.levels), "bytes": list(layer.size_bytes)}
            for layer in data.layers
        ],
    }


def _column_document(column: Compared) -> dict[str, Any]:
    record, trial, found = column.record, column.trial, column.elsewhere
    return {
        "study": record.name,
        "label": column.label,
        "trial": None if trial is None else trial.number,
        "ratio": None if trial is None else trial.ratio,
        "bytes": None if trial is None else trial.size_bytes,
        "original_bytes": record.original_bytes,
        "metric": None if trial is None else trial.metric,
        "original_metric": record.original_metric,
        "loss": column.loss,
        "loss_error": None if trial is None else trial.loss_error,
        "loss_elsewhere": None if found is None else found.loss,
        "loss_elsewhere_error": None if found is None else found.loss_error,
        "limit": record.allowed,
        "confirmed": record.confirmed if column.is_best else None,
        "trials": record.counts.finished,
        "target_trials": record.target_trials,
        "time_s": column.time_s,
        "codec": record.codec,
        "chip": None if record.chip is None else record.chip.chip,
        "meaning": record.meaning,
        "warning": record.warning,
    }
