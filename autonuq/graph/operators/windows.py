"""Lowering of layers that slide a window.

Speed: onnxruntime runs convolutions with more than three spatial axes several times slower per operation than others.
Its LRN operator takes five times as long as the pooling and roots that stand for it here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Array, Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.windows import (
    DEPTHWISE_TYPES,
    PoolingWindow,
    channel_axis,
    convolution,
    im2col,
    pooling,
    pooling_window,
    spp_windows,
)

_LOWEST = float(np.finfo(np.float32).min)


@lowers("Convolution", "Deconvolution", *DEPTHWISE_TYPES)
def _convolution(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    axis = channel_axis(layer, shapes[0])
    found = convolution(layer, len(shapes[0]) - axis - 1)
    weights, *bias = layer.blobs
    flat = not found.kernel  # no spatial axes: a 1-wide one is put behind for the operator
    operands = [builder.constant(f"{layer.name}:0", weights.reshape(*weights.shape, 1) if flat else weights)]
    operands += [builder.constant(f"{layer.name}:1", values) for values in bias]
    channels_first = (math.prod(shapes[0][:axis]), *shapes[0][axis:], *([1] if flat else []))
    plain = axis == 1 and not flat
    tops = []
    for tensor in tensors:
        top = builder.add(
            "ConvTranspose" if layer.type == "Deconvolution" else "Conv",
            tensor if plain else builder.reshape(tensor, channels_first),
            *operands,
            label=layer.name,
            kernel_shape=found.kernel or (1,),
            strides=found.stride or (1,),
            pads=(found.pad or (0,)) * 2,
            dilations=found.dilation or (1,),
            group=found.group,
        )
        tops.append(top if plain else builder.reshape(top, builder.shapes_of_tops[0], label=layer.name))
    return tops


@lowers("Im2col")
def _im2col(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Gather every kernel position's pixels, axis by axis: (c, position, pixel), then channels are (c, position)."""
    axis, found = im2col(layer, shapes[0])
    batch, channels = math.prod(shapes[0][:axis]), shapes[0][axis]
    image = builder.reshape(tensors[0], (batch, channels, *shapes[0][axis + 1 :]))
    if any(found.pad):  # one zero along each axis stands for all
        pads = builder.constant("pads", np.array([0] * (4 + len(found.pad)) + [1] * len(found.pad), np.int64))
        image = builder.add("Pad", image, pads)
    sizes, outputs = shapes[0][axis + 1 :], builder.shapes_of_tops[0][axis + 1 :]
    windows = zip(sizes, found.kernel, found.dilation, found.stride, found.pad, outputs, strict=True)
    for spatial, (size, kernel, dilation, stride, pad, output) in enumerate(windows):
        builder.afford("the places under its windows", 4 * 8 * kernel * output)
        places = dilation * np.arange(kernel)[:, None] + stride * np.arange(output) - pad
        places = np.where((places < 0) | (places > size), size, places)
        image = builder.add("Gather", image, builder.constant(f"{layer.name}:places", places), axis=2 + 2 * spatial)
    axes = range(2, 2 + 2 * len(found.kernel))
    columns = builder.add("Transpose", image, perm=[0, 1, *axes[::2], *axes[1::2]])
    return [builder.reshape(columns, builder.shapes_of_tops[0], label=layer.name)]


