"""Lowering of layers that treat the channels of a blob separately.

Speed: onnxruntime keeps images in blocks of channels between convolutions, and has no product by channel there: Mul,
Add and BatchNormalization undo the blocks, which are made again behind them. A Conv with one 1 x 1 filter a channel
calculates the same in one pass over the blocks, and a ReLU behind it joins it. Where the channels do not fill whole
blocks it would be several times slower than the others.
"""

from __future__ import annotations

import numpy as np

from autonuq.graph.model import Array, Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.channels import scale_axis, scale_shape, stores_sums, uses_stored_statistics
from autonuq.graph.shapes.registry import legacy_shape

_WHOLE_BLOCKS = 16  # channels; with AVX-512, and a multiple of all other processors' blocks


def batch_norm_statistics(layer: Layer) -> tuple[Array, Array]:
    """Return mean and variance, shape (C,): the stored sums divided by the moving-average factor (0 stays 0).

    NVIDIA Caffe's layer with five blobs stores the averages themselves and ignores the factor.
    """
    mean, variance, factor = layer.blobs[:3]
    if not stores_sums(layer):
        return mean, variance
    share = np.float32(0 if factor[0] == 0 else 1 / factor[0])
    return mean * share, variance * share


def batch_norm_rescaling(layer: Layer) -> tuple[Array, Array]:
    """Return f and g of x * f + g, which is what a BatchNorm with stored statistics computes; float64, shape (C,)."""
    mean, variance = (values.astype(np.float64) for values in batch_norm_statistics(layer))
    with np.errstate(invalid="ignore", divide="ignore"):  # a negative variance gives NaN, as in Caffe
        factor = 1 / np.sqrt(variance + layer.message.batch_norm_param.eps)
    scale, shift = _own_scale(layer)
    factor = factor * scale
    return factor, shift - mean * factor


