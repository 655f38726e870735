"""One plan's network: its codes, its graphs, and the operating points that plans choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.quantize import QuantizedModel
from autonuq.graph.files import ModelPair, write_model
from autonuq.graph.model import Graph, Layer
from autonuq.graph.passes import (
    QuantizedBlobs,
    insert_quantizers,
)
from autonuq.graph.stock_caffe import with_python_layers, write_layers_module
from autonuq.quant.codebook import code_histogram
from autonuq.quant.codecs import make_codec
from autonuq.quant.config import AMCT_LEVELS
from autonuq.quant.points import OperatingPoints
from autonuq.quant.points import build_points as build_layer_points
from autonuq.quant.uniform import dequantize
from autonuq.records import LayerRecord, encode_levels
from autonuq.runtime.moments import load_moments

Plan = Mapping[str, int]
"""Layer name -> index of a point on the layer's curve; layers that are missing stay uniform (point 0)."""


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


def chosen_layers(model: QuantizedModel, plan: Plan) -> tuple[str, ...]:
    """Return the layers that have a codebook, by the plan or from `restrict_levels`, in network order."""
    return tuple(name for name in model.weights if plan.get(name, 0) or model.factors[name].cluster)
