"""The files that a candidate's network is written as.

Names: AMCT's save_model and auto_nuq pages; the packed file is ours (`packed_file`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from autonuq.atomic import replace_file, replace_text
from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import codecs_of, compressed_layers
from autonuq.compress.packed_file import SUFFIX, PackedLayer, PackedNetwork, write_packed
from autonuq.graph.files import ModelPair, write_caffemodel, write_model
from autonuq.graph.model import Graph
from autonuq.graph.passes import QuantizedBlobs, insert_quantizers
from autonuq.graph.stock_caffe import with_python_layers, write_layers_module
from autonuq.graph.text import encode_text


def fake_quant_pair(prefix: str) -> ModelPair:
    """Name the fake-quant pair behind a prefix; AMCT always adds an underscore."""
    return ModelPair(Path(f"{prefix}_fake_quant_model.prototxt"), Path(f"{prefix}_fake_quant_weights.caffemodel"))


def deploy_pair(prefix: str) -> ModelPair:
    """Name the deploy pair behind a prefix."""
    return ModelPair(Path(f"{prefix}_deploy_model.prototxt"), Path(f"{prefix}_deploy_weights.caffemodel"))


def packed_path(prefix: str) -> Path:
    """Name the packed file behind a prefix."""
    return Path(f"{prefix}{SUFFIX}")


def record_path(prefix: str) -> Path:
    """Name the record file behind a prefix."""
    return Path(f"{prefix}_record.txt")


def write_fake_quant(candidate: Candidate, pair: ModelPair, *, python_layers: bool = False) -> None:
    """Write the network with a plan's weights and fake-quantized inputs, as it is scored.

    Parameters
    ----------
    python_layers : bool
        For a Caffe without AMCT's layers: they become `Python` layers, whose file is written beside the model.
    """
    write_runnable(candidate.fake_quant_graph(), pair, python_layers)


def write_runnable(
    graph: Graph, pair: ModelPair, python_layers: bool, inputs: Mapping[str, Mapping[str, object]] | None = None
) -> None:
    """Write a graph with AMCT's layers, or with `Python` layers and their file in their place.

    Parameters
    ----------
    inputs : mapping of str to mapping, optional
        What the `Python` layers of a calibration keep of each layer's inputs, and where.
    """
    if python_layers:
        write_layers_module(pair.model.parent)
        graph = with_python_layers(graph, inputs)
    write_model(graph, pair.model, pair.weights)


def write_deploy(candidate: Candidate, pair: ModelPair) -> None:
    """Write the network for ATC.

    Raises
    ------
    QuantizationError
        A bias does not fit int32.
    """
    write_model(candidate.deploy_graph(), pair.model, pair.weights)


def pack(candidate: Candidate, path: Path, origin: str = "") -> None:
    """Write the network of `write_fake_quant` as one file that holds the target's bytes instead of weights.

    Parameters
    ----------
    origin : str, optional
        Where the network comes from and what it lost; `autonuq unpack` says it.
    """
    layers, codecs = {}, codecs_of(candidate.model)
    for name, factors in candidate.factors.items():
        layers[name] = PackedLayer(factors)
        if name in candidate.model.weights:
            codec, axis = codecs[name], candidate.model.weights[name].channel_axis
            layers[name] = PackedLayer(factors, codec.name, axis, codec.encode(candidate.codes(name)))
    write_packed(candidate.fake_quant_graph(), layers, path, origin)


def unpack(network: PackedNetwork, prefix: str) -> ModelPair:
    """Write the fake-quant pair that a packed file holds.

    Parameters
    ----------
    network : PackedNetwork
        As `load_packed` reads it.
    prefix : str
        Folder and beginning of the file names; the folder is made if need be.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    pair = fake_quant_pair(prefix)
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    replace_text(pair.model, network.prototxt)
    write_caffemodel(network.graph, pair.weights)
    return pair


def write_nuq_layers(candidate: Candidate, prefix: str) -> Path:
    """Write the list that ATC reads as `--compress_weight_conf`."""
    return replace_file(f"{prefix}_nuq_layer_record.txt", [encode_text(";".join(compressed_layers(candidate)))])


def write_quant_info(candidate: Candidate, prefix: str) -> Path:
    """Write what AMCT's accuracy comparison wants to know: where quantizers stand and what was folded."""
    return replace_text(f"{prefix}_quant.json", json.dumps(_quant_info(candidate), indent=4))


def _quant_info(candidate: Candidate) -> dict[str, object]:
    """Say where quantizers stand and what was folded; AMCT's own schema is not public (`amct.unsaid`)."""
    model, chosen = candidate.model, set(candidate.nuq_layers)
    quantized = insert_quantizers(
        model.graph, {name: QuantizedBlobs((), factors) for name, factors in candidate.factors.items()}
    )
    layers = {}
    for name, factors in candidate.factors.items():
        layers[name] = {
            "type": model.graph.by_name[name].type,
            "quant_layer": quantized.by_name[name].bottoms[0],
            "dequant_layer": f"{name}_dequant_layer",
            "scale_d": factors.scale_d,
            "offset_d": factors.offset_d,
            "folded": list(model.folded.get(name, ())),
            "weights": "nuq" if name in chosen else "uniform",
            "levels": candidate.levels(name) if name in chosen else [],
        }
    return {"version": 1, "network": model.graph.name, "layers": layers}
