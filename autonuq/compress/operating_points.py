"""What the layers of a network can become: their operating points, and their description for reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.chip import codecs_of, uncompressed_layers
from autonuq.compress.quantized import QuantizedModel
from autonuq.graph.model import Graph
from autonuq.graph.passes import WEIGHT_TYPES
from autonuq.quant.codebook import code_histogram
from autonuq.quant.config import AMCT_LEVELS
from autonuq.quant.points import OperatingPoints, Tuning, build_points
from autonuq.quant.uniform import UniformWeights
from autonuq.records import INT8_STEPS, LayerRecord, encode_levels
from autonuq.runtime.moments import load_moments


def build_network_points(
    model: QuantizedModel,
    record_file: Path,
    on_layer: Callable[[str], None] = lambda name: None,
    *,
    costs: Mapping[str, NDArray[np.float64]] | None = None,
    tuning: Tuning | None = None,
) -> Iterator[tuple[str, OperatingPoints]]:
    """Build the operating points of every layer with int8 weights, one layer after the other.

    Parameters
    ----------
    record_file : Path
        Beside it the calibration left what the layers' weights meet; layers without do without.
    on_layer : callable
        Told each layer's name when its points are done.
    costs : mapping of str to ndarray of float64, shape (outputs, outputs), optional
        What errors of the layers' outputs cost; see `build_points`.
    tuning : Tuning, optional
        Of an entropy coder's grids.

    Yields
    ------
    (name, OperatingPoints)
        Layers without a codebook have one point.
    """
    searched, behind, codecs = set(model.nuq_layers), layers_behind_weights(model.graph), codecs_of(model)
    for name, uniform in model.weights.items():
        layer = model.graph.by_name[name]
        yield (
            name,
            build_points(
                name,
                layer.blobs[0],
                uniform,
                codecs[name],
                inputs=load_moments(record_file, layer),
                costs=(costs or {}).get(name),
                tuning=tuning,
                has_bias=len(layer.blobs) > 1 and name in behind,
                nuq=name in searched,
                sizes=AMCT_LEVELS if model.config.amct_levels else None,
                output_axis=1 if layer.type == "Deconvolution" else 0,
            ),
        )
        on_layer(name)


def layers_behind_weights(graph: Graph) -> set[str]:
    """Return the layers with weights that read what other ones made: a bias of theirs takes up their mean error.

    The network's own inputs have flat areas, a black border for one, where the output of a first layer would be wrong
    by the same everywhere. On resnet20-fashion that made the KL of the first layer alone 170 times as large.
    """
    made, found = set(), set()
    for index, layer in enumerate(graph.layers):
        is_behind = any(producer in made for producer, _ in graph.sources[index])
        if layer.type in WEIGHT_TYPES and is_behind:
            found.add(layer.name)
        if layer.type in WEIGHT_TYPES or is_behind:
            made.add(index)
    return found


def describe_layers(
    model: QuantizedModel, points: Mapping[str, OperatingPoints], float_reasons: Mapping[str, str] | None = None
) -> tuple[LayerRecord, ...]:
    """Describe every layer with weights, for reports.

    Parameters
    ----------
    float_reasons : mapping of str to str, optional
        Why layers stay float that could be quantized.
    """
    searched, left = set(model.nuq_layers), uncompressed_layers(model)
    records = []
    for capability in model.capabilities:
        if not capability.weights:
            continue
        name, found = capability.name, points.get(capability.name)
        if found is None:
            reason = (float_reasons or {}).get(name) or capability.reason or "is left out by the configuration"
            size = 4 * capability.weights
            records.append(
                LayerRecord(name, capability.type, capability.weights, "float", reason, (size,), (0.0,), (0,))
            )
            continue
        curve = found.curve
        treatment: Literal["nuq", "uniform"] = "nuq" if name in searched else "uniform"
        why = capability.reason or left.get(name) or "the configuration asks for uniform steps"
        reason = "" if name in searched else why
        records.append(
            LayerRecord(
                name,
                capability.type,
                capability.weights,
                treatment,
                reason,
                tuple(int(rate) for rate in curve.rates_bytes),
                tuple(float(distortion) for distortion in curve.distortions),
                (INT8_STEPS, *(len(codebook.levels) for codebook in curve.codebooks[1:])),
                tuple(code_histogram(model.weights[name].codes).tolist()),
                tuple(encode_levels(codebook.levels) for codebook in curve.codebooks),
                _steps(found, model.weights[name]),
            )
        )
    return tuple(records)


def _steps(points: OperatingPoints, uniform: UniformWeights) -> tuple[float, ...]:
    """Return the median width of a step at each point, in int8 steps; nothing where all are int8's."""
    if points.scale is None or np.all(points.scale == uniform.scale):
        return ()
    return tuple(np.median(points.scale / uniform.scale, axis=1).astype(float).round(3).tolist())
