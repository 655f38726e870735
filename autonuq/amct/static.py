"""AMCT's static flow: init, quantize_model, the user's own forward passes, save_model; and convert_model.

Uniform and non-uniform quantization take the same way; only the configuration differs. The calibration layers of the
modified model fill the record file while the user runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.amct.log import log_layers, open_log, warn_of
from autonuq.atomic import temporary_folder
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import judge_layer
from autonuq.compress.outputs import (
    deploy_pair,
    fake_quant_pair,
    record_path,
    write_deploy,
    write_fake_quant,
    write_nuq_layers,
    write_quant_info,
)
from autonuq.compress.quantized import QuantizedModel, quantize, recorded, restrict_levels
from autonuq.evaluate.evaluator import check_evaluator, is_satisfied, run_calibration, score
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities
from autonuq.graph.record import load_record, write_record
from autonuq.graph.shapes.channels import has_own_scale
from autonuq.quant.atc.chips import KEEP_RATIO
from autonuq.quant.config import QuantizationConfig
from autonuq.runtime.moments import request_moments
from autonuq.settings.config_json import load_config_json

SAVE_TYPES = ("Fakequant", "Deploy", "Both")
_QUANTIZED_TYPES = frozenset({"Quant", "DeQuant", "AntiQuant", "IFMR", "HFMG", "SearchN"})


@dataclass(frozen=True)
class InitializedModel:
    """What `init` returns for `quantize_model` and `save_model`; AMCT documents nothing about its inside.

    Attributes
    ----------
    model : QuantizedModel
        With uniform int8 weights.
    record_file : Path
        Absolute, because the user may change the working directory before the forward passes.
    """

    model: QuantizedModel
    record_file: Path


def init(
    config_file: str | Path, model_file: str | Path, weights_file: str | Path, scale_offset_record_file: str | Path
) -> InitializedModel:
    """Read the network and its configuration and empty the record file.

    Parameters
    ----------
    config_file : str
        config.json of `create_quant_config` for the same network.
    model_file, weights_file : str
        prototxt and caffemodel.
    scale_offset_record_file : str
        Replaced if it exists.

    Returns
    -------
    InitializedModel
        For `quantize_model` and `save_model`.

    Raises
    ------
    ModelError
        A file cannot be used, or a BatchNorm is not in inference mode.
    QuantizationError
        The configuration breaks a rule or belongs to another network.
    """
    model = quantize(*load_configured(model_file, weights_file, config_file))
    record_file = Path(scale_offset_record_file).resolve()
    record_file.parent.mkdir(parents=True, exist_ok=True)
    request_moments(record_file, ())
    write_record(record_file, {})
    return InitializedModel(model, record_file)


def quantize_model(graph: InitializedModel, modified_model_file: str | Path, modified_weights_file: str | Path) -> None:
    """Write the modified model, whose calibration layers watch the inputs of every quantized layer.

    Its weights are fake-quantized; the record file gets their scales. Run it for the configuration's batch_num forward
    passes before `save_model`.

    Parameters
    ----------
    graph : InitializedModel
        Of `init`.
    modified_model_file, modified_weights_file : str
        prototxt and caffemodel to write.

    Raises
    ------
    QuantizationError
        `joint_quant` cannot be had.
    TypeError
        `graph` is none of `init`.
    """
    _check_graph(graph, "quantize_model")
    pair = ModelPair(Path(modified_model_file), Path(modified_weights_file))
    for path in (pair.model, pair.weights):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_calibration_model(restrict_levels(graph.model), pair, graph.record_file, graph.model.nuq_layers)
    passes = graph.model.config.batch_num
    open_log().info("wrote %s; run it for %d forward passes, then call save_model", pair.model, passes)


def save_model(graph: InitializedModel, save_type: str, save_path: str) -> None:
    """Write the quantized network after the calibration.

    Parameters
    ----------
    graph : InitializedModel
        Of `init`.
    save_type : {"Fakequant", "Deploy", "Both"}
        For simulation in Caffe, for ATC, or both.
    save_path : str
        Folder and beginning of the file names; an underscore is always added.

    Raises
    ------
    QuantizationError
        A layer has no complete factors in the record file (too few forward passes), or its bias does not fit int32.
    ValueError, TypeError
        A parameter is misused.

    Notes
    -----
    Layers with a codebook are rounded to it by error feedback where our runtime did the forward passes, for it leaves
    second moments beside the record file; see `unsaid`.
    """
    _check_graph(graph, "save_model")
    if save_type not in SAVE_TYPES:
        rule = f"one of {', '.join(SAVE_TYPES)}"
        raise ValueError(f"The 'save_type' parameter of save_model must be {rule}. Got {save_type!r} instead.")
    model = calibrated(graph.model, graph.record_file)
    write_outputs(restrict_levels(model, graph.record_file), save_type, str(save_path))


@dataclass(frozen=True)
class StaticResult:
    """What `quantize_static` made.

    Attributes
    ----------
    original_metric, metric : float
    satisfied : bool
    levels : mapping of str to int
        Distinct int8 steps of every layer with weights.
    written : tuple of Path
    """

    original_metric: float
    metric: float
    satisfied: bool
    levels: Mapping[str, int]
    written: tuple[Path, ...]


def quantize_static(
    model_file: str | Path, weights_file: str | Path, config_file: str | Path, evaluator: Any, prefix: str
) -> StaticResult:
    """Take the whole static way in one call: an evaluator feeds the calibration and scores the result.

    Parameters
    ----------
    model_file, weights_file : str
        The float network.
    config_file : str
        config.json of `create_quant_config`.
    evaluator : AutoNuqEvaluatorBase
    prefix : str
        Folder and beginning of the file names; `<prefix>_record.txt` is the record file.

    Raises
    ------
    AutonuqError
        See `init`, `save_model` and `evaluate.evaluator`.
    """
    check_evaluator(evaluator)
    record_file = record_path(prefix)
    graph = init(config_file, model_file, weights_file, record_file)
    original = score(evaluator, ModelPair(Path(model_file), Path(weights_file)))
    with temporary_folder(record_file.parent) as scratch:
        modified = ModelPair(scratch / "modified_model.prototxt", scratch / "modified_model.caffemodel")
        quantize_model(graph, modified.model, modified.weights)
        run_calibration(evaluator, modified, graph.model.config.batch_num)
    model = restrict_levels(calibrated(graph.model, graph.record_file), graph.record_file)
    written = write_outputs(model, "Both", prefix)
    request_moments(graph.record_file, ())
    metric = score(evaluator, fake_quant_pair(prefix))
    levels = {name: len(np.unique(uniform.codes)) for name, uniform in model.weights.items()}
    return StaticResult(original, metric, is_satisfied(evaluator, original, metric), levels, (*written, record_file))


def convert_model(
    model_file: str | Path, weights_file: str | Path, scale_offset_record_file: str | Path, save_path: str
) -> None:
    """Quantize a network by factors that were computed elsewhere.

    Parameters
    ----------
    model_file, weights_file : str
        The float network.
    scale_offset_record_file : str
        A record with all factors of every layer that is to be quantized; `skip_fusion` in it is obeyed.
    save_path : str
        Folder and beginning of the file names; an underscore is always added.

    Raises
    ------
    ModelError
        A file cannot be used, the network is quantized already, or a BatchNorm is not in inference mode.
    QuantizationError
        The record is incomplete, breaks a rule, or does not match the network; or a bias does not fit int32.
    """
    network = _load_float_network(model_file, weights_file)
    path = Path(scale_offset_record_file)
    model = recorded(network, load_record(path, complete=True), path)
    log_layers(model.capabilities, model.config)
    write_outputs(model, "Both", str(save_path))


def write_outputs(model: QuantizedModel, save_type: str, prefix: str) -> tuple[Path, ...]:
    """Write what `save_model` writes, of a calibrated model whose levels are chosen, and return the paths."""
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    candidate, deploy, fake_quant = Candidate(model), deploy_pair(prefix), fake_quant_pair(prefix)
    written: list[Path] = []
    if save_type != "Fakequant":  # first, because an int32 overflow must leave nothing behind
        write_deploy(candidate, deploy)
        written += [deploy.model, deploy.weights]
    if save_type != "Deploy":
        write_fake_quant(candidate, fake_quant)
        written += [fake_quant.model, fake_quant.weights]
    written += [write_quant_info(candidate, prefix), write_nuq_layers(candidate, prefix)]
    if any(factors.cluster for factors in model.factors.values()):
        written.append(write_record(f"{prefix}_cluster_record.txt", model.factors, clusters=True))
    warn_of_gain({name: candidate.codes(name) for name in candidate.nuq_layers})
    open_log().info("the quantized model is stored as %s_*", prefix)
    return tuple(written)


def warn_of_gain(codes: Mapping[str, NDArray[np.int8]]) -> None:
    """Name the layers whose codebook gains nothing on a device, because ATC would not keep them compressed."""
    messages = []
    for name, layer in codes.items():
        judgement = judge_layer(layer)
        if not judgement.is_kept:
            messages.append(
                f"layer '{name}': ATC compresses its weights to {judgement.ratio:.2f} and keeps only what is at most "
                f"{KEEP_RATIO}, so its codebook gains nothing on a device"
            )
    warn_of(messages)


def load_configured(
    model_file: str | Path, weights_file: str | Path, config_file: str | Path
) -> tuple[Graph, QuantizationConfig]:
    """Load a float network and its config.json, and log what each layer gets; for errors see `init`."""
    network = _load_float_network(model_file, weights_file)
    able = capabilities(network)
    loaded = load_config_json(config_file, able)
    warn_of(loaded.warnings)
    log_layers(able, loaded.config)
    return network, loaded.config


def _load_float_network(model_file: str | Path, weights_file: str | Path) -> Graph:
    """Load a network; refuse one that is quantized already, and BatchNorm that does not say inference mode."""
    network = load_graph(model_file, weights_file)
    for layer in network.layers:
        if layer.type in _QUANTIZED_TYPES:
            raise network.error(layer, f"type '{layer.type}' belongs to a quantized model; give the float model")
        stored = layer.message.batch_norm_param.use_global_stats or has_own_scale(layer)
        if layer.type == "BatchNorm" and not stored:
            raise network.error(
                layer, "quantization needs a BatchNorm in inference mode: set use_global_stats: true in its prototxt"
            )
    return network


def _check_graph(graph: object, function: str) -> None:
    if not isinstance(graph, InitializedModel):
        raise TypeError(f"The 'graph' parameter of {function} must be what init returned. Got {graph!r} instead.")
