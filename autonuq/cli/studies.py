"""The commands that run a study, and the one that writes what it found."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from autonuq import report
from autonuq.cli.console import (
    INTERRUPTED,
    NOT_CONFIRMED,
    NOT_SATISFIED,
    ArtifactsOption,
    JobsOption,
    OutOption,
    PrefixOption,
    PythonLayersOption,
    StorageOption,
    StudyArgument,
    TimeoutOption,
    TrialsOption,
    WaitOption,
    err,
    out,
    say,
    show,
    shown,
    unknown,
)
from autonuq.compress.formats import FORMATS, check_formats
from autonuq.errors import StudyError
from autonuq.graph.hosted.permission import python_layers
from autonuq.headline import hurting, next_steps
from autonuq.masking import masked
from autonuq.records import FloatLayers, StudyRecord, TrialRecord, format_metric
from autonuq.study.display import Display, Log, Terminal
from autonuq.study.engines import BACKENDS, Workers
from autonuq.study.locate import open_study
from autonuq.study.run import WINNER_FORMATS, StudyRun
from autonuq.study.study_file import load_task
from autonuq.study.task import Task
from autonuq.study.workers import work as run_worker

BackendOption = Annotated[
    str | None, typer.Option(help=f"{' or '.join(BACKENDS)}: a cluster's workers run the trials; overrides the file's.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--scheduler", "--address", help="Of Dask's scheduler, tcp://host:8786, or of Ray's cluster."),
]


def tune(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
    jobs: JobsOption = None,
    backend: BackendOption = None,
    address: AddressOption = None,
    artifacts: ArtifactsOption = None,
    allow_python_layers: PythonLayersOption = False,
) -> None:
    """Start a study, run it, and write the best network.

    Example: `autonuq tune studies/fashion_lenet.toml`
    """
    task = _task(study, out, storage, artifacts, trials, allow_python_layers)
    with python_layers(task.allow_python_layers):
        _run(_with_workers(task, backend, address, jobs), timeout, exists=False)


def resume(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
    jobs: JobsOption = None,
    backend: BackendOption = None,
    address: AddressOption = None,
    artifacts: ArtifactsOption = None,
    allow_python_layers: PythonLayersOption = False,
    corrected: Annotated[
        bool, typer.Option("--corrected", help="Accept another evaluator's code if it still measures the same.")
    ] = False,
) -> None:
    """Go on with a study where its storage stands.

    Example: `autonuq resume studies/fashion_lenet.toml --trials 80`
    """
    task = _with_workers(_task(study, out, storage, artifacts, trials, allow_python_layers), backend, address, jobs)
    open_study(task.name, task.storage)  # before folders are made for a study that is not there
    with python_layers(task.allow_python_layers):
        _run(task, timeout, exists=True, corrected=corrected)


def work(
    study: StudyArgument,
    storage: StorageOption = None,
    artifacts: ArtifactsOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
    wait: WaitOption = None,
    allow_python_layers: PythonLayersOption = False,
) -> None:
    """Run trials of a study that was started elsewhere, until none is left.

    This machine needs the study file, its evaluator and its data; the network comes from the artifacts.

    Example: `autonuq work study.toml --storage postgresql://me@server/studies --artifacts s3://bucket/net`
    """
    task = _task(study, out, storage, artifacts, allow_python_layers=allow_python_layers)
    try:
        with python_layers(task.allow_python_layers), _display(task) as display:
            run_worker(task, on_progress=display.show, timeout=timeout, wait_s=wait)
    except KeyboardInterrupt:
        err.print("interrupted; its trial is queued again")
        raise typer.Exit(INTERRUPTED) from None


def export(
    study: StudyArgument,
    trial: Annotated[str, typer.Option(help="'best' or a trial's number.")] = "best",
    output: PrefixOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help=f"One of {', '.join(FORMATS)}; may be repeated. Or all.")
    ] = None,
    allow_python_layers: PythonLayersOption = False,
) -> None:
    """Write the files of a trial.

    `caffe` (the default): fake-quant pair with AMCT's layer types, deploy pair, record, NUQ layer list, quant.json.
    `pycaffe`: fake-quant pair for a Caffe that nobody patched, with `Python` layers and their file,
    `autonuq_layers.py`. `weights`: pair with float activations, for OpenCV and others. `deploy`: deploy pair, record,
    NUQ layer list. `packed`: one file, PREFIX.nuq, with the bytes that the ratio counts; see `autonuq unpack`. `onnx`:
    QuantizeLinear, DequantizeLinear and int8 weights, for any batch size unless the network depends on it.
    `onnx-codebook`: weights as indices into their levels.

    Example: `autonuq export studies/fashion_lenet.toml --trial 7 --format packed --format onnx -o nets/lenet`
    """
    if trial != "best" and not trial.isdecimal():
        raise typer.BadParameter(f"--trial must be 'best' or a number, got '{trial}'")
    try:
        wanted = FORMATS if formats == ["all"] else check_formats(formats or ["caffe"])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    task = load_task(study, out=out, storage=storage)
    if out is not None and not out.is_dir():
        hint = "--out is the study's folder, and -o PREFIX says where the files go"
        raise StudyError(f"not found: there is no folder {out}; {hint}", study=task.name)
    opened = open_study(task.name, task.storage)
    number = None if trial == "best" else int(trial)
    with python_layers(allow_python_layers or task.allow_python_layers):
        written = StudyRun(task).export(opened, number, formats=wanted, prefix=output)
    for path in written:
        say(str(shown(path)))


def _task(
    study: Path,
    out: Path | None,
    storage: str | None,
    artifacts: str | None,
    trials: int | None = None,
    allow_python_layers: bool = False,
) -> Task:
    """Read a study file, and remember by what command that was."""
    task = load_task(study, out=out, storage=storage, artifacts=artifacts, trials=trials)
    task = replace(task, allow_python_layers=allow_python_layers or task.allow_python_layers)
    command = {"command": shlex.join(["autonuq", *map(masked, sys.argv[1:])])}
    return replace(task, provenance={**command, **task.provenance})


def _with_workers(task: Task, backend: str | None, address: str | None, jobs: int | None) -> Task:
    """Return the task with the workers of the command line, which override the study file's."""
    if backend is not None and backend not in BACKENDS:
        raise unknown("--backend", backend, BACKENDS)
    own = task.workers if backend in (None, task.workers.backend) else Workers(backend)  # no other backend's address
    workers = Workers(backend=own.backend, address=address or own.address, jobs=own.jobs if jobs is None else jobs)
    if broken := workers.broken_rule:
        raise typer.BadParameter(f"--scheduler: {broken}")
    return replace(task, workers=workers)


