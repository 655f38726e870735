"""Layers of quantized models (AMCT's); see `passes` for where they stand."""

from __future__ import annotations

from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import ANY, define, same


def _no_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return []


def _dequant_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Scale, shift and weight offset; a deploy model packs the three into one uint64 blob (see `passes`)."""
    channels = bottoms[0][1] if layer.message.dequant_param.channel_wise and len(bottoms[0]) == 4 else 1
    return [(channels,)] * 3


define(["Quant", "AntiQuant"], same)
define(["DeQuant"], same, _dequant_blobs)
define(["IFMR", "HFMG"], _no_tops, bottoms=ANY)
