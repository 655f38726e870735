"""The files that a plan's network is written as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import replace_text
from autonuq.compress import packed
from autonuq.compress.candidate import Plan, chosen_layers, fake_quant_graph, planned_codes
from autonuq.compress.quantize import QuantizedModel
from autonuq.errors import QuantizationError
from autonuq.graph.files import ModelPair, write_caffemodel, write_model
from autonuq.graph.passes import (
    QuantizedBlobs,
    insert_quantizers,
)
from autonuq.graph.record import Factors
from autonuq.quant.codecs import make_codec
from autonuq.quant.points import OperatingPoints
from autonuq.quant.uniform import quantize_bias


def fake_quant_pair(prefix: str) -> ModelPair:
    """Name the fake-quant pair behind a prefix; AMCT always adds an underscore."""
    return ModelPair(Path(f"{prefix}_fake_quant_model.prototxt"), Path(f"{prefix}_fake_quant_weights.caffemodel"))


def deploy_pair(prefix: str) -> ModelPair:
    """Name the deploy pair behind a prefix."""
    return ModelPair(Path(f"{prefix}_deploy_model.prototxt"), Path(f"{prefix}_deploy_weights.caffemodel"))


def packed_file(prefix: str) -> Path:
    """Name the packed file behind a prefix."""
    return Path(f"{prefix}{packed.SUFFIX}")


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
