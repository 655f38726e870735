"""AMCT's record file: the quantization factors of every layer, in protobuf text.

Source: AMCT's record-file page; `cluster` is AMCT's private extension and is written only on request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from autonuq.atomic import replace_text
from autonuq.errors import QuantizationError
from autonuq.graph import record_pb2
from autonuq.graph.text import decode_text, escape_bytes, unescape_bytes
from autonuq.reading import reading

CLUSTER_SIZES = (16, 32)
# What a record that replaces a calibration must hold of every layer (convert_model page).
_COMPLETE = ("scale_d", "offset_d", "scale_w", "offset_w", "channels", "height", "width")


@dataclass(frozen=True)
class Factors:
    """Quantization factors of one layer.

    Attributes
    ----------
    scale_d, offset_d : float, int
        Of the layer's input; scale_d is None before the calibration.
    scale_w : tuple of float
        Of the weights: one per output channel, or one.
    offset_w : tuple of int
        All 0 on Caffe.
    shift_bit : tuple of int
        Shift N of hardware with a 16-bit intermediate; empty if none.
    channels, height, width : int
        Of the layer's input.
    skip_fusion : bool
    cluster : tuple of int
        The kept int8 steps of an NUQ layer, sorted; empty otherwise.
    """

    scale_d: float | None = None
    offset_d: int = 0
    scale_w: tuple[float, ...] = ()
    offset_w: tuple[int, ...] = ()
    shift_bit: tuple[int, ...] = ()
    channels: int = 0
    height: int = 0
    width: int = 0
    skip_fusion: bool = False
    cluster: tuple[int, ...] = ()


def load_record(path: str | Path, *, complete: bool = False) -> dict[str, Factors]:
    """Read a record file.

    Parameters
    ----------
    complete : bool
        Refuse layers without all the factors that a quantized model needs.

    Raises
    ------
    QuantizationError
        The file cannot be read or parsed, a layer stands in it twice, or a factor is outside its range or missing.
    """
    path = Path(path)
    message = record_pb2.ScaleOffsetRecord()
    with reading(path, QuantizationError, "is no record file"):
        text_format.Parse(unescape_bytes(decode_text(path.read_bytes())), message)
    records: dict[str, Factors] = {}
    for entry in message.record:
        if entry.key in records:
            raise QuantizationError("stands twice in the record", path=path, layer=entry.key)
        given = {field.name for field, _ in entry.value.ListFields()}
        if complete and (missing := [key for key in _COMPLETE if key not in given]):
            raise QuantizationError(f"has no {', '.join(missing)} in the record", path=path, layer=entry.key)
        records[entry.key] = checked_factors(_factors(entry.value), path, entry.key)
    return records


def write_record(path: str | Path, records: Mapping[str, Factors], *, clusters: bool = False) -> Path:
    """Write a record file, atomically.

    Parameters
    ----------
    clusters : bool
        Also write the private `cluster` field; strict readers refuse it.
    """
    message = record_pb2.ScaleOffsetRecord()
    for key, factors in records.items():
        value = message.record.add(key=key).value
        if factors.scale_d is not None:
            value.scale_d, value.offset_d = factors.scale_d, factors.offset_d
        value.scale_w.extend(factors.scale_w)
        value.offset_w.extend(factors.offset_w)
        value.shift_bit.extend(factors.shift_bit)
        if factors.channels:
            value.channels, value.height, value.width = factors.channels, factors.height, factors.width
        if factors.skip_fusion:
            value.skip_fusion = True
        if clusters:
            value.cluster.extend(factors.cluster)
    return replace_text(path, escape_bytes(text_format.MessageToString(message)))


def _factors(value: record_pb2.SingleLayerRecord) -> Factors:
    return Factors(
        scale_d=value.scale_d if value.HasField("scale_d") else None,
        offset_d=value.offset_d,
        scale_w=tuple(value.scale_w),
        offset_w=tuple(value.offset_w),
        shift_bit=tuple(value.shift_bit),
        channels=value.channels,
        height=value.height,
        width=value.width,
        skip_fusion=value.skip_fusion,
        cluster=tuple(value.cluster),
    )


def checked_factors(factors: Factors, path: Path, layer: str) -> Factors:
    """Return factors that were read from a file, once they keep the record file's rules.

    Raises
    ------
    QuantizationError
        A factor is outside its range.
    """
    scales = (*factors.scale_w, *(() if factors.scale_d is None else (factors.scale_d,)))
    rules = {
        "scales must be finite and positive": all(math.isfinite(scale) and scale > 0 for scale in scales),
        "offset_d must lie in [-128, 127]": -128 <= factors.offset_d <= 127,
        "offset_w must be 0": not any(factors.offset_w),
        "scale_w and offset_w must have the same length": len(factors.scale_w) == len(factors.offset_w),
        "shift_bit must lie in 0..16": all(shift <= 16 for shift in factors.shift_bit),
        "shift_bit must be all 0 or all positive": all(factors.shift_bit) or not any(factors.shift_bit),
        f"cluster must hold {' or '.join(map(str, CLUSTER_SIZES))} int8 values": not factors.cluster
        or (len(factors.cluster) in CLUSTER_SIZES and all(-128 <= step <= 127 for step in factors.cluster)),
    }
    for rule, holds in rules.items():
        if not holds:
            raise QuantizationError(f"{rule}: {factors}", path=path, layer=layer)
    return factors
