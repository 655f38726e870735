"""Layers of quantized models (AMCT's); see `passes` for where they stand."""

from __future__ import annotations

from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import ANY, LayerError, define, same

_BINS = range(8, 8193)  # AMCT's most
_MAX_TRIED = 10_000  # ranges; AMCT's usual settings try 61


def _ifmr_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.ifmr_param
    start, end, step = message.search_range_start, message.search_range_end, message.search_step
    if not (0 < start <= end and step > 0 and (end - start) / step < _MAX_TRIED):
        raise LayerError(
            "needs 0 < search_range_start <= search_range_end and a positive search_step that makes less than "
            f"{_MAX_TRIED} steps, got {start:g}, {end:g} and {step:g}"
        )
    return []


def _hfmg_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    bins = layer.message.hfmg_param.num_of_bins
    if bins not in _BINS:
        raise LayerError(f"num_of_bins must be in {_BINS[0]}..{_BINS[-1]}, got {bins}")
    return []


def _dequant_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Scale, shift and weight offset; a deploy model packs the three into one uint64 blob (see `passes`)."""
    channels = bottoms[0][1] if layer.message.dequant_param.channel_wise and len(bottoms[0]) == 4 else 1
    return [(channels,)] * 3


define(["Quant", "AntiQuant"], same)
define(["DeQuant"], same, _dequant_blobs)
define(["IFMR"], _ifmr_tops, bottoms=ANY)
define(["HFMG"], _hfmg_tops, bottoms=ANY)
