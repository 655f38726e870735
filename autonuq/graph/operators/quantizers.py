"""Lowering of the layers of quantized models (AMCT's)."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from autonuq.graph.model import Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.registry import LayerError


def observed_blob(layer: str, index: int) -> str:
    """Return the name under which `lower(observe=True)` gives bottom `index` of a calibration layer."""
    return f"{layer}#{index}"


@lowers("AntiQuant")
def _identity(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return tensors[:1]


def _rounded(builder: Builder, tensor: str, *, signed: bool = True) -> str:
    """C's round(), half away from zero, for values below 2**23.

    Adding the largest float32 below 0.5 and truncating is exact there: halves tie to the even sum, which is the
    next integer, and anything smaller stays below it. Adding 0.5 itself would round 0.49999997 up. Of a signed
    value, at most as much as the value itself is added: what is below one half at first stays below one.
    """
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    below_half = builder.constant("below_half", below)
    if not signed:
        return builder.add("Floor", builder.add("Add", tensor, below_half))
    above_minus_half = builder.constant("above_minus_half", -below)
    away = builder.add("Add", tensor, builder.add("Clip", tensor, above_minus_half, below_half))
    return builder.add("Cast", builder.add("Cast", away, to=TensorProto.INT32), to=TensorProto.FLOAT)


@lowers("Quant")
def _quant(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Fake quantization: onto the int8 grid and back to float (AMCT's quant_layer; `scale` is the reciprocal)."""
    factor, offset = quant_factors(layer)
    steps = builder.add("Mul", tensors[0], builder.constant("scale", factor))
    low, high = builder.constant("low", -128.0 - offset), builder.constant("high", 127.0 - offset)
    rounded = _rounded(builder, builder.add("Clip", steps, low, high), signed=offset > -128)
    return [builder.add("Div", rounded, builder.constant("scale", factor), label=layer.name)]


def quant_factors(layer: Layer) -> tuple[float, int]:
    """Return the factor (1/scale_d) and the offset of a Quant layer.

    Raises
    ------
    LayerError
        The factor is not finite and positive, or the offset is no single byte.
    """
    message = layer.message.quant_param
    offset = message.offset or b"\0"
    if not (math.isfinite(message.scale) and message.scale > np.finfo(np.float64).eps) or len(offset) != 1:
        raise LayerError(f"Quant needs a finite positive scale and a 1-byte offset, got {message.scale}, {offset!r}")
    return message.scale, int.from_bytes(offset, "little", signed=True)


@lowers("DeQuant")
def _dequant(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """AMCT's dequant_layer: the identity unless a shift is asked for."""
    scale, shift, _ = layer.blobs
    if not shift.any():
        return tensors[:1]
    if shift.min() < 1 or shift.max() > 16:
        raise LayerError(f"DeQuant needs all shifts 0 or all in 1..16, got {shift.min():g} to {shift.max():g}")
    scale, shift = (blob.reshape(-1, *(1,) * (len(shapes[0]) - 2)) for blob in (scale, shift))
    deq = builder.constant(f"{layer.name}:scale", scale)
    power = builder.constant(f"{layer.name}:power", np.exp2(shift).astype(np.float32))
    codes = _rounded(builder, builder.add("Div", tensors[0], deq))
    shifted = _rounded(builder, builder.add("Div", codes, power))
    limits = [builder.constant("int16", float(limit)) for limit in (-(2**15), 2**15 - 1)]
    clipped = builder.add("Clip", shifted, *limits)
    return [builder.add("Mul", builder.add("Mul", clipped, deq), power, label=layer.name)]


@lowers("IFMR", "HFMG")
def _observer(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Calibration layers have no tops; `runtime` fetches what they read."""
    for index, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        builder.observed[observed_blob(layer.name, index)] = (tensor, shape)
    return []
