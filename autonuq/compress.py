"""Where quantization meets the graph: quantize, calibrate, build curves, apply a plan, write the results.

Static quantization stops after `calibrated` and `restrict_levels`, which makes the codebooks that AMCT's configuration
asks for; a record file that somebody else made takes the place of both (`recorded`). In the order of a study::

    model = quantize(graph, config)                    # folded, int8 codes of every layer
    write_calibration_model(model, files)              # somebody runs it for config.batch_num passes ...
    model = calibrated(model, files.record)            # ... and the record file holds the input ranges
    points = dict(build_points(model, codec, record))  # once; no trial sees the raw weights again
    write_fake_quant(model, points, plan, pair)        # once a trial
    export.export(model, points, plan, prefix, codec)  # the winner, in any of the formats there

Names of written files: AMCT's save_model and auto_nuq pages; the packed file is ours (`packed`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autonuq import packed
from autonuq.atomic import replace_text
from autonuq.errors import QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.capability import Capability
from autonuq.graph.files import write_caffemodel, write_model
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.model import Graph, Layer, Shape
from autonuq.graph.passes import (
    WEIGHT_TYPES,
    QuantizedBlobs,
    capabilities,
    fold_batch_norm,
    insert_observers,
    insert_quantizers,
    joint_groups,
)
from autonuq.graph.record import Factors, load_record, write_record
from autonuq.graph.stock_caffe import with_python_layers, write_layers_module
from autonuq.quant.codebook import code_histogram
from autonuq.quant.codecs import make_codec
from autonuq.quant.config import AMCT_LEVELS, LayerSettings, QuantizationConfig
from autonuq.quant.device import Judgement, Mark, judge, predict_mark
from autonuq.quant.points import OperatingPoints
from autonuq.quant.points import build_points as build_layer_points
from autonuq.quant.steps import cluster_of, restrict_codes, snap_codes
from autonuq.quant.uniform import UniformWeights, dequantize, on_grid, quantize_bias, quantize_weights
from autonuq.records import LayerRecord, encode_levels
from autonuq.runtime.moments import is_observable, load_moments, moments_file, request_moments
from autonuq.runtime.session import Session

Plan = Mapping[str, int]
"""Layer name -> index of a point on the layer's curve; layers that are missing stay uniform (point 0)."""


@dataclass(frozen=True)
class ModelPair:
    """A prototxt and its caffemodel."""

    model: Path
    weights: Path


def fake_quant_pair(prefix: str) -> ModelPair:
    """Name the fake-quant pair behind a prefix; AMCT always adds an underscore."""
    return ModelPair(Path(f"{prefix}_fake_quant_model.prototxt"), Path(f"{prefix}_fake_quant_weights.caffemodel"))


def deploy_pair(prefix: str) -> ModelPair:
    """Name the deploy pair behind a prefix."""
    return ModelPair(Path(f"{prefix}_deploy_model.prototxt"), Path(f"{prefix}_deploy_weights.caffemodel"))


def packed_file(prefix: str) -> Path:
    """Name the packed file behind a prefix."""
    return Path(f"{prefix}{packed.SUFFIX}")


@dataclass(frozen=True)
class QuantizedModel:
    """A network with the int8 codes of its layers.

    Attributes
    ----------
    graph : Graph
        Float32, folded.
    config : QuantizationConfig
    weights : mapping of str to UniformWeights
        By name of every quantized layer that has weights.
    factors : mapping of str to Factors
        By name of every quantized layer; scale_d is None before the calibration.
    capabilities : tuple of Capability
        Of every layer of the graph as it was before folding.
    """

    graph: Graph
    config: QuantizationConfig
    weights: Mapping[str, UniformWeights]
    factors: Mapping[str, Factors]
    capabilities: tuple[Capability, ...]

    @cached_property
    def nuq_layers(self) -> tuple[str, ...]:
        """Layers that the configuration wants a codebook for and that can carry one, in network order."""
        able = {capability.name for capability in self.capabilities if capability.nuq}
        return tuple(
            name for name in self.weights if name in able and self.config.layers[name].weights.algorithm == "nuq"
        )


