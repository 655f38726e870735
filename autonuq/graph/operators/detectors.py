"""Lowering of layers that detectors' forks of Caffe add; DetectionOutput and PSROIPooling are in `hosted`."""

from __future__ import annotations

import math

import numpy as np

from autonuq.graph.model import Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.detectors import interp_crop, permutation, prior_box_values, roi_scale, upsample_factors


@lowers("Permute")
def _permute(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.add("Transpose", tensors[0], label=layer.name, perm=permutation(layer, shapes[0]))]


@lowers("PriorBox")
def _prior_box(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Make a constant: only the bottoms' sizes count."""
    builder.afford("its boxes", 4 * math.prod(builder.shapes_of_tops[0]))
    return [builder.constant(layer.name, prior_box_values(layer, shapes))]


@lowers("Normalize")
def _normalize(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Divide by sqrt(sum x^2 + eps), over the channels of a pixel or over a whole item, and multiply by the scale."""
    message = layer.message.norm_param
    axes = builder.constant("axes", np.array([1, 2, 3] if message.across_spatial else [1]))
    total = builder.add("ReduceSum", builder.add("Mul", tensors[0], tensors[0]), axes)
    norm = builder.add("Sqrt", builder.scalar("Add", total, message.eps))
    scale = builder.constant(f"{layer.name}:scale", layer.blobs[0].reshape(1, -1, 1, 1))
    return [builder.add("Mul", builder.add("Div", tensors[0], norm), scale, label=layer.name)]


@lowers("Interp")
def _interp(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Bilinear, corners on corners, after cropping."""
    begin, end = interp_crop(layer)
    tensor, sizes = tensors[0], [size - begin - end for size in shapes[0][2:]]
    if begin or end:
        start = np.array([begin, begin])
        operands = [builder.constant("crop", values) for values in (start, start + sizes, np.array([2, 3]))]
        tensor = builder.add("Slice", tensor, *operands)
    if list(builder.shapes_of_tops[0][2:]) == sizes:
        return [tensor]
    for axis, (size, wanted) in enumerate(zip(sizes, builder.shapes_of_tops[0][2:], strict=True)):
        if size != wanted:
            tensor = _interpolate(builder, tensor, 2 + axis, size, wanted, layer.name)
    return [tensor]


def _interpolate(builder: Builder, tensor: str, axis: int, size: int, wanted: int, label: str) -> str:
    """Blend two neighbours along one axis. onnxruntime's Resize rounds positions otherwise than Caffe's float32."""
    builder.afford("the places that it blends", 2 * (8 + 8 + 4) * wanted)
    step = np.float32(size - 1) / np.float32(wanted - 1) if wanted > 1 else np.float32(0)
    position = step * np.arange(wanted, dtype=np.float32)
    low = np.minimum(position.astype(np.int64), size - 1)
    share = (position - low.astype(np.float32)).reshape(-1, *(1,) * (3 - axis))
    near = builder.add("Gather", tensor, builder.constant("low", low), axis=axis)
    far = builder.add("Gather", tensor, builder.constant("high", np.minimum(low + 1, size - 1)), axis=axis)
    near = builder.add("Mul", near, builder.constant(f"{label}:near", 1 - share))
    far = builder.add("Mul", far, builder.constant(f"{label}:far", share))
    return builder.add("Add", near, far, label=label)


@lowers("Upsample")
def _upsample(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    if len(tensors) == 2:
        return [_unpool(builder, layer, tensors, shapes[0])]
    _, factor = upsample_factors(layer)
    sizes = builder.constant("sizes", np.array(builder.shapes_of_tops[0]))
    result = builder.add(
        "Resize", tensors[0], "", "", sizes, label=layer.name, mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    return [result if factor == 1 else builder.scalar("Mul", result, factor, label=layer.name)]


def _unpool(builder: Builder, layer: Layer, tensors: list[str], bottom: Shape) -> str:
    """Put every value where the mask of a Pooling layer says, zeros elsewhere."""
    number, channels, height, width = builder.shapes_of_tops[0]
    values = builder.reshape(tensors[0], [number, channels, bottom[2] * bottom[3]])
    places = builder.indices(builder.reshape(tensors[1], [number, channels, bottom[2] * bottom[3]]))
    zeros = builder.constant(f"{layer.name}:zeros", np.zeros((1, 1, 1), np.float32))
    size = builder.constant("size", np.array([number, channels, height * width]))
    scattered = builder.add("ScatterElements", builder.add("Expand", zeros, size), places, values, axis=2)
    return builder.reshape(scattered, builder.shapes_of_tops[0], label=layer.name)


@lowers("ShuffleChannel")
def _shuffle_channel(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    number, channels, *_ = shapes[0]
    group = layer.message.shuffle_channel_param.group
    split = builder.reshape(tensors[0], [number, group, channels // group, -1])
    return [builder.reshape(builder.add("Transpose", split, perm=[0, 2, 1, 3]), shapes[0], label=layer.name)]


@lowers("Reorg")
def _reorg(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Follow darknet's own order: forward, the item is read as if it had C / s^2 channels of s times the size."""
    message, (number, channels, height, width) = layer.message.reorg_param, shapes[0]
    s = message.stride
    if message.reverse:
        return [builder.add("DepthToSpace", tensors[0], label=layer.name, blocksize=s, mode="DCR")]
    blocks = builder.reshape(tensors[0], [number, channels // s**2, height, s, width, s])
    turned = builder.add("Transpose", blocks, perm=[0, 3, 5, 1, 2, 4])
    return [builder.reshape(turned, builder.shapes_of_tops[0], label=layer.name)]


@lowers("ROIPooling")
def _roi_pooling(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message, (width, height) = layer.message.roi_pooling_param, roi_scale(layer)
    factors = builder.constant("scale", np.array([1, width, height, width, height], np.float32))
    regions = builder.add("Mul", builder.reshape(tensors[1], [shapes[1][0], 5]), factors)
    size = [message.pooled_h, message.pooled_w]
    return [builder.add("MaxRoiPool", tensors[0], regions, label=layer.name, pooled_shape=size)]


@lowers("Axpy")
def _axpy(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    factor = builder.reshape(tensors[0], [*shapes[1][:2], *(1,) * (len(shapes[1]) - 2)])
    return [builder.add("Add", builder.add("Mul", factor, tensors[1]), tensors[2], label=layer.name)]