@lowers("BatchNorm")
def _batch_norm(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Normalize with the stored statistics, unless the layer asks for those of the batch.

    Stored statistics are Caffe's default in phase TEST. The operator computes x * f + g with f and g made in
    advance; where |mean| is much larger than the deviation this loses digits that Caffe's (x - mean) * f keeps, as
    folding does.
    """
    message = layer.message.batch_norm_param
    if not uses_stored_statistics(layer):
        return [_batch_statistics(builder, layer, tensors[0], shapes[0])]
    mean, variance = batch_norm_statistics(layer)
    joined = _by_conv(builder, tensors[0], shapes[0], *batch_norm_rescaling(layer), label=layer.name)
    if joined is not None:
        return [joined]
    names = ("ones", "zeros", "mean", "variance")
    operands = [
        builder.constant(f"{layer.name}:{label}", values)
        for label, values in zip(names, (*_own_scale(layer), mean, variance), strict=True)
    ]
    return [builder.add("BatchNormalization", tensors[0], *operands, label=layer.name, epsilon=message.eps)]


def _by_conv(builder: Builder, tensor: str, shape: Shape, factor: Array, shift: Array, *, label: str) -> str | None:
    """Return `tensor * factor + shift` per channel, by the Conv that made `tensor` or by one of its own, or None."""
    joined = builder.rescale(tensor, factor, shift, label=label)
    return joined or (_own_conv(builder, tensor, factor, shift, label=label) if _fills_blocks(shape) else None)


def _fills_blocks(shape: Shape) -> bool:
    return len(shape) == 4 and shape[1] % _WHOLE_BLOCKS == 0


def _own_conv(builder: Builder, tensor: str, factor: Array, shift: Array, *, label: str) -> str:
    weights = builder.constant(f"{label}:factor", factor.reshape(-1, 1, 1, 1))
    bias = builder.constant(f"{label}:shift", shift)
    return builder.add("Conv", tensor, weights, bias, label=label, kernel_shape=(1, 1), group=len(factor))


def _own_scale(layer: Layer) -> tuple[Array, Array]:
    """Return what a BatchNorm scales and shifts by: ones and zeros unless it has blobs for it."""
    mean = layer.blobs[0]
    scale, shift = layer.blobs[3:4] or (np.ones_like(mean),), layer.blobs[4:5] or (np.zeros_like(mean),)
    return scale[0], shift[0]


def _batch_statistics(builder: Builder, layer: Layer, tensor: str, shape: Shape) -> str:
    """(x - E x) / sqrt(E (x - E x)^2 + eps) over everything but the channels; the moving averages stay as they are."""
    axes = [axis for axis in range(len(shape)) if axis != 1]
    centred = builder.add("Sub", tensor, builder.add("ReduceMean", tensor, axes=axes))
    variance = builder.add("ReduceMean", builder.add("Mul", centred, centred), axes=axes)
    deviation = builder.add("Sqrt", builder.scalar("Add", variance, layer.message.batch_norm_param.eps))
    return builder.add("Div", centred, deviation, label=layer.name)


@lowers("MVN")
def _mvn(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """(x - E x) / (sqrt(E (x - E x)^2) + eps), of every channel or of every item."""
    message = layer.message.mvn_param
    axes = [1, 2, 3] if message.across_channels else [2, 3]
    shape = legacy_shape(shapes[0])
    tensor = tensors[0] if shape == shapes[0] else builder.reshape(tensors[0], shape)
    mean = builder.add("ReduceMean", tensor, axes=axes)
    centred = builder.add("Sub", tensor, mean, label=layer.name)
    if not message.normalize_variance:
        return [centred]
    variance = builder.add("ReduceMean", builder.add("Mul", centred, centred), axes=axes)
    deviation = builder.scalar("Add", builder.add("Sqrt", variance), message.eps)
    return [builder.add("Div", centred, deviation, label=layer.name)]


def _beside(values: Array, axis: int, axes: int) -> Array:
    """Shape `values` so that they line up with the axes from `axis` on of a tensor with `axes` axes."""
    return values.reshape(values.shape + (1,) * (axes - axis - values.ndim))


@lowers("Scale", "Bias")
def _scale(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    axes, blobs = len(shapes[0]), list(layer.blobs)
    if len(tensors) == 2:
        along = shapes[1]
        axis = scale_axis(layer, *shapes)
        factor = builder.reshape(tensors[1], along + (1,) * (axes - axis - len(along)))
    else:
        along = scale_shape(layer, shapes[0])
        axis = scale_axis(layer, shapes[0], along)
        if axis == 1 and len(along) == 1 and (joined := _scale_by_conv(builder, layer, tensors[0], shapes[0])):
            return [joined]
        factor = builder.constant(f"{layer.name}:scale", _beside(blobs.pop(0).reshape(along), axis, axes))
    result = builder.add("Mul" if layer.type == "Scale" else "Add", tensors[0], factor, label=layer.name)
    if blobs:
        bias = builder.constant(f"{layer.name}:bias", _beside(blobs[0].reshape(along), axis, axes))
        result = builder.add("Add", result, bias, label=layer.name)
    return [result]


def _scale_by_conv(builder: Builder, layer: Layer, tensor: str, shape: Shape) -> str | None:
    values = [blob.reshape(-1).astype(np.float64) for blob in layer.blobs]
    factor = values.pop(0) if layer.type == "Scale" else np.ones_like(values[0])
    shift = values[0] if values else np.zeros_like(factor)
    return _by_conv(builder, tensor, shape, factor, shift, label=layer.name)


@lowers("PReLU")
def _prelu(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """max(x, 0) + slope min(x, 0): onnxruntime's PRelu takes several times as long as these operators.

    In blocks of channels, min(x, 0) is minus the ReLU of -x, and both factors are Convs.
    """
    slope = layer.blobs[0].reshape(-1)
    above = builder.add("Relu", tensors[0])
    if _fills_blocks(shapes[0]):
        if slope.size == 1:
            builder.afford("a slope for every channel", 4 * 4 * shapes[0][1])
        slope = np.broadcast_to(slope, shapes[0][1:2])
        no_shift = np.zeros_like(slope)
        turned = _own_conv(builder, tensors[0], np.full_like(slope, -1), no_shift, label=layer.name)
        leak = _own_conv(builder, builder.add("Relu", turned), -slope, no_shift, label=layer.name)
        return [builder.add("Add", leak, above, label=layer.name)]
    below = builder.scalar("Min", tensors[0], 0.0)
    factor = builder.constant(f"{layer.name}:slope", _beside(slope, 1, len(shapes[0])))
    return [builder.add("Add", above, builder.add("Mul", below, factor), label=layer.name)]