def default_config(
    graph: Graph, *, batch_num: int = 1, activation_offset: bool = True, skip_layers: Iterable[str] = ()
) -> QuantizationConfig:
    """Quantize every layer that can be, with a codebook wherever possible.

    Raises
    ------
    QuantizationError
        A layer to skip does not exist.
    """
    skipped = set(skip_layers)
    unknown = skipped - set(graph.by_name)
    if unknown:
        raise QuantizationError(f"skip_layers names layers that do not exist: {', '.join(sorted(unknown))}")
    settings = {}
    for capability in capabilities(graph):
        if capability.quantizable and capability.name not in skipped:
            channel_wise = capability.type in ("Convolution", "Deconvolution")
            weights = replace(
                LayerSettings().weights, algorithm="nuq" if capability.nuq else "arq", channel_wise=channel_wise
            )
            settings[capability.name] = replace(LayerSettings(), weights=weights)
    return QuantizationConfig(settings, batch_num=batch_num, activation_offset=activation_offset)


@dataclass(frozen=True)
class ChipView:
    """What ATC would do with one layer on one chip.

    Attributes
    ----------
    mark : Mark
        Whether it marks the layer for weight compression, which makes AMCT take it for NUQ.
    judgement : Judgement
        What its compressor makes of the uniform int8 weights.
    """

    mark: Mark
    judgement: Judgement


def predict_marks(graph: Graph, chip: str) -> dict[str, Mark]:
    """Predict which layers ATC marks for weight compression, out of those that can carry a codebook.

    Parameters
    ----------
    graph : Graph
        Folded or not, with or without blobs: shapes decide.
    chip : str
        Key of `quant.device.DDR_RATES`.
    """
    shapes = infer_shapes(graph)
    marks = {}
    for capability in capabilities(graph):
        if not capability.nuq:
            continue
        top = graph.by_name[capability.name].tops[0]
        is_fc = capability.type == "InnerProduct"
        outputs, channels, height, width = (*capability.shape, 1, 1)[:4]
        map_height, map_width = (1, 1) if is_fc else shapes[top][2:]
        marks[capability.name] = predict_mark(
            chip,
            kernel_height=height,
            kernel_width=width,
            channels=channels,
            outputs=outputs,
            map_height=map_height,
            map_width=map_width,
            is_fc=is_fc,
        )
    return marks


def view_on_chip(graph: Graph, chip: str) -> dict[str, ChipView]:
    """Predict what ATC does with every layer that can carry a codebook.

    Parameters
    ----------
    graph : Graph
        With blobs, not folded.
    chip : str
        Key of `quant.device.DDR_RATES`.
    """
    model = quantize(graph, default_config(graph))
    return {
        name: ChipView(mark, judge_layer(model.weights[name].codes))
        for name, mark in predict_marks(graph, chip).items()
    }


def judge_layer(codes: NDArray[np.int8]) -> Judgement:
    """Predict what ATC's compressor makes of a layer's int8 weights."""
    return judge(codes, "fc" if codes.ndim == 2 else "conv")


def quantize(graph: Graph, config: QuantizationConfig) -> QuantizedModel:
    """Fold the graph and quantize the weights of every configured layer to int8.

    Raises
    ------
    QuantizationError
        A layer of the configuration does not exist, cannot be quantized, or its weights are not finite.
    """
    able = capabilities(graph, skip_fusion=config.skip_fusion_layers, do_fusion=config.do_fusion)
    _check_config(config, able)
    folded = fold_batch_norm(graph, config.skip_fusion_layers) if config.do_fusion else graph
    weights, factors = {}, {}
    for layer in folded.layers:
        if layer.name not in config.layers:
            continue
        try:
            uniform = quantize_weights(
                _kernel(layer), channel_axis=_channel_axis(layer, config.layers[layer.name].weights.channel_wise)
            )
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=layer.name) from error
        if layer.type in WEIGHT_TYPES:
            weights[layer.name] = uniform
        scale = tuple(uniform.scale.tolist())
        factors[layer.name] = Factors(scale_w=scale, offset_w=(0,) * len(scale))
    return QuantizedModel(folded, config, weights, factors, able)


