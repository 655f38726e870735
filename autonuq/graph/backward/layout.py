"""Derivatives of operators that move values: they move the gradients back, and add up what was read more than once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from autonuq.graph.backward.reverse import NoDerivative, Reverse, attributes_of, differentiates, differentiates_one
from autonuq.graph.model import Shape
from autonuq.graph.operators.builder import MAX_TABLES_BYTES


@differentiates_one("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return {0: reverse.reshape(gradient, reverse.shape(node.input[0]))}


@differentiates_one("Transpose")
def _transpose(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return {0: reverse.add("Transpose", gradient, perm=np.argsort(attributes_of(node)["perm"]).tolist())}


@differentiates_one("Concat")
def _concat(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    axis = attributes_of(node)["axis"]
    sizes = reverse.constant("sizes", np.array([reverse.shape(tensor)[axis] for tensor in node.input]))
    return dict(enumerate(reverse.add_many("Split", gradient, sizes, count=len(node.input), axis=axis)))


@differentiates("Split")
def _split(reverse: Reverse, node: onnx.NodeProto, gradients: list[str | None]) -> Mapping[int, str]:
    parts = [
        reverse.zeros(reverse.shape(tensor)) if gradient is None else gradient
        for tensor, gradient in zip(node.output, gradients, strict=True)
    ]
    return {0: reverse.add("Concat", *parts, axis=attributes_of(node).get("axis", 0))}


@differentiates_one("Slice")
def _slice(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    shape = reverse.shape(node.input[0])
    starts, ends, *rest = (reverse.known(tensor) for tensor in node.input[1:])
    if len(rest) > 1:
        raise NoDerivative("Slice with steps has no derivative here")
    pads = np.zeros((2, len(shape)), np.int64)
    for axis, start, end in zip(rest[0] if rest else range(len(shape)), starts, ends, strict=False):
        pads[:, axis] = start, shape[axis] - end
    return {0: reverse.add("Pad", gradient, reverse.constant("pads", pads.reshape(-1)))}


@differentiates_one("Pad")
def _pad(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    before, _ = reverse.known(node.input[1]).reshape(2, -1)
    limits = [reverse.constant("limit", values) for values in (before, before + reverse.shape(node.input[0]))]
    return {0: reverse.add("Slice", gradient, *limits)}


@differentiates_one("Expand")
def _expand(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return {0: reverse.summed_to(gradient, reverse.shape(node.output[0]), reverse.shape(node.input[0]))}


@differentiates_one("Tile")
def _tile(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    repeats, shape = reverse.known(node.input[1]), reverse.shape(node.input[0])
    apart = [size for pair in zip(repeats.tolist(), shape, strict=True) for size in pair]
    axes = reverse.constant("axes", np.arange(0, len(apart), 2))
    return {0: reverse.add("ReduceSum", reverse.reshape(gradient, apart), axes, keepdims=0)}


@differentiates_one("Gather")
def _gather(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    shape, axis = reverse.shape(node.input[0]), attributes_of(node).get("axis", 0)
    count = math.prod(reverse.shape(node.input[1]))
    return {0: reverse.scattered(gradient, node.input[1], count, shape, axis % len(shape))}


@differentiates_one("GatherElements")
def _gather_elements(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    zeros = reverse.zeros(reverse.shape(node.input[0]))
    axis = attributes_of(node).get("axis", 0)
    return {0: reverse.add("ScatterElements", zeros, node.input[1], gradient, axis=axis, reduction="add")}


@differentiates_one("ScatterElements")
def _scatter_elements(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Of values that went to one place each counts, as in Caffe's own backward pass: they are one maximum."""
    _, places, updates = node.input
    axis = attributes_of(node).get("axis", 0)
    kept = reverse.add("ScatterElements", gradient, places, reverse.zeros(reverse.shape(updates)), axis=axis)
    return {0: kept, 2: reverse.add("GatherElements", gradient, places, axis=axis)}


@differentiates_one("DepthToSpace")
def _depth_to_space(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    found = attributes_of(node)
    if found.get("mode", b"DCR") != b"DCR":
        raise NoDerivative("DepthToSpace has no derivative here in this mode")
    return {0: reverse.add("SpaceToDepth", gradient, blocksize=found["blocksize"])}


@differentiates_one("Resize")
def _resize(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Of the nearest neighbour towards 0: each value's gradients add up, axis by axis."""
    found = attributes_of(node)
    way = (found.get("mode"), found.get("coordinate_transformation_mode"), found.get("nearest_mode"))
    if way != (b"nearest", b"asymmetric", b"floor"):
        raise NoDerivative("Resize has a derivative here only for the nearest value towards 0")
    shape, wanted = reverse.shape(node.output[0]), reverse.shape(node.input[0])
    for axis, size in enumerate(wanted):
        if shape[axis] != size:
            gradient = _resized(reverse, gradient, shape, axis, size)
            shape = (*shape[:axis], size, *shape[axis + 1 :])
    return {0: gradient}


def _resized(reverse: Reverse, gradient: str, shape: Shape, axis: int, size: int) -> str:
    """Add up along one axis what came from the same one of `size` values."""
    larger = shape[axis]
    if larger % size == 0:
        apart = reverse.reshape(gradient, [*shape[:axis], size, larger // size, *shape[axis + 1 :]])
        return reverse.add("ReduceSum", apart, reverse.constant("axes", np.array([axis + 1])), keepdims=0)
    if 2 * 8 * larger > MAX_TABLES_BYTES:
        raise NoDerivative(f"Resize has no derivative here for an axis of {larger} values")
    step = np.float32(larger) / np.float32(size)
    places = np.minimum((np.arange(larger, dtype=np.float32) / step).astype(np.int64), size - 1)
    wanted = (*shape[:axis], size, *shape[axis + 1 :])
    return reverse.scattered(gradient, reverse.constant("places", places), larger, wanted, axis)
