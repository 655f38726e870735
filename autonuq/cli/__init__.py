"""The commands: thin layers over the public functions, and the only room that prints.

Results go to stdout, progress and messages to stderr. Exit codes are those of `errors`, and 8 where a study finished
without a satisfied trial, 130 where it was interrupted. `console` has the consoles and what every command takes,
`display` the progress of a study, `documents` the schemas of `--json`, `starting` the commands before a study.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from autonuq import amct
from autonuq.amct.simplified import load_simplified
from autonuq.cli.console import CommandGroup, Verbosity, err, out, say, show_error, warn
from autonuq.compress import FORMATS, ChipView, view_on_chip
from autonuq.compress import unpack as write_unpacked
from autonuq.errors import AutonuqError, StudyError
from autonuq.graph.capability import Capability
from autonuq.graph.files import load_graph
from autonuq.graph.passes import capabilities
from autonuq.quant.device import DDR_RATES
from autonuq.records import StudyRecord, TrialRecord, format_metric
from autonuq.report import FIGURES, write_figure, write_report
from autonuq.search import Study, load_study
from autonuq.search.evaluator import load_evaluator
from autonuq.search.study import WINNER_FORMATS, Task, export_trial, run_study
from autonuq.search.study_file import StudyFile, load_study_file, make_evaluator
from autonuq.search.task import Progress as Step

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

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", show_default=False)]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL.prototxt", show_default=False)]
WeightsArgument = Annotated[Path, typer.Argument(metavar="WEIGHTS.caffemodel", show_default=False)]
TrialsOption = Annotated[int | None, typer.Option(min=1, help="Total of the study; overrides the file's.")]
StorageOption = Annotated[str | None, typer.Option(help="Storage URL; overrides the file's.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of results; overrides the file's.")]
TimeoutOption = Annotated[float | None, typer.Option(min=0, help="Seconds after which no trial is started.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> None:
    """Run a command and turn its error into one line and an exit code."""
    Verbosity.reset()
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    try:
        app()
    except (AutonuqError, OSError) as error:
        show_error(error)
        sys.exit(error.exit_code if isinstance(error, AutonuqError) else CANNOT_WRITE)


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
        raise typer.BadParameter(f"--chip must be one of {', '.join(DDR_RATES)}, got '{chip}'")
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
    out.print(table)
    able = sum(layer.nuq for layer in found)
    out.print(f"{sum(layer.weights for layer in found):,} weights; {able} layers can carry a codebook")
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


def _chip_cells(view: ChipView | None) -> tuple[str, str]:
    if view is None:
        return "", ""
    kept = "yes" if view.judgement.is_kept else "no"
    return f"{'yes' if view.mark.is_marked else 'no'}: {view.mark.reason}", f"{kept}: {view.judgement.ratio:.2f}"


@app.command()
def tune(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Start a study, run it, and write the best network.

    Example: `autonuq tune studies/fashion_lenet.toml`
    """
    _run(load_study_file(study, out=out, storage=storage), trials, timeout, exists=False)


@app.command()
def resume(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    timeout: TimeoutOption = None,
) -> None:
    """Go on with a study where its storage stands.

    Example: `autonuq resume studies/fashion_lenet.toml --trials 80`
    """
    _run(load_study_file(study, out=out, storage=storage), trials, timeout, exists=True)


def _run(file: StudyFile, trials: int | None, timeout: float | None, *, exists: bool) -> None:
    task = _task(file)
    task = replace(task, n_trials=trials or task.n_trials)
    interrupted = False
    try:
        with _Display() as display:
            study = run_study(task, exists=exists, on_progress=display.show, timeout=timeout)
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
    config = None
    if file.cfg is not None:
        graph = load_graph(file.source.model, file.source.weights)
        loaded = load_simplified(file.cfg, capabilities(graph), graph)
        for warning in loaded.warnings:
            warn(warning)
        config = loaded.config
    return Task(
        name=file.name,
        source=file.source,
        evaluator=make_evaluator(file),
        out=file.out,
        storage=file.storage,
        config=config,
        batch_num=file.batch_num,
        activation_offset=file.activation_offset,
        codec=file.codec,
        sampler=file.sampler,
        seed=file.seed,
        n_trials=file.trials,
        confirm=make_evaluator(file.confirm) if file.confirm is not None else None,
        racing=file.racing,
        stop_gain=file.stop_gain,
    )