def _check_config(config: QuantizationConfig, able: Iterable[Capability]) -> None:
    known = {capability.name: capability for capability in able}
    for name in config.layers:
        if name not in known:
            raise QuantizationError("is configured, but the network has no layer of this name", layer=name)
        if not known[name].quantizable:
            raise QuantizationError(f"cannot be quantized: {known[name].reason}", layer=name)


def _kernel(layer: Layer) -> NDArray[np.float32]:
    """Return a layer's weights; AVE Pooling has none, its kernel is the constant 1/area."""
    if layer.type != "Pooling":
        return layer.blobs[0]
    message = layer.message.pooling_param
    area = (message.kernel_h or message.kernel_size) * (message.kernel_w or message.kernel_size)
    return np.full((1,), 1 / area, np.float32)


def _channel_axis(layer: Layer, channel_wise: bool) -> int | None:
    """Return the axis of output channels in the weight blob, or None for one scale."""
    if not channel_wise or layer.type not in ("Convolution", "Deconvolution"):
        return None
    return 0 if layer.type == "Convolution" else 1


def restrict_levels(model: QuantizedModel, record_file: Path | None = None) -> QuantizedModel:
    """Restrict every layer that is to have a codebook to the number of levels that its settings say.

    Parameters
    ----------
    model : QuantizedModel
        With uniform codes.
    record_file : Path, optional
        Beside it the calibration left the second moments of the layers' inputs; without them weights count alone.

    Returns
    -------
    QuantizedModel
        Its weights hold levels only, its factors the `cluster`; a plan has nothing left to choose.
    """
    weights, factors = dict(model.weights), dict(model.factors)
    for name in model.nuq_layers:
        steps = model.config.layers[name].weights.num_steps
        moments = None if record_file is None else load_moments(record_file, name)
        try:
            weights[name] = restrict_codes(model.graph.by_name[name].blobs[0], weights[name], steps, moments)
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=name) from error
        factors[name] = replace(factors[name], cluster=cluster_of(weights[name].codes, steps))
    return replace(model, weights=weights, factors=factors)


def recorded(graph: Graph, records: Mapping[str, Factors], path: Path) -> QuantizedModel:
    """Quantize a float network by the factors of a record file that was made elsewhere.

    Parameters
    ----------
    graph : Graph
        With blobs, not folded.
    records : mapping of str to Factors
        By layer name, complete; every other layer stays float. Weights of a layer with a `cluster` go to its levels.
    path : Path
        Of the record file, for messages.

    Raises
    ------
    QuantizationError
        The record does not match the network.
    """
    skip_fusion = tuple(name for name, factors in records.items() if factors.skip_fusion)
    able = capabilities(graph, skip_fusion=skip_fusion)
    config = QuantizationConfig({name: LayerSettings() for name in records}, skip_fusion_layers=skip_fusion)
    _check_config(config, able)
    folded = fold_batch_norm(graph, skip_fusion)
    shapes = infer_shapes(folded)
    weights, settings = {}, {}
    for layer in folded.layers:
        if layer.name not in records:
            continue
        factors, kernel = records[layer.name], _kernel(layer)
        axis = _channel_axis(layer, len(factors.scale_w) > 1)
        _check_recorded(layer, factors, 1 if axis is None else kernel.shape[axis], shapes[layer.bottoms[0]], path)
        if layer.type in WEIGHT_TYPES:
            uniform = on_grid(kernel, np.asarray(factors.scale_w, np.float32), axis)
            levels = np.asarray(factors.cluster, np.int8)
            weights[layer.name] = snap_codes(uniform, levels) if factors.cluster else uniform
        by_codebook = replace(LayerSettings().weights, algorithm="nuq" if factors.cluster else "arq")
        settings[layer.name] = replace(LayerSettings(), weights=by_codebook)
    return QuantizedModel(folded, replace(config, layers=settings), weights, records, able)


