"""The commands: thin layers over the public functions, and the only room that prints.

Results go to stdout, progress and messages to stderr. Exit codes are those of `errors`, and 8 where a study finished
without a satisfied trial, 130 where it was interrupted. `console` has the consoles and what every command takes,
`display` the progress of a study, `documents` the schemas of `--json`, `starting` the commands before a study.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from autonuq import amct
from autonuq.cli.console import (
    ArtifactsOption,
    CommandGroup,
    JobsOption,
    JsonOption,
    ModelArgument,
    OutOption,
    StorageOption,
    StudyArgument,
    TimeoutOption,
    TrialsOption,
    Verbosity,
    WeightsArgument,
    duration,
    err,
    out,
    say,
    show,
    show_error,
    shown,
    warn,
)
from autonuq.cli.display import Display, Standing, standing
from autonuq.cli.starting import check, load_config, new
from autonuq.compress.chip import ChipView, view_on_chip
from autonuq.compress.export import FORMATS, check_formats
from autonuq.compress.outputs import unpack as write_unpacked
from autonuq.errors import AutonuqError, StudyError, suggest_name
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.capability import Capability
from autonuq.graph.files import load_graph
from autonuq.graph.passes import capabilities
from autonuq.quant.atc.chips import DDR_RATES
from autonuq.records import StudyRecord, TrialRecord, format_metric
from autonuq.report import FIGURES, write_figure, write_report
from autonuq.report.dashboard import open_dashboard
from autonuq.study import Study, load_study
from autonuq.study.run import WINNER_FORMATS, Task, export_trial, run_study
from autonuq.study.study_file import StudyFile, load_study_file, make_evaluator
from autonuq.study.workers import fetch_network
from autonuq.study.workers import work as run_worker

NOT_SATISFIED, INTERRUPTED, CANNOT_WRITE = 8, 130, 6

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Make trained Caffe networks smaller without retraining.\n\nExit codes: 0 done, 2 usage, 3 model, "
    "4 quantization, 5 runtime, 6 study or storage, 7 evaluator, 8 finished but nothing satisfied the constraint, "
    "130 interrupted.",
)


def main() -> None:
    """Run a command and turn its error into one line and an exit code."""
    Verbosity.reset()
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster that wants its machine back
    try:
        app()
    except AutonuqError as error:
        show_error(error, str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        show_error(error, f"{error.filename}: cannot be used: {error.strerror}" if error.filename else str(error))
        sys.exit(CANNOT_WRITE)


@app.command()
def inspect(
    model: ModelArgument,
    weights: WeightsArgument,
    chip: Annotated[str | None, typer.Option(help=f"What ATC would do on: {', '.join(DDR_RATES)}.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each layer what can be quantized and why not.

    Example: `autonuq inspect net.prototxt net.caffemodel --chip ascend310`
    """
    if chip is not None and chip not in DDR_RATES:
        raise _unknown("--chip", chip, DDR_RATES)
    graph = load_graph(model, weights)
    found = capabilities(graph)
    views = {} if chip is None else view_on_chip(graph, chip)
    if as_json:
        rows = [_inspected(layer, views.get(layer.name)) for layer in found]
        typer.echo(json.dumps({"layers": rows, "weights": sum(layer.weights for layer in found)}))
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
    able = sum(layer.nuq for layer in found)
    out.print(f"{sum(layer.weights for layer in found):,} weights; {able} layers can carry a codebook")
    if chip:
        marked = [name for name, view in views.items() if view.mark.is_marked]
        say(f"ATC on {chip} would mark {len(marked)}: {', '.join(marked) or 'none'}")


def _unknown(what: str, name: str, known: Iterable[str]) -> typer.BadParameter:
    """Make the error for a name that there is not."""
    names = list(known)
    return typer.BadParameter(f"{what} must be one of {', '.join(names)}, got '{name}'.{suggest_name(name, names)}")


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


def _chip_cells(view: ChipView | None) -> tuple[str, str]:
    if view is None:
        return "", ""
    kept = "yes" if view.judgement.is_kept else "no"
    return f"{'yes' if view.mark.is_marked else 'no'}: {view.mark.reason}", f"{kept}: {view.judgement.ratio:.2f}"


app.command()(new)
app.command()(check)


@app.command()
def tune(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
    jobs: JobsOption = 1,
    artifacts: ArtifactsOption = None,
) -> None:
    """Start a study, run it, and write the best network.

    Example: `autonuq tune studies/fashion_lenet.toml`
    """
    file = load_study_file(study, out=out, storage=storage, artifacts=artifacts)
    _run(file, trials, timeout, jobs, exists=False)


