"""Quantized networks for a Caffe that knows no layer of AMCT's: the same layers as Caffe's own `Python` type.

Their code is one file, `autonuq_layers.py`, that goes along with the model; what it needs stands in `param_str`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from google.protobuf import text_format

from autonuq.atomic import replace_text
from autonuq.graph import caffe_pb2, record_pb2
from autonuq.graph.hosted.permission import OWN_MODULE
from autonuq.graph.layers import input_window
from autonuq.graph.model import Graph, Layer
from autonuq.graph.operators.quantizers import quant_factors
from autonuq.graph.text import escape_bytes

_SOURCE = Path(__file__).parent / "hosted" / f"{OWN_MODULE}.py"


def write_layers_module(folder: Path) -> Path:
    """Write the file of the layers to a folder; one file serves all models there."""
    return replace_text(folder / _SOURCE.name, _SOURCE.read_text("utf-8"))


def with_python_layers(graph: Graph, inputs: Mapping[str, Mapping[str, object]] | None = None) -> Graph:
    """Replace Quant, DeQuant, IFMR and HFMG layers by `Python` ones.

    Parameters
    ----------
    graph : Graph
        A fake-quant or a calibration model, with blobs.
    inputs : mapping of str to mapping, optional
        By name of a calibrated layer: what is kept of its inputs, and where; see the layers' file.

    Notes
    -----
    A DeQuant layer without a shift changes nothing and is left out.
    """
    layers: list[Layer] = []
    for layer in graph.layers:
        if layer.type == "Quant":
            factor, offset = quant_factors(layer)
            layers.append(_python(layer, {"factor": factor, "offset": offset}))
        elif layer.type == "DeQuant":
            scale, shift, _ = layer.blobs
            if shift.any():
                layers.append(_python(layer, {"scale": scale.tolist(), "shift": shift.tolist()}))
        elif layer.type in ("IFMR", "HFMG"):
            layers.append(_python(layer, _observer_parameters(graph, layer, inputs or {})))
        else:
            layers.append(layer)
    return graph.with_layers(layers).validate()


def _python(layer: Layer, parameters: Mapping[str, object]) -> Layer:
    message = caffe_pb2.LayerParameter(name=layer.name, type="Python", bottom=layer.bottoms, top=layer.tops)
    message.python_param.module, message.python_param.layer = OWN_MODULE, layer.type
    message.python_param.param_str = json.dumps(parameters)
    return Layer(message)


def _observer_parameters(graph: Graph, layer: Layer, inputs: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    message = layer.message.ifmr_param if layer.type == "IFMR" else layer.message.hfmg_param
    parameters: dict[str, object] = {
        "batch_num": message.batch_num,
        "with_offset": message.with_offset,
        "record_file": message.record_file_path,
        "objects": [_object(graph.by_name[name], inputs.get(name)) for name in message.object_layer],
    }
    if layer.type == "HFMG":
        return parameters | {"num_of_bins": layer.message.hfmg_param.num_of_bins}
    ifmr = layer.message.ifmr_param
    return parameters | {
        "max_percentile": ifmr.max_percentile,
        "min_percentile": ifmr.min_percentile,
        "search_start": ifmr.search_range_start,
        "search_end": ifmr.search_range_end,
        "search_step": ifmr.search_step,
    }


def _object(layer: Layer, inputs: Mapping[str, object] | None) -> dict[str, object]:
    key = escape_bytes(text_format.MessageToString(record_pb2.ScaleOffsetRecord.MapFiledEntry(key=layer.name)))
    found: dict[str, object] = {"key": key.strip().removeprefix("key: "), "inputs": None}
    if inputs is not None:
        window = None if layer.type == "InnerProduct" else asdict(input_window(layer))
        found["inputs"] = {**inputs, "window": window}
    return found