def _check_recorded(layer: Layer, factors: Factors, channels: int, bottom: Shape, path: Path) -> None:
    """Refuse factors that cannot belong to a layer whose weights have so many scales and whose input has this shape."""
    if len(factors.scale_w) != channels:
        rule = f"scale_w must have length {channels}" if channels > 1 else "scale_w must have length 1"
        raise QuantizationError(f"{rule}. Got {len(factors.scale_w)} instead.", path=path, layer=layer.name)
    if len(factors.shift_bit) not in (0, channels):
        rule = f"shift_bit must be left out or have length {channels}"
        raise QuantizationError(f"{rule}. Got {len(factors.shift_bit)} instead.", path=path, layer=layer.name)
    own = (*bottom[1:], 1, 1, 1)[:3]
    found = (factors.channels, factors.height, factors.width)
    if found[0] != own[0]:
        raise QuantizationError(
            f"channels, height, width must be those of the layer's input, {own}. Got {found} instead; is the record of "
            "another network?",
            path=path,
            layer=layer.name,
        )


def write_calibration_model(
    model: QuantizedModel, pair: ModelPair, record_file: Path, *, python_layers: bool = False
) -> None:
    """Write the modified model: fake-quantized weights, and a calibration layer before every quantized layer.

    The record file is written with the weights' factors; running the model for `config.batch_num` forward passes
    adds the inputs' factors to it, and, in our runtime and by `Python` layers, the second moments of the inputs beside
    it. For `python_layers` see `write_fake_quant`.
    """
    write_record(record_file, model.factors)
    request_moments(record_file, model.nuq_layers)
    config = model.config
    observed = insert_observers(
        weights_only_graph(model, {}, {}),
        {name: settings.activation for name, settings in config.layers.items()},
        batch_num=config.batch_num,
        with_offset=config.activation_offset,
        record_file=record_file,
        joint=joint_groups(model.graph, config.layers) if config.joint_quant else (),
    )
    moments = {
        name: moments_file(record_file, name) for name in model.nuq_layers if is_observable(model.graph.by_name[name])
    }
    _write_runnable(observed, pair, python_layers, moments)


def calibrated(model: QuantizedModel, record_file: Path) -> QuantizedModel:
    """Return the model with the factors of a record file.

    Raises
    ------
    QuantizationError
        A layer has no input factors (too few forward passes), or factors of other weights.
    """
    records = load_record(record_file)
    factors = {}
    for name, own in model.factors.items():
        found = records.get(name)
        if found is None or found.scale_d is None:
            raise QuantizationError(
                f"has no activation factors in {record_file}: the calibration needs {model.config.batch_num} forward "
                "passes (batch_num) of the whole modified network",
                layer=name,
            )
        if not np.array_equal(np.asarray(found.scale_w, np.float32), np.asarray(own.scale_w, np.float32)):
            raise QuantizationError(f"{record_file} holds the factors of other weights", layer=name)
        factors[name] = replace(found, cluster=own.cluster)
    return replace(model, factors=factors)


def build_points(
    model: QuantizedModel, codec: str, record_file: Path, on_layer: Callable[[str], None] = lambda name: None
) -> Iterator[tuple[str, OperatingPoints]]:
    """Build the operating points of every layer with int8 weights, one layer after the other.

    Parameters
    ----------
    record_file : Path
        Beside it the calibration left the second moments of the layers' inputs; layers without do without.
    on_layer : callable
        Told each layer's name when its points are done.

    Yields
    ------
    (name, OperatingPoints)
        Layers without a codebook have one point.
    """
    searched = set(model.nuq_layers)
    for name, uniform in model.weights.items():
        yield (
            name,
            build_layer_points(
                name,
                model.graph.by_name[name].blobs[0],
                uniform,
                make_codec(codec, uniform.codes.shape),
                moments=load_moments(record_file, name),
                nuq=name in searched,
                sizes=AMCT_LEVELS if model.config.amct_levels else None,
            ),
        )
        on_layer(name)


