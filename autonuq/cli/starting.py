"""The commands before a study: `new` writes its files, `check` rehearses it."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    duration,
    err,
    out,
    say,
    show_error,
    shown,
)
from autonuq.cli.skeleton import STUDY_NAME, write_skeleton
from autonuq.graph.hosted.permission import python_layers
from autonuq.study.rehearsal import Check, Estimate, Rehearsal
from autonuq.study.study_file import load_task

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Made if it is not there.")],
    model: Annotated[Path, typer.Option(help="The network's prototxt.", show_default=False)],
    weights: Annotated[Path, typer.Option(help="Its caffemodel.", show_default=False)],
    level: LevelOption = 0,
    stage: StageOption = None,
) -> None:
    """Write a study file and an evaluator that runs at once on random data; comments say what to fill in.

    With a level or stages, a prototxt of the layers that they keep is written, too, and the study is of that one.

    Example: `autonuq new studies/mine --model net.prototxt --weights net.caffemodel`
    """
    for path in write_skeleton(folder, model, weights, level=level, stages=stage or ()):
        say(str(shown(path)))
    err.print(f"next: fill in what is marked TODO there, then: autonuq check {folder / STUDY_NAME}", soft_wrap=True)


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
        _print_checks(checks, estimate)
    for error in errors:
        show_error(error, str(error))
    if errors:
        raise typer.Exit(errors[0].exit_code)


def _document(name: str, checks: list[Check], estimate: Estimate | None) -> dict[str, Any]:
    rows = [{key: value for key, value in vars(one).items() if key != "error"} for one in checks]
    total = None if estimate is None else {**asdict(estimate), "total_s": estimate.total_s}
    return {"study": name, "passed": estimate is not None, "checks": rows, "estimate": total}


def _print_checks(checks: list[Check], estimate: Estimate | None) -> None:
    table = Table(title_justify="left", show_header=False, box=None, pad_edge=False)
    for one in checks:
        detail = Text("see below" if one.error else one.detail, overflow="fold")
        table.add_row(Text(one.state, _STYLES[one.state]), one.name, detail, f"{one.seconds:.1f} s")
    out.print(table)
    if estimate is None:
        say("nothing was started; mend what failed and check again")
        return
    say(
        f"about {duration(estimate.total_s)} with one worker: baseline {duration(estimate.baseline_s)}, calibration "
        f"{duration(estimate.calibration_s)}, curves {duration(estimate.curves_s)}, then {estimate.trials} trials of "
        f"{duration(estimate.trial_s)}"
    )