@app.command()
def resume(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
    jobs: JobsOption = 1,
    artifacts: ArtifactsOption = None,
) -> None:
    """Go on with a study where its storage stands.

    Example: `autonuq resume studies/fashion_lenet.toml --trials 80`
    """
    file = load_study_file(study, out=out, storage=storage, artifacts=artifacts)
    load_study(file.name, file.storage)  # before folders are made for a study that is not there
    _run(file, trials, timeout, jobs, exists=True)


@app.command()
def work(
    study: StudyArgument,
    storage: StorageOption = None,
    artifacts: ArtifactsOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Run trials of a study that was started elsewhere, until none is left.

    This machine needs the study file, its evaluator and its data; the network comes from the artifacts.

    Example: `autonuq work study.toml --storage postgresql://me@server/studies --artifacts s3://bucket/net`
    """
    file = load_study_file(study, out=out, storage=storage, artifacts=artifacts)
    try:
        with Display(file.name, file.storage) as display:
            file = fetch_network(file, on_progress=display.show, timeout=timeout)
            run_worker(_task(replace(file, cfg=None, confirm=None)), on_progress=display.show, timeout=timeout)
    except KeyboardInterrupt:
        err.print("interrupted; its trial is queued again")
        raise typer.Exit(INTERRUPTED) from None


def _run(file: StudyFile, trials: int | None, timeout: float | None, jobs: int, *, exists: bool) -> None:
    task = _task(file)
    task = replace(task, n_trials=trials or task.n_trials)
    interrupted = False
    try:
        with Display(task.name, task.storage) as display:
            study = run_study(task, exists=exists, on_progress=display.show, timeout=timeout, jobs=jobs)
    except KeyboardInterrupt:
        interrupted = True
        err.print("interrupted; go on with 'autonuq resume'")
        try:
            study = load_study(task.name, task.storage)
        except StudyError as error:  # interrupted before there was one
            raise typer.Exit(INTERRUPTED) from error
    record = study.record()
    if record.best is not None:
        written = export_trial(task, study, formats=WINNER_FORMATS)
        report = task.out / "report.html"
        write_report(record, report)
        _print_result(record, record.best, [*written, report])
    elif not interrupted:
        err.print("no trial satisfied the constraint; nothing was written. 'autonuq plot' shows how far they were")
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if record.best is None:
        raise typer.Exit(NOT_SATISFIED)


def _task(file: StudyFile) -> Task:
    """Turn a study file into a task: load its evaluator and its configuration."""
    return Task(
        name=file.name,
        source=file.source,
        evaluator=make_evaluator(file),
        out=file.out,
        storage=file.storage,
        config=load_config(file),
        batch_num=file.batch_num,
        activation_offset=file.activation_offset,
        amct_levels=file.amct_levels,
        python_layers=file.python_layers,
        codec=file.codec,
        sampler=file.sampler,
        seed=file.seed,
        n_trials=file.trials,
        artifacts=file.artifacts,
        provenance={"command": shlex.join(["autonuq", *sys.argv[1:]]), "study file": file.path.read_text()},
        confirm=make_evaluator(file.confirm) if file.confirm is not None else None,
        racing=file.racing,
        stop_gain=file.stop_gain,
    )


def _print_result(record: StudyRecord, best: TrialRecord, written: list[Path]) -> None:
    """Print the table of layers and what the study reached."""
    table = Table(title=f"{record.name}: trial {best.number}, codec {record.codec}", title_justify="left")
    table.add_column("layer")
    for column in ("weights", "levels", "retention", "bytes", "ratio"):
        table.add_column(column, justify="right")
    sizes = record.layer_bytes(best)
    levels = record.layer_levels(best)
    for layer in record.layers:
        count = levels.get(layer.name)
        table.add_row(
            layer.name,
            f"{layer.weights:,}",
            "float" if count is None else str(count),
            "" if count is None else f"{count / 256:.3f}",
            f"{sizes[layer.name]:,}",
            f"{layer.original_bytes / sizes[layer.name]:.2f}x",
        )
    table.add_section()
    total = best.size_bytes or 0
    weights = sum(layer.weights for layer in record.layers)
    table.add_row("all", f"{weights:,}", "", "", f"{total:,}", f"{best.ratio:.2f}x")
    show(table)
    out.print(f"ratio   {best.ratio:.2f}x: {record.original_bytes:,} -> {total:,} bytes of weights")
    before = format_metric(record.original_metric, record.original_standard_error)
    out.print(f"metric  {before} -> {format_metric(best.metric, best.standard_error)}")
    if record.confirmation is not None:
        say(f"confirm {record.confirmation.summary}")
    if record.stopped:
        say(f"stopped {record.stopped}")
    out.print("wrote")
    for path in written:
        out.print(f"  {shown(path)}", soft_wrap=True)


def _open(study: Path, storage: str | None, out: Path | None) -> tuple[StudyFile, Study]:
    file = load_study_file(study, out=out, storage=storage)
    return file, load_study(file.name, file.storage)


@app.command()
def status(
    study: StudyArgument, storage: StorageOption = None, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Say how far a study is.

    Example: `autonuq status studies/fashion_lenet.toml --json`
    """
    opened = _open(study, storage, out)[1]
    record = opened.record()
    if as_json:
        typer.echo(json.dumps(_status(record)))
    else:
        show(_status_table(record, standing(record)))


def _status(record: StudyRecord) -> dict[str, Any]:
    """Describe a study for --json."""
    best = record.best
    complete = [trial for trial in record.trials if trial.state == "complete"]
    counts = {state: sum(trial.state == state for trial in record.trials) for state in ("failed", "running")}
    return {
        "study": record.name,
        "original_metric": record.original_metric,
        "trials": {
            "complete": len(complete),
            "satisfied": sum(bool(trial.satisfied) for trial in complete),
            **counts,
        },
        **_when_there(record),
        "best": None
        if best is None
        else {
            "trial": best.number,
            "ratio": best.ratio,
            "metric": best.metric,
            "levels": record.layer_levels(best),
            "bytes": best.size_bytes,
            "original_bytes": record.original_bytes,
        },
    }


def _when_there(record: StudyRecord) -> dict[str, Any]:
    """Return the keys that only studies with a race, a confirmation or an early end have."""
    partial = sum(trial.is_partial for trial in record.trials)
    found = {
        "partial": partial,
        "stopped": record.stopped,
        "confirmation": None if record.confirmation is None else asdict(record.confirmation),
    }
    return {key: value for key, value in found.items() if value}


def _status_table(record: StudyRecord, now: Standing) -> Table:
    """Describe a study for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    left = f", about {duration(now.left_s)} to go" if now.left_s and now.done < now.target else ""
    failures = [trial for trial in record.trials if trial.state == "failed"]
    partial = sum(trial.is_partial for trial in record.trials)
    raced = f", {partial} stopped on a part" if partial else ""
    feasible = "" if now.feasible is None else f", {now.feasible:.0%} satisfied{raced}"
    table.add_row("study", f"{record.name}, codec {record.codec}")
    counts = f"{now.done} of {now.target}{feasible}, {len(failures)} failed, {len(now.running)} running"
    table.add_row("trials", counts + left)
    if now.best is None:
        table.add_row("best", "no trial satisfied the constraint so far")
    else:
        sizes = f"{record.original_bytes:,} -> {now.best.size_bytes:,} bytes"
        table.add_row("best", f"{now.best.ratio:.2f}x in trial {now.best.number}: {sizes}")
        before = format_metric(record.original_metric, record.original_standard_error)
        table.add_row("metric", f"{before} -> {format_metric(now.best.metric, now.best.standard_error)}")
    if record.confirmation is not None:
        table.add_row("confirmed", Text(record.confirmation.summary))
    if record.stopped:
        table.add_row("stopped", Text(record.stopped))
    for trial in now.running:
        table.add_row("running", f"trial {trial.number} on {trial.worker or 'a worker'}")
    for trial in failures:
        table.add_row("failed", Text(f"trial {trial.number}: {trial.error}"))
    return table


@app.command()
def plot(
    study: StudyArgument,
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(FIGURES)}.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="FILE.html, .png, .svg or .json.")] = None,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Draw a study; without KIND every figure, as HTML and PNG in the study's folder.

    Example: `autonuq plot studies/fashion_lenet.toml front -o front.png`
    """
    if kind is not None and kind not in FIGURES:
        raise _unknown("KIND", kind, FIGURES)
    if kind is None and output is not None:
        raise typer.BadParameter("-o needs a KIND")
    file, opened = _open(study, storage, out)
    record = opened.record()
    for name in [kind] if kind else list(FIGURES):
        targets = [output] if output else [file.out / f"{name}{suffix}" for suffix in (".html", ".png")]
        for target in targets:
            try:
                write_figure(FIGURES[name](record), target)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            say(str(shown(target)))


@app.command()
def report(
    study: StudyArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="FILE.html")] = None,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Write one self-contained page about a study.

    Example: `autonuq report studies/fashion_lenet.toml -o report.html`
    """
    file, opened = _open(study, storage, out)
    target = output or file.out / "report.html"
    write_report(opened.record(), target)
    say(str(shown(target)))


@app.command()
def dashboard(
    study: StudyArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Open optuna-dashboard on a study, with its figures, report and plans, until Ctrl-C.

    Nothing is written to the study. Needs the extra `dashboard`: `pip install 'autonuq[dashboard]'`.

    Example: `autonuq dashboard studies/fashion_lenet.toml --port 8081`
    """
    file, opened = _open(study, storage, out)
    with open_dashboard(opened, file.out, port) as (server, url):
        say(f"{url}; end it with Ctrl-C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@app.command()
def export(
    study: StudyArgument,
    trial: Annotated[str, typer.Option(help="'best' or a trial's number.")] = "best",
    output: Annotated[str | None, typer.Option("--out", help="PREFIX: folder and beginning of the names.")] = None,
    storage: StorageOption = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the study; overrides the file's.")] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help=f"One of {', '.join(FORMATS)}; may be repeated. Or all.")
    ] = None,
) -> None:
    """Write the files of a trial.

    `caffe` (the default): fake-quant pair with AMCT's layer types, deploy pair, record, NUQ layer list, quant.json.
    `pycaffe`: fake-quant pair for a Caffe that nobody patched, with `Python` layers and their file,
    `autonuq_layers.py`. `weights`: pair with float activations, for OpenCV and others. `deploy`: deploy pair, record,
    NUQ layer list. `packed`: one file, PREFIX.nuq, with the bytes that the ratio counts; see `autonuq unpack`. `onnx`:
    QuantizeLinear, DequantizeLinear and int8 weights. `onnx-codebook`: weights as indices into their levels.

    Example: `autonuq export studies/fashion_lenet.toml --trial 7 --format packed --format onnx --out nets/lenet`
    """
    if trial != "best" and not trial.isdecimal():
        raise typer.BadParameter(f"--trial must be 'best' or a number, got '{trial}'")
    try:
        wanted = FORMATS if formats == ["all"] else check_formats(formats or ["caffe"])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    file, opened = _open(study, storage, folder)
    number = None if trial == "best" else int(trial)
    for path in export_trial(_task(file), opened, number, formats=wanted, prefix=output):
        say(str(shown(path)))


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE.nuq", show_default=False)],
    output: Annotated[str, typer.Option("--out", help="PREFIX: folder and beginning of the names.")],
) -> None:
    """Write the network of a packed file as a fake-quant pair, bit for bit the one that was scored.

    Example: `autonuq unpack out/fashion_lenet/fashion_lenet.nuq --out nets/lenet`
    """
    pair = write_unpacked(file, output)
    for path in (pair.model, pair.weights):
        say(str(shown(path)))