def layer_records(model: QuantizedModel, points: Mapping[str, OperatingPoints]) -> tuple[LayerRecord, ...]:
    """Describe every layer with weights, for reports."""
    searched = set(model.nuq_layers)
    records = []
    for capability in model.capabilities:
        if not capability.weights:
            continue
        name, found = capability.name, points.get(capability.name)
        if found is None:
            reason = capability.reason or "is left out by the configuration"
            size = 4 * capability.weights
            records.append(
                LayerRecord(name, capability.type, capability.weights, "float", reason, (size,), (0.0,), (0,))
            )
            continue
        curve = found.curve
        treatment: Literal["nuq", "uniform"] = "nuq" if name in searched else "uniform"
        reason = "" if name in searched else capability.reason or "the configuration asks for uniform steps"
        records.append(
            LayerRecord(
                name,
                capability.type,
                capability.weights,
                treatment,
                reason,
                tuple(int(rate) for rate in curve.rates_bytes),
                tuple(float(distortion) for distortion in curve.distortions),
                (256, *(len(codebook.levels) for codebook in curve.codebooks[1:])),
                tuple(code_histogram(model.weights[name].codes).tolist()),
                tuple(encode_levels(codebook.levels) for codebook in curve.codebooks),
            )
        )
    return tuple(records)


def planned_codes(
    model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan, name: str
) -> NDArray[np.int8]:
    """Return a layer's int8 codes under a plan."""
    point = plan.get(name, 0)
    return points[name].codes[point] if point else model.weights[name].codes


def write_fake_quant(
    model: QuantizedModel,
    points: Mapping[str, OperatingPoints],
    plan: Plan,
    pair: ModelPair,
    *,
    python_layers: bool = False,
) -> None:
    """Write the network with a plan's weights and fake-quantized inputs, as it is scored.

    Parameters
    ----------
    python_layers : bool
        For a Caffe without AMCT's layers: they become `Python` layers, whose file is written beside the model.
    """
    _write_runnable(fake_quant_graph(model, points, plan), pair, python_layers)


def _write_runnable(
    graph: Graph, pair: ModelPair, python_layers: bool, moments: Mapping[str, Path] | None = None
) -> None:
    if python_layers:
        write_layers_module(pair.model.parent)
        graph = with_python_layers(graph, moments)
    write_model(graph, pair.model, pair.weights)


def weights_only_graph(model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan) -> Graph:
    """Return the network with a plan's weights, its activations left float."""
    return model.graph.with_layers(
        layer.with_(blobs=_planned_blobs(model, points, plan, layer)) for layer in model.graph.layers
    )


def _planned_blobs(
    model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan, layer: Layer
) -> tuple[NDArray[Any], ...]:
    """Return a layer's blobs, its weights as the plan has them in float32."""
    uniform = model.weights.get(layer.name)
    if uniform is None:
        return layer.blobs
    codes = planned_codes(model, points, plan, layer.name)
    return (dequantize(codes, uniform.scale, uniform.channel_axis), *layer.blobs[1:])


def fake_quant_graph(model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan) -> Graph:
    """Return the network of `write_fake_quant`."""
    quantized = {
        name: QuantizedBlobs(_planned_blobs(model, points, plan, model.graph.by_name[name]), factors)
        for name, factors in model.factors.items()
    }
    return insert_quantizers(model.graph, quantized)