class _Display:
    """A progress bar on a terminal, one line a step elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=err,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Display:
        if err.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, step: Step) -> None:
        """Show one step."""
        best = f"best {step.best.ratio:.2f}x at {step.best.metric:g}" if step.best is not None else ""
        if not err.is_terminal:
            number = f"trial {step.trial.number}: " if step.trial is not None else ""
            verdict = f" ({_verdict(step.trial)}; {best or 'none satisfied yet'})" if step.trial is not None else ""
            err.print(Text(f"{step.stage} {step.done}/{step.total} {number}{step.message}{verdict}"), soft_wrap=True)
            return
        message = best or step.message
        if step.stage not in self._tasks:
            self._tasks[step.stage] = self._bar.add_task(step.stage, total=step.total, message=message)
        self._bar.update(self._tasks[step.stage], completed=step.done, total=step.total, message=message)


def _verdict(trial: TrialRecord) -> str:
    if trial.state == "failed":
        return "failed"
    if trial.is_partial:
        return "stopped on a part"
    return "satisfied" if trial.satisfied else "not satisfied"


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
    out.print(table)
    out.print(f"ratio   {best.ratio:.2f}x: {record.original_bytes:,} -> {total:,} bytes of weights")
    before = format_metric(record.original_metric, record.original_standard_error)
    out.print(f"metric  {before} -> {format_metric(best.metric, best.standard_error)}")
    if record.confirmation is not None:
        say(f"confirm {record.confirmation.summary}")
    if record.stopped:
        say(f"stopped {record.stopped}")
    out.print("wrote")
    for path in written:
        out.print(f"  {_shown(path)}", soft_wrap=True)


def _shown(path: Path) -> Path:
    """Return a path relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


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
    document, record = _status(opened), opened.record()
    if as_json:
        typer.echo(json.dumps(document))
        return
    counts, best = document["trials"], document["best"]
    raced = f" and {document['partial']} stopped on a part" if document["partial"] else ""
    satisfied = f"{counts['satisfied']} of them satisfied{raced}, "
    say(f"{document['study']}: {counts['complete']} trials complete, {satisfied}")
    say(f"{counts['failed']} failed, {counts['running']} running, {document['remaining']} to go")
    if best is None:
        say("no trial satisfied the constraint so far")
    else:
        sizes = f"{best['original_bytes']:,} -> {best['bytes']:,} bytes"
        metrics = f"{document['original_metric']:g} -> {best['metric']:g}"
        say(f"best: trial {best['trial']}, {best['ratio']:.2f}x ({sizes}), metric {metrics}")
    if record.confirmation is not None:
        say(f"confirmed: {record.confirmation.summary}")
    if record.stopped:
        say(f"stopped: {record.stopped}")


def _status(study: Study) -> dict[str, Any]:
    record, best = study.record(), study.best
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
        "partial": sum(trial.is_partial for trial in complete),
        "remaining": max(0, record.target_trials - len(complete) - counts["failed"]),
        "stopped": record.stopped,
        "confirmation": None if record.confirmation is None else asdict(record.confirmation),
        "failures": {trial.number: trial.error for trial in record.trials if trial.state == "failed"},
        "best": None
        if best is None
        else {
            "trial": best.trial,
            "ratio": best.ratio,
            "metric": best.metric,
            "levels": dict(best.levels),
            "bytes": best.size_bytes,
            "original_bytes": record.original_bytes,
        },
    }


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
        raise typer.BadParameter(f"KIND must be one of {', '.join(FIGURES)}, got '{kind}'")
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
            say(str(_shown(target)))


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
    say(str(_shown(target)))


@app.command()
def export(
    study: StudyArgument,
    trial: Annotated[str, typer.Option(help="'best' or a trial's number.")] = "best",
    output: Annotated[str | None, typer.Option("--out", help="PREFIX: folder and beginning of the names.")] = None,
    storage: StorageOption = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the study; overrides the file's.")] = None,
    file_format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "caffe",
) -> None:
    """Write the files of a trial.

    `caffe`: fake-quant and deploy pair, record, NUQ layer list, quant.json. `deploy`: deploy pair, record, NUQ layer
    list. `packed`: one file, PREFIX.nuq, with the bytes that the ratio counts; see `autonuq unpack`.

    Example: `autonuq export studies/fashion_lenet.toml --trial 7 --format packed --out nets/lenet`
    """
    if trial != "best" and not trial.isdecimal():
        raise typer.BadParameter(f"--trial must be 'best' or a number, got '{trial}'")
    if file_format not in FORMATS:
        reason = "onnx is not available yet" if file_format == "onnx" else f"there is no format '{file_format}'"
        raise typer.BadParameter(f"{reason}; --format must be one of {', '.join(FORMATS)}")
    file, opened = _open(study, storage, folder)
    number = None if trial == "best" else int(trial)
    for path in export_trial(_task(file), opened, number, formats=[file_format], prefix=output):
        say(str(_shown(path)))


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
        say(str(_shown(path)))


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
    say(str(_shown(output)))


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
        say(f"  {_shown(path)}")
    if not result.satisfied:
        raise typer.Exit(NOT_SATISFIED)