def _quiet_log() -> None:
    """Keep AMCT's log off the screen under --quiet; its file has it."""
    if err.quiet:
        os.environ.setdefault("AMCT_LOG_LEVEL", "WARNING")


@app.command()
def config(
    model: ModelArgument,
    weights: WeightsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="config.json to write.")],
    cfg: Annotated[Path | None, typer.Option(help="AMCT's simplified configuration.")] = None,
) -> None:
    """Write AMCT's config.json for a network.

    Example: `autonuq config net.prototxt net.caffemodel -o config.json --cfg quant.cfg`
    """
    _quiet_log()
    amct.create_quant_config(str(output), str(model), str(weights), config_defination=None if cfg is None else str(cfg))
    say(str(shown(output)))


@app.command()
def quantize(
    model: ModelArgument,
    weights: WeightsArgument,
    config: Annotated[Path, typer.Option(help="config.json, as `autonuq config` writes it.")],
    evaluator: Annotated[str, typer.Option(help="file.py:Class or package.module:Class.")],
    output: Annotated[str, typer.Option("--out", help="PREFIX: folder and beginning of the names.")],
    batches: Annotated[int, typer.Option(min=1, help="Of the score, where the class does not say.")] = 1,
) -> None:
    """Quantize as config.json says, without a search: uniform int8, and codebooks of 16 or 32 levels.

    The evaluator feeds the calibration with the batch_num of config.json, then scores the original and the result;
    exit code 8 says that it is not satisfied (the files are there all the same).

    Example: `autonuq quantize net.prototxt net.caffemodel --config config.json --evaluator eval.py:Top1 --out nets/i8`
    """
    _quiet_log()
    chosen = load_evaluator(evaluator, Path.cwd(), batches)
    result = amct.quantize_static(model, weights, config, chosen, output)
    verdict = "satisfied" if result.satisfied else "not satisfied"
    say(f"metric  {format_metric(result.original_metric)} -> {format_metric(result.metric)} ({verdict})")
    for name, levels in result.levels.items():
        say(f"layer   {name}: {levels} levels")
    say("wrote")
    for path in result.written:
        say(f"  {shown(path)}")
    if not result.satisfied:
        raise typer.Exit(NOT_SATISFIED)