def layer_outputs(
    model: QuantizedModel, name: str, inputs: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the output of one layer alone for given inputs, float and fake-quantized.

    Parameters
    ----------
    model : QuantizedModel
        Calibrated.
    name : str
        A quantized layer.
    inputs : ndarray of float32
        In the shape of the layer's bottom, any number of images.
    """
    layer = model.graph.by_name[name]
    source = Layer(caffe_pb2.LayerParameter(name="input", type="Input", top=layer.bottoms))
    source.message.input_param.shape.add(dim=inputs.shape)
    single = Graph(name, (source, layer))
    blobs = _planned_blobs(model, {}, {}, layer)
    fake = insert_quantizers(single, {name: QuantizedBlobs(blobs, model.factors[name])})
    (bottom,), (top,) = layer.bottoms, layer.tops
    outputs = (Session(lower(graph, outputs=[top])).run({bottom: inputs})[top] for graph in (single, fake))
    return next(outputs), next(outputs)


def write_deploy(model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan, pair: ModelPair) -> None:
    """Write the network for ATC: int8 weights, int32 biases, packed dequantization parameters.

    Raises
    ------
    QuantizationError
        A bias does not fit int32.
    """
    quantized = {}
    for name, factors in model.factors.items():
        blobs: tuple[NDArray[Any], ...] = ()
        if name in model.weights:
            biases = (_device_bias(name, bias, factors) for bias in model.graph.by_name[name].blobs[1:])
            blobs = (planned_codes(model, points, plan, name), *biases)
        quantized[name] = QuantizedBlobs(blobs, factors)
    write_model(insert_quantizers(model.graph, quantized, deploy=True), pair.model, pair.weights)


def _device_bias(name: str, bias: NDArray[np.float32], factors: Factors) -> NDArray[np.int32]:
    try:
        return quantize_bias(bias, float(factors.scale_d or 0), np.asarray(factors.scale_w, np.float32))
    except QuantizationError as error:
        raise QuantizationError(str(error), layer=name) from error


def write_packed(
    model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan, codec: str, path: Path
) -> None:
    """Write the network of `write_fake_quant` as one file that holds the codec's bytes instead of weights."""
    layers = {}
    for name, factors in model.factors.items():
        layers[name] = packed.PackedLayer(factors)
        if name in model.weights:
            codes = planned_codes(model, points, plan, name)
            stream = make_codec(codec, codes.shape).encode(codes)
            layers[name] = packed.PackedLayer(factors, codec, model.weights[name].channel_axis, stream)
    packed.write_packed(fake_quant_graph(model, points, plan), layers, path)


def unpack(path: str | Path, prefix: str) -> ModelPair:
    """Write the fake-quant pair that a packed file holds.

    Parameters
    ----------
    path : str or Path
        The packed file.
    prefix : str
        Folder and beginning of the file names; the folder is made if need be.

    Raises
    ------
    QuantizationError
        The file cannot be read, is no packed file, damaged or truncated; nothing is written then.
    OSError
        The folder cannot be written.
    """
    network, pair = packed.load_packed(path), fake_quant_pair(prefix)
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    replace_text(pair.model, network.prototxt)
    write_caffemodel(network.graph, pair.weights)
    return pair


def chosen_layers(model: QuantizedModel, plan: Plan) -> tuple[str, ...]:
    """Return the layers that have a codebook, by the plan or from `restrict_levels`, in network order."""
    return tuple(name for name in model.weights if plan.get(name, 0) or model.factors[name].cluster)


def write_nuq_layers(model: QuantizedModel, plan: Plan, prefix: str) -> Path:
    """Write the list that ATC reads as `--compress_weight_conf`."""
    return replace_text(f"{prefix}_nuq_layer_record.txt", ";".join(chosen_layers(model, plan)))


def write_quant_info(model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan, prefix: str) -> Path:
    """Write what AMCT's accuracy comparison wants to know: where quantizers stand and what was folded."""
    return replace_text(f"{prefix}_quant.json", json.dumps(_quant_info(model, points, plan), indent=4))


def _quant_info(model: QuantizedModel, points: Mapping[str, OperatingPoints], plan: Plan) -> dict[str, object]:
    """Say where quantizers stand and what was folded; AMCT's own schema is not public (`amct.unsaid`)."""
    folded: dict[str, list[str]] = {}
    for capability in model.capabilities:
        if capability.name not in model.graph.by_name:
            host = capability.reason.removeprefix("is folded into ").strip("'")
            folded.setdefault(host, []).append(capability.name)
    layers = {}
    quantized = insert_quantizers(
        model.graph, {name: QuantizedBlobs((), factors) for name, factors in model.factors.items()}
    )
    chosen = set(chosen_layers(model, plan))
    for name, factors in model.factors.items():
        levels = np.unique(planned_codes(model, points, plan, name)).tolist() if name in chosen else []
        layers[name] = {
            "type": model.graph.by_name[name].type,
            "quant_layer": quantized.by_name[name].bottoms[0],
            "dequant_layer": f"{name}_dequant_layer",
            "scale_d": factors.scale_d,
            "offset_d": factors.offset_d,
            "folded": folded.get(name, []),
            "weights": "nuq" if levels else "uniform",
            "levels": levels,
        }
    return {"version": 1, "network": model.graph.name, "layers": layers}
