"""AMCT's automatic non-uniform quantization: one call from the float network to all outputs.

The study behind the call lives beside the outputs, in `<save_dir>_study/`: a call that was interrupted goes on where
it stopped, and one that had finished writes its outputs again. Where network, configuration or evaluator are others
now, the study is kept beside a new one, as `<save_dir>_study_1` and so on; nothing is ever deleted.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import count
from pathlib import Path

from autonuq.amct.log import ProgressLog, log_layers, open_log, warn_of
from autonuq.amct.static import warn_of_gain
from autonuq.compress.chip import aimed_config
from autonuq.errors import StudyError, suggest_name
from autonuq.evaluate.evaluator import Evaluator
from autonuq.graph.capability import Capability
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codecs import CODEC_NAMES, broken_rule
from autonuq.quant.config import QuantizationConfig, Target
from autonuq.records import StudyRecord, TrialRecord
from autonuq.settings.config_json import load_config_json
from autonuq.storage.open import default_url, storage_file
from autonuq.study.run import Resumability, StudyRun
from autonuq.study.stored import Study
from autonuq.study.task import Task

AutoNuqEvaluatorBase = Evaluator

CODEC_VARIABLE = "AUTONUQ_CODEC"
"""Of the environment: how a script that knows nothing of codecs chooses one."""


def auto_nuq(
    model_file: str,
    weights_file: str,
    nuq_evaluator: Evaluator,
    config_file: str,
    scale_offset_record_file: str,
    save_dir: str,
    *,
    n_trials: int = Task.n_trials,
    codec: str = Task.codec,
    chip: str = Task.chip,
    marks: str = Task.marks,
    amct_levels: bool = Task.amct_levels,
) -> None:
    """Find the smallest network that still satisfies the evaluator, and write it.

    Parameters
    ----------
    model_file, weights_file : str
        The float network.
    nuq_evaluator : AutoNuqEvaluatorBase
    config_file : str
        config.json of `create_quant_config`.
    scale_offset_record_file : str
        The record file to write.
    save_dir : str
        Folder and beginning of the names of the outputs, despite its name.
    n_trials : int
        How many plans are tried; AMCT has no such argument, nor the next four.
    codec, chip, marks : str
        What bytes are counted with; see `autonuq.tune`. What is not said here is read from `nuq_config`, and a codec
        that nobody names for no chip from the environment variable `AUTONUQ_CODEC`.
    amct_levels : bool
        Give a layer only what AMCT can: 32 or 16 levels, or uniform steps.

    Raises
    ------
    StudyError
        No plan satisfied the evaluator; nothing is written then.
    AutonuqError
        See `errors`.
    """
    graph = load_graph(model_file, weights_file)
    able = capabilities(graph)
    loaded = load_config_json(config_file, able)
    warn_of(loaded.warnings)
    target = _target(Target(codec, chip, marks).over(loaded.config.target))
    config = aimed_config(replace(_searched(loaded.config, able, target), target=target), graph)
    log_layers(able, config)
    _log_target(target)
    source = ModelPair(Path(model_file), Path(weights_file))
    task = _task_of_call(source, nuq_evaluator, config, Path(save_dir), n_trials, amct_levels)
    run, study = _run(task, graph)
    record = study.record()
    winner = record.best
    if winner is None:
        raise StudyError("no plan satisfied the evaluator, so nothing was written", study=task.name)
    Path(scale_offset_record_file).parent.mkdir(parents=True, exist_ok=True)
    run.export(study, prefix=save_dir, record_file=Path(scale_offset_record_file))
    _say_winner(record, winner, save_dir)
    candidate = run.candidate(study, winner.points)
    warn_of_gain({name: candidate.codes(name) for name in candidate.nuq_layers})


def _target(asked: Target) -> Target:
    """Return what bytes are counted with; the environment is asked where nobody else says it.

    Raises
    ------
    StudyError
        The environment names no codec that there is, or chip, marks and codec do not go together.
    """
    if broken := broken_rule(asked):
        raise StudyError(str(broken))
    named = os.environ.get(CODEC_VARIABLE, "")
    if asked.codec or asked.chip or not named:
        return asked
    if named not in CODEC_NAMES:
        rule = f"The environment variable {CODEC_VARIABLE} must be one of {', '.join(CODEC_NAMES)}"
        raise StudyError(f"{rule}. Got '{named}' instead.{suggest_name(named, CODEC_NAMES)}")
    return replace(asked, codec=named)


def _log_target(target: Target) -> None:
    unread = "" if target.codec_name == AscendCodec.name else "; no chip reads it, nuq_config { chip } counts for one"
    open_log().info("weights are counted with %s%s", target.say(), unread)


def _task_of_call(
    source: ModelPair,
    evaluator: Evaluator,
    config: QuantizationConfig,
    prefix: Path,
    n_trials: int,
    amct_levels: bool,
) -> Task:
    out = prefix.parent / f"{prefix.name}_study"
    return Task(
        name=prefix.name or "auto_nuq",
        source=source,
        evaluator=evaluator,
        out=out,
        storage=default_url(out.resolve()),
        config=config,
        codec=config.target.codec,
        chip=config.target.chip,
        marks=config.target.marks,
        amct_levels=amct_levels,
        n_trials=n_trials,
        float_layers="never",  # the configuration alone says what is quantized; AMCT has a call of its own for this
    )


def _say_winner(record: StudyRecord, winner: TrialRecord, save_dir: str) -> None:
    log = open_log()
    for name, levels in record.layer_levels(winner).items():
        log.info("layer '%s': %d levels", name, levels)
    log.info("trial %d wins: ratio %.2f, metric %g", winner.number, winner.ratio, winner.metric)
    log.info("%s", record.say_best())
    if record.stopped:
        log.info("stopped: %s", record.stopped)
    if record.chip is not None:
        log.info("%s", record.say_transfer())
    log.info("the quantized model is stored as %s_*", save_dir)


def _searched(config: QuantizationConfig, able: tuple[Capability, ...], target: Target) -> QuantizationConfig:
    """Return the configuration to search: where it names no NUQ layer, every layer that can carry a codebook."""
    if any(settings.weights.algorithm == "nuq" for settings in config.layers.values()):
        return config
    capable = {capability.name for capability in able if capability.nuq}
    what = f" and that {target.chip} compresses" if target.chip else ""
    warn_of([f"the configuration names no nuq_quantize layer; every layer that can carry a codebook{what} is searched"])
    layers = {
        name: replace(settings, weights=replace(settings.weights, algorithm="nuq")) if name in capable else settings
        for name, settings in config.layers.items()
    }
    return replace(config, layers=layers)


def _run(task: Task, graph: Graph) -> tuple[StudyRun, Study]:
    """Go on with the study that is there, or, where it is another one, keep it and begin anew."""
    run = StudyRun(task, ProgressLog(), graph=graph)
    if _goes_on(run):
        return run, run.run(exists=True)
    run = StudyRun(task, ProgressLog(), graph=graph)  # the first one took on what an older study's version had
    return run, run.run(exists=False)


def _goes_on(run: StudyRun) -> bool:
    """Say whether the study's folder holds the study of this very call; move one that is another's out of the way.

    Raises
    ------
    StudyError
        A process is at work on the other one.
    """
    task = run.task
    file = storage_file(task.storage)
    if file is None or not file.exists():
        return False
    try:
        found = run.resumability()
    except StudyError as error:
        _keep(task.out, f"it cannot be gone on with ({error})")
        return False
    changed = _changed(run, found)
    if not changed:
        _say_how_it_goes_on(task, found.finished)
        return True
    why = f"{', '.join(changed)} changed since"
    if found.worker is not None:
        hint = "wait for that, or give another save_dir"
        raise StudyError(f"{found.worker} is at work on it, but {why}; {hint}", study=task.name)
    _keep(task.out, f"{why}; its {found.finished} trials are there")
    return False


def _changed(run: StudyRun, found: Resumability) -> tuple[str, ...]:
    """Return what is not what it was when the study began; of a finished one, the data are looked at, too."""
    if found.changed or found.finished < run.task.n_trials or run.scores_as_before():
        return found.changed
    return ("the score of the original network",)


def _say_how_it_goes_on(task: Task, finished: int) -> None:
    if finished < task.n_trials:
        open_log().info("goes on with %d of %d trials, which %s holds", finished, task.n_trials, task.out)
        return
    open_log().info(
        "all of %d trials had been made, as %s holds; nothing is searched again, the outputs are written again (for "
        "another search, move that folder away)",
        task.n_trials,
        task.out,
    )


def _keep(out: Path, why: str) -> None:
    """Move the folder of a study to the first free name beside it, and say so."""
    kept = next(path for number in count(1) if not (path := out.with_name(f"{out.name}_{number}")).exists())
    out.rename(kept)
    warn_of([f"the study that was in {out} is kept in {kept}, and a new one is begun: {why}"])
