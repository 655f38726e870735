"""Quantized networks for a Caffe that knows no layer of AMCT's: the same layers as Caffe's own `Python` type.

Their code is one file, `autonuq_layers.py`, that goes along with the model; what it needs stands in `param_str`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format

from autonuq.atomic import replace_text
from autonuq.graph import caffe_pb2, record_pb2
from autonuq.graph.layers import convolution
from autonuq.graph.model import Graph, Layer
from autonuq.graph.operators.quantizers import quant_factors
from autonuq.graph.text import escape_bytes

MODULE = "autonuq_layers"
_SOURCE = Path(__file__).parent / "hosted" / f"{MODULE}.py"


def write_layers_module(folder: Path) -> Path:
    """Write the file of the layers to a folder; one file serves all models there."""
    return replace_text(folder / _SOURCE.name, _SOURCE.read_text())


def with_python_layers(graph: Graph, moments: Mapping[str, Path] | None = None) -> Graph:
    """Replace Quant, DeQuant, IFMR and HFMG layers by `Python` ones.

    Parameters
    ----------
    graph : Graph
        A fake-quant or a calibration model, with blobs.
    moments : mapping of str to Path, optional
        By name of a calibrated layer: the file where the sum of x x' over its inputs goes.

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
            layers.append(_python(layer, _observer_parameters(graph, layer, moments or {})))
        else:
            layers.append(layer)
    return graph.with_layers(layers).validate()


def _python(layer: Layer, parameters: Mapping[str, object]) -> Layer:
    message = caffe_pb2.LayerParameter(name=layer.name, type="Python", bottom=layer.bottoms, top=layer.tops)
    message.python_param.module, message.python_param.layer = MODULE, layer.type
    message.python_param.param_str = json.dumps(parameters)
    return Layer(message)


def _observer_parameters(graph: Graph, layer: Layer, moments: Mapping[str, Path]) -> dict[str, object]:
    message = layer.message.ifmr_param if layer.type == "IFMR" else layer.message.hfmg_param
    parameters: dict[str, object] = {
        "batch_num": message.batch_num,
        "with_offset": message.with_offset,
        "record_file": message.record_file_path,
        "objects": [_object(graph.by_name[name], moments.get(name)) for name in message.object_layer],
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


def _object(layer: Layer, moments: Path | None) -> dict[str, object]:
    window = None
    if moments is not None and layer.type != "InnerProduct":
        found = convolution(layer, 2)
        window = {"kernel": found.kernel, "stride": found.stride, "pad": found.pad}
    key = escape_bytes(text_format.MessageToString(record_pb2.ScaleOffsetRecord.MapFiledEntry(key=layer.name)))
    return {"key": key.strip().removeprefix("key: "), "moments": moments and str(moments), "window": window}
