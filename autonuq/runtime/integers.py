"""Whether and how networks run in integers on this machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from autonuq.graph.files import parse_graph
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.lowering import lower
from autonuq.graph.model import Graph, Layer
from autonuq.runtime.device import selected_device
from autonuq.runtime.session import Session

# The largest codes times the largest weights: two such products do not fit into 16 bits.
_CODE, _WEIGHT, _CHANNELS = 255, 127, 16
_PROBE = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: {channels} dim: 3 dim: 3 }} }} }}
layer {{ name: "q" type: "Quant" bottom: "x" top: "q" quant_param {{ scale: 1 offset: "\\200" }} }}
layer {{ name: "conv" type: "Convolution" bottom: "q" top: "conv"
        convolution_param {{ num_output: {channels} kernel_size: 3 group: {group} bias_term: false }} }}
layer {{ name: "d" type: "DeQuant" bottom: "conv" top: "conv" dequant_param {{ channel_wise: true }} }}
layer {{ name: "r" type: "Quant" bottom: "conv" top: "r" quant_param {{ scale: {factor} offset: "\\200" }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "q" top: "fc"
        inner_product_param {{ num_output: {channels} bias_term: false }} }}
layer {{ name: "e" type: "DeQuant" bottom: "fc" top: "fc" }}
"""


def integer_plan(graph: Graph) -> IntegerPlan | None:
    """Return what of a network runs in integers; None for an accelerator, whose engine has no such kernels."""
    if not selected_device().is_cpu or not any(layer.type == "Quant" for layer in graph.layers):
        return None
    return IntegerPlan(graph, signed=has_exact_signed_products())


@cache
def has_exact_signed_products() -> bool:
    """Say whether the engine multiplies uint8 codes by int8 weights exactly.

    On processors with AVX2 or AVX-512, but without VNNI, it adds two products in 16 bits, where large ones saturate.
    There weights are given to it as uint8, for which it has exact, slower kernels.
    """
    return all(_is_exact(group) for group in (1, _CHANNELS))


def _is_exact(group: int) -> bool:
    per_group = 9 * _CHANNELS // group
    sums = {"r": per_group * _CODE * _WEIGHT, "fc": 9 * _CHANNELS * _CODE * _WEIGHT}
    factor = 255 / sums["r"]
    text = _PROBE.format(channels=_CHANNELS, group=group, factor=factor)
    graph = parse_graph(text.encode(), Path("probe"))
    blobs = {
        "conv": [np.full((_CHANNELS, _CHANNELS // group, 3, 3), _WEIGHT, np.float32)],
        "d": _dequantizer(_CHANNELS),
        "fc": [np.full((_CHANNELS, 9 * _CHANNELS), _WEIGHT, np.float32)],
        "e": _dequantizer(1),
    }
    graph = graph.with_layers(_with(layer, blobs) for layer in graph.layers)
    session = Session(lower(graph, plan=IntegerPlan(graph)), threads=1)
    found = session.run({"x": np.full((1, _CHANNELS, 3, 3), _CODE, np.float32)})
    return all(np.allclose(found[blob], sums[blob], rtol=1e-3) for blob in sums)


def _dequantizer(channels: int) -> list[np.ndarray]:
    return [np.ones(channels, np.float32), np.zeros(channels, np.float32), np.zeros(channels, np.float32)]


def _with(layer: Layer, blobs: dict[str, list[np.ndarray]]) -> Layer:
    return layer.with_(blobs=blobs[layer.name]) if layer.name in blobs else layer
