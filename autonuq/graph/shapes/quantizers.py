"""Layers of quantized models (AMCT's); see `passes` for where they stand."""

from __future__ import annotations

from pathlib import PurePath

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import ANY, LayerError, define, same

_BINS = range(8, 8193)  # AMCT's most
_MAX_TRIED = 10_000  # ranges; AMCT's usual settings try 61


def _check_observer(message: caffe_pb2.IFMRParameter | caffe_pb2.HFMGParameter, bottoms: list[Shape]) -> None:
    """Refuse a calibration layer that cannot say where its range goes, and whose it is."""
    if not PurePath(message.record_file_path).name or "\0" in message.record_file_path:
        raise LayerError(f"record_file_path must be a file's, got {message.record_file_path!r}")
    if len(message.object_layer) != len(bottoms):
        raise LayerError(f"names {len(message.object_layer)} as object_layer, but has {len(bottoms)} bottoms")


def _ifmr_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.ifmr_param
    _check_observer(message, bottoms)
    start, end, step = message.search_range_start, message.search_range_end, message.search_step
    if not (0 < start <= end and step > 0 and (end - start) / step < _MAX_TRIED):
        raise LayerError(
            "needs 0 < search_range_start <= search_range_end and a positive search_step that makes less than "
            f"{_MAX_TRIED} steps, got {start:g}, {end:g} and {step:g}"
        )
    for name in ("min_percentile", "max_percentile"):
        if not 0 < getattr(message, name) <= 1:
            raise LayerError(f"{name} must be above 0 and at most 1, got {getattr(message, name):g}")
    return []


def _hfmg_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    _check_observer(layer.message.hfmg_param, bottoms)
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
