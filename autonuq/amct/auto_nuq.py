"""AMCT's automatic non-uniform quantization: one call from the float network to all outputs.

The study behind the call lives beside the outputs, in `<save_dir>_study/`: a call that was interrupted goes on where
it stopped; one that had finished, or was made for another network, configuration or evaluator, starts anew.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from autonuq.amct.log import ProgressLog, log_layers, open_log, warn_of
from autonuq.amct.static import warn_of_gain
from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import Evaluator
from autonuq.graph.capability import Capability
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.passes import capabilities
from autonuq.quant.config import QuantizationConfig
from autonuq.records import StudyRecord, TrialRecord
from autonuq.settings.config_json import load_config_json
from autonuq.storage.open import default_url
from autonuq.study.run import StudyRun
from autonuq.study.stored import Study
from autonuq.study.task import Task

AutoNuqEvaluatorBase = Evaluator


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
        How many plans are tried; AMCT has no such argument, nor the next two.
    codec : str
        What bytes are counted with; `ascend` is ATC's weight compressor.
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
    config = _searched(loaded.config, able)
    log_layers(able, config)
    source = ModelPair(Path(model_file), Path(weights_file))
    task = _task_of_call(source, nuq_evaluator, config, Path(save_dir), n_trials, codec, amct_levels)
    run = StudyRun(task, ProgressLog(), graph=graph)
    study = _run(run)
    record = study.record()
    winner = record.best
    if winner is None:
        raise StudyError("no plan satisfied the evaluator, so nothing was written", study=task.name)
    Path(scale_offset_record_file).parent.mkdir(parents=True, exist_ok=True)
    run.export(study, prefix=save_dir, record_file=Path(scale_offset_record_file))
    _say_winner(record, winner, save_dir)
    candidate = run.candidate(study, winner.points)
    warn_of_gain({name: candidate.codes(name) for name in candidate.nuq_layers})


def _task_of_call(
    source: ModelPair,
    evaluator: Evaluator,
    config: QuantizationConfig,
    prefix: Path,
    n_trials: int,
    codec: str,
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
        codec=codec,
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
    log.info("the quantized model is stored as %s_*", save_dir)


def _searched(config: QuantizationConfig, able: tuple[Capability, ...]) -> QuantizationConfig:
    """Return the configuration to search: where it names no NUQ layer, every layer that can carry a codebook."""
    if any(settings.weights.algorithm == "nuq" for settings in config.layers.values()):
        return config
    capable = {capability.name for capability in able if capability.nuq}
    warn_of(["the configuration names no nuq_quantize layer; every layer that can carry a codebook is searched"])
    layers = {
        name: replace(settings, weights=replace(settings.weights, algorithm="nuq")) if name in capable else settings
        for name, settings in config.layers.items()
    }
    return replace(config, layers=layers)


def _run(run: StudyRun) -> Study:
    if run.is_resumable():
        return run.run(exists=True)
    shutil.rmtree(run.task.out, ignore_errors=True)
    return run.run(exists=False)