def _display(task: Task) -> Display:
    return Display(task.name, task.storage, Terminal(err) if err.is_terminal and not err.quiet else Log(err))


def _run(task: Task, timeout: float | None, *, exists: bool, corrected: bool = False) -> None:
    interrupted = False
    with _display(task) as display:
        run = StudyRun(task, display.show)
        try:
            if corrected:
                run.accept_corrected()
            study = run.run(exists=exists, timeout=timeout)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        err.print("interrupted; go on with 'autonuq resume'")
        try:
            study = open_study(task.name, task.storage)
        except StudyError as error:  # interrupted before there was one
            raise typer.Exit(INTERRUPTED) from error
    record = study.record()
    if record.best is not None:
        written = run.export(study, formats=WINNER_FORMATS)
        page = task.out / "report.html"
        report.write_report(record, page)
        _print_result(record, record.best, [*written, page])
    elif not interrupted:
        if record.warning:
            err.print(record.warning)
        err.print("no trial satisfied the constraint; nothing was written. 'autonuq plot' shows how far they were")
        _print_steps(record)
        _print_costs(record.float_layers)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if record.best is None:
        raise typer.Exit(NOT_SATISFIED)
    if record.confirmed is False:
        raise typer.Exit(NOT_CONFIRMED)


def _print_result(record: StudyRecord, best: TrialRecord, written: list[Path]) -> None:
    """Print the table of layers and what the study reached."""
    table = Table(title=f"{record.name}: trial {best.number}, codec {record.codec}", title_justify="left")
    table.add_column("layer")
    for column in ("weights", "levels", "retention", "bytes", "ratio"):
        table.add_column(column, justify="right")
    for row in record.layer_rows(best):
        table.add_row(
            row.layer.name,
            f"{row.layer.weights:,}",
            "float" if row.levels is None else str(row.levels),
            "" if row.retention is None else f"{row.retention:.3f}",
            f"{row.size_bytes:,}",
            f"{row.ratio:.2f}x",
        )
    table.add_section()
    total = best.size_bytes or 0
    weights = sum(layer.weights for layer in record.layers)
    table.add_row("all", f"{weights:,}", "", "", f"{total:,}", f"{best.ratio:.2f}x")
    show(table)
    out.print(f"ratio   {best.ratio:.2f}x: {record.original_bytes:,} -> {total:,} bytes of weights")
    if record.chip is not None:
        say(f"chip    {record.say_transfer()}")
    before = format_metric(record.original_metric, record.original_standard_error)
    out.print(f"metric  {before} -> {format_metric(best.metric, best.standard_error)}")
    say(record.say_best())
    if record.confirmation is not None and record.confirmation.trial != best.number:
        say(f"confirm {record.confirmation.say(record.unit)}")
    if record.float_layers.layers:
        say(f"float   {record.float_layers.say()}")
    if record.stopped:
        say(f"stopped {record.stopped}")
    _print_steps(record)
    out.print("wrote")
    for path in written:
        out.print(f"  {shown(path)}", soft_wrap=True)


def _print_steps(record: StudyRecord) -> None:
    """Print which layers hurt most, and what to do next."""
    for one in hurting(record):
        say(f"hurts   {one.say()}")
    for step in next_steps(record):
        say(f"next    {step.text}")


def _print_costs(found: FloatLayers) -> None:
    """Print what each layer costs alone, where that was measured."""
    if not found.costs:
        return
    table = Table(title="each layer alone at int8, all others float", title_justify="left")
    table.add_column("layer")
    table.add_column("float bytes", justify="right")
    table.add_column(found.measure, justify="right")
    for one in found.costs:
        table.add_row(Text(one.layer), f"{one.float_bytes:,}", found.say_cost(one.cost))
    show(table)
    say(found.say())