@lowers("Pooling")
def _pooling(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    found = pooling(layer, shapes[0])
    if len(layer.tops) == 2:
        return _max_pool_with_mask(builder, tensors[0], found, shapes[0], layer.name)
    return [_pool(builder, tensors[0], found, shapes[0], layer.name)]


def _pool(builder: Builder, tensor: str, found: PoolingWindow, bottom: Shape, label: str) -> str:
    if found.is_global:
        operator = "GlobalMaxPool" if found.method == "MAX" else "GlobalAveragePool"
        return builder.add(operator, tensor, label=label)
    attributes = _attributes(found, bottom)
    if found.method == "MAX":
        pooled = builder.add("MaxPool", tensor, label=label, **attributes)
        return _with_windows_outside(builder, pooled, found, bottom, _LOWEST)
    pooled = builder.add("AveragePool", tensor, label=label, count_include_pad=1, **attributes)
    pooled = _with_windows_outside(builder, pooled, found, bottom, 0.0)
    if _overhangs(found, bottom):
        builder.afford("the areas of its windows", 4 * math.prod(found.output) + 3 * 8 * sum(found.output))
        correction = _overhang_correction(found, bottom)
        pooled = builder.add("Mul", pooled, builder.constant(f"{label}:area", correction), label=label)
    return pooled


def max_pool_attributes(layer: Layer, bottom: Shape) -> dict[str, Any] | None:
    """Return what makes an operator of ONNX do a layer's MAX pooling alone; None if it takes more than one."""
    found = pooling(layer, bottom)
    if found.is_global:
        return {"kernel_shape": bottom[2:]}
    return None if _inside(found, bottom) != list(found.output) else _attributes(found, bottom)


def _inside(found: PoolingWindow, bottom: Shape) -> list[int]:
    """Count the windows that start inside the image; a stride beyond the kernel can put one more behind it."""
    return [
        min(count, -(-(size + pad) // stride))
        for count, size, pad, stride in zip(found.output, bottom[2:], found.pad, found.stride, strict=True)
    ]


def _attributes(found: PoolingWindow, bottom: Shape) -> dict[str, object]:
    """Return the operator's attributes for the windows inside, the last of which may hang over."""
    end = [
        max(0, (count - 1) * stride + kernel - size - pad)
        for count, stride, kernel, size, pad in zip(
            _inside(found, bottom), found.stride, found.kernel, bottom[2:], found.pad, strict=True
        )
    ]
    return {"kernel_shape": found.kernel, "strides": found.stride, "pads": [*found.pad, *end]}


def _with_windows_outside(builder: Builder, pooled: str, found: PoolingWindow, bottom: Shape, value: float) -> str:
    """Append what Caffe leaves where a window lies outside the image."""
    more = [count - inside for count, inside in zip(found.output, _inside(found, bottom), strict=True)]
    if not any(more):
        return pooled
    pads = builder.constant("pads", np.array([0, 0, 0, 0, 0, 0, *more], np.int64))
    return builder.add("Pad", pooled, pads, builder.constant("outside", value))


def _overhangs(found: PoolingWindow, bottom: Shape) -> bool:
    """Say whether the last window along an axis reaches beyond the padded image."""
    return any(
        (output - 1) * stride + kernel > size + 2 * pad
        for size, kernel, stride, pad, output in zip(
            bottom[2:], found.kernel, found.stride, found.pad, found.output, strict=True
        )
    )


def _overhang_correction(found: PoolingWindow, bottom: Shape) -> Array:
    """Return area/counted of each window: Caffe counts the padding of a window but not what overhangs it."""
    counted = []
    for size, kernel, stride, pad, output in zip(
        bottom[2:], found.kernel, found.stride, found.pad, found.output, strict=True
    ):
        start = np.arange(output) * stride - pad
        counted.append((np.minimum(start + kernel, size + pad) - start).astype(np.float32))
    area = np.multiply.outer(*counted)
    with np.errstate(divide="ignore"):  # a window outside the image is 0/0 in Caffe too
        return np.divide(np.float32(math.prod(found.kernel)), area, out=area)


def _max_pool_with_mask(builder: Builder, tensor: str, found: PoolingWindow, bottom: Shape, label: str) -> list[str]:
    """MAX pooling and the place of each maximum in its plane, h * W + w; -1 where a window lies outside."""
    pooled, places = builder.add_many("MaxPool", tensor, count=2, label=label, **_attributes(found, bottom))
    plane = builder.constant("plane", math.prod(bottom[2:]))  # the operator counts through all planes of all items
    mask = builder.floats(builder.add("Mod", places, plane), label=label)
    return [
        _with_windows_outside(builder, top, found, bottom, value) for top, value in ((pooled, _LOWEST), (mask, -1.0))
    ]


@lowers("SPP")
def _spp(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    windows = spp_windows(layer, shapes[0])
    pooled = [_pool(builder, tensors[0], window, shapes[0], layer.name) for window in windows]
    if len(pooled) == 1:
        return pooled
    flat = [builder.add("Flatten", tensor, axis=1) for tensor in pooled]
    return [builder.add("Concat", *flat, label=layer.name, axis=1)]


@lowers("LRN")
def _lrn(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Across channels: x (k + alpha/n sum x^2)^-beta; within a channel n is n x n pixels and Caffe takes k = 1."""
    message = layer.message.lrn_param
    squares, size = builder.add("Mul", tensors[0], tensors[0]), message.local_size
    pad = (size - 1) // 2
    if message.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
        planes = (shapes[0][0], 1, shapes[0][1], math.prod(shapes[0][2:]))  # channels become rows of an image
        window = pooling_window("AVE", planes, (size, 1), (1, 1), (pad, 0))
        mean = _pool(builder, builder.reshape(squares, planes), window, planes, layer.name)
        mean, shift = builder.reshape(mean, shapes[0]), message.k
    else:
        window = pooling_window("AVE", shapes[0], (size, size), (1, 1), (pad, pad))
        mean, shift = _pool(builder, squares, window, shapes[0], layer.name), 1.0
    norm = builder.scalar("Add", builder.scalar("Mul", mean, message.alpha), shift)
    return [builder.add("Div", tensors[0], _power(builder, norm, message.beta), label=layer.name)]


def _power(builder: Builder, base: str, exponent: float) -> str:
    """Raise to a power; 3/4, which nearly every LRN has, by two square roots in a tenth of the time."""
    if exponent != 0.75:
        return builder.scalar("Pow", base, exponent)
    root = builder.add("Sqrt", base)
    return builder.add("Mul", root, builder.add("Sqrt", root))
