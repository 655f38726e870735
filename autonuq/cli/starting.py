"""The commands before a study: `new` writes its files, `check` rehearses it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from autonuq.cli.console import (
    JsonOption,
    LevelOption,
    OutOption,
    PythonLayersOption,
    StageOption,
    StorageOption,
    StudyArgument,
    alarms,
    duration,
    err,
    out,
    say,
    show,
    show_error,
    shown,
    unknown,
    warn,
)
from autonuq.cli.skeleton import STUDY_NAME, write_skeleton
from autonuq.compress.needs import say_bytes
from autonuq.graph.hosted.permission import python_layers
from autonuq.study.estimate import PARTS, Estimate
from autonuq.study.rehearsal import Check, Rehearsal
from autonuq.study.study_file import load_task
from autonuq.study.task import Task

ORDERS = ("BGR", "RGB")
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Made if it is not there.")],
    model: Annotated[Path, typer.Option(help="The network's prototxt.", show_default=False)],
    weights: Annotated[Path, typer.Option(help="Its caffemodel.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures (labels.txt in it is used), FILE.npz[:ARRAY], or an LMDB."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Subtracted from pictures: 127.5, or 104,117,123, or FILE.binaryproto.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Pictures are multiplied by it afterwards.")] = None,
    channels: Annotated[str | None, typer.Option(help=f"Order of the colours: {' or '.join(ORDERS)}.")] = None,
    level: LevelOption = 0,
    stage: StageOption = None,
) -> None:
    """Write a study file: with --images complete, else with an evaluator that runs at once, on random data.

    With pictures no labels and no code are needed: what is measured fits the network's last layers. Mean, scale and
    order of the colours are guessed where they are not given, asked for on a terminal, and marked in the file.

    With a level or stages, a prototxt of the layers that they keep is written, too, and the study is of that one.

    Example: `autonuq new studies/mine --model net.prototxt --weights net.caffemodel --images pictures`
    """
    if channels is not None and channels not in ORDERS:
        raise unknown("--channels", channels, ORDERS)
    given = {"mean": None if mean is None else _mean(mean), "scale": scale, "channels": channels}
    if images is None and any(value is not None for value in given.values()):
        raise typer.BadParameter("--mean, --scale and --channels are of pictures: give --images, too")
    written = write_skeleton(
        folder, model, weights, level=level, stages=stage or (), images=images, ask=partial(_asked, given)
    )
    for path in written:
        say(str(shown(path)))
    first = "fill in what is marked TODO there, then: " if images is None else ""
    err.print(f"next: {first}autonuq check {folder / STUDY_NAME}", soft_wrap=True)


def _asked(given: Mapping[str, object], key: str, guessed: object) -> object:
    """Return what a key of the transform is: as given, or as answered at a terminal; None where it stays guessed."""
    if given[key] is not None or not (sys.stdin.isatty() and err.is_terminal):
        return given[key]
    shown_guess = _words(guessed)
    answer = typer.prompt(f"{key} of the pictures (Enter: {shown_guess}, a guess)", "", show_default=False, err=True)
    if not answer.strip():
        return None
    if key == "channels":
        return answer.strip().upper() if answer.strip().upper() in ORDERS else _asked(given, key, guessed)
    return _mean(answer) if key == "mean" else _numbers(answer)[0]


def _words(guessed: object) -> str:
    """Write a guess as it is to be typed."""
    if isinstance(guessed, tuple):
        return ",".join(f"{number:g}" for number in guessed)
    return f"{guessed:g}" if isinstance(guessed, float) else str(guessed)


def _mean(text: str) -> tuple[float, ...] | Path:
    """Read a mean as numbers, or the file that holds it."""
    file = Path(text.strip())
    return file if file.suffix in (".binaryproto", ".npy") else _numbers(text)


def _numbers(text: str) -> tuple[float, ...]:
    """Read `127.5` or `104,117,123`."""
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise typer.BadParameter(f"must be a number or one for each channel, as 104,117,123. Got '{text}'.") from None


def check(
    study: StudyArgument,
    storage: StorageOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    allow_python_layers: PythonLayersOption = False,
) -> None:
    """Take every step of a study on one batch, and say how long the study will take; nothing stays behind.

    Example: `autonuq check studies/fashion_lenet.toml`
    """
    task = load_task(study, out=out, storage=storage)
    allowed = allow_python_layers or task.allow_python_layers
    rehearsal = Rehearsal(task)
    checks = []
    with err.status("checking"), python_layers(allowed):
        for one in rehearsal.run():
            checks.append(one)
    errors = [one.error for one in checks if one.error is not None]
    estimate = None if errors else rehearsal.estimate()
    if as_json:
        typer.echo(json.dumps(_document(task.name, checks, estimate)))
    else:
        _print_checks(checks)
        if estimate is not None:
            _print_estimate(estimate, task)
    for message in dict.fromkeys(message for one in checks for message in one.warnings):
        warn(message)
    _show_failures([one for one in checks if one.error is not None])
    if errors:
        raise typer.Exit(errors[0].exit_code)


def _document(name: str, checks: list[Check], estimate: Estimate | None) -> dict[str, Any]:
    rows = [{key: value for key, value in vars(one).items() if key != "error"} for one in checks]
    total = None if estimate is None else estimate.as_document()
    return {"study": name, "passed": estimate is not None, "checks": rows, "estimate": total}


def _print_checks(checks: list[Check]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True, justify="right")
    for one in checks:
        detail = Text("see below" if one.error else one.detail)
        table.add_row(Text(one.state, _STYLES[one.state]), one.name, detail, f"{one.seconds:.1f} s")
    show(table)


def _print_estimate(estimate: Estimate, task: Task) -> None:
    """Print how long the study will take, part by part, and what of the machine it needs."""
    table = Table(title=f"about {duration(estimate.total_s)} with one worker", title_justify="left", box=None)
    table.add_column("part")
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    for part, seconds in estimate.parts.items():
        if not seconds:
            continue
        words = f"{PARTS[part]} ({estimate.trials_run})" if part == "trials_s" else PARTS[part]
        table.add_row(words, duration(seconds), f"{seconds / estimate.total_s:.0%}")
    out.print()
    show(table)
    if estimate.trials_run:
        scoring = duration(estimate.scoring_s)
        out.print(f"\none trial costs about {duration(estimate.trial_s)}; of it the evaluator takes {scoring}")
    if estimate.float_search_s:
        extra = duration(estimate.float_search_s)
        out.print(f"if int8 does not keep the limit: up to {extra} more, to find float layers")
    memory, disk = say_bytes(estimate.memory_bytes), say_bytes(estimate.disk_bytes)
    out.print(f"at most {memory} of memory with one worker, {disk} of disk in {shown(task.out)}", soft_wrap=True)


def _show_failures(failed: list[Check]) -> None:
    """Print what failed as the last thing there is to read."""
    if not failed:
        return
    count = "a step" if len(failed) == 1 else f"{len(failed)} steps"
    alarms.print(Text(f"\n{count} failed; nothing was started", "bold red"))
    for one in failed:
        if one.error is not None:
            show_error(one.error, f"{one.name}: {one.error}")
    alarms.print("mend it, and check again")
