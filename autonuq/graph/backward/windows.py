"""Derivatives of operators that slide a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from autonuq.graph.backward.reverse import PLACES, NoDerivative, Reverse, attributes_of, differentiates_one
from autonuq.graph.model import Array, Shape
from autonuq.graph.operators.builder import MAX_TABLES_BYTES


def _transposed(found: Mapping[str, Any], output: Shape, wanted: Shape) -> dict[str, Any]:
    """Return a ConvTranspose's attributes: from windows over `output` places back to exactly `wanted` ones.

    Notes
    -----
    **Shapes**: 8 values, kernel 3, stride 2, no padding: 3 windows, which span 7 values; the eighth, which no window
    reached, is an output padding of 1. Windows that hang over the end are cut off by more padding there.
    """
    before = found["pads"][: len(wanted)]
    after = [
        stride * (count - 1) + dilation * (kernel - 1) + 1 - pad - size
        for stride, count, dilation, kernel, pad, size in zip(
            found["strides"], output, found["dilations"], found["kernel_shape"], before, wanted, strict=True
        )
    ]
    return {
        **found,
        "pads": [*before, *(max(0, pad) for pad in after)],
        "output_padding": [max(0, -pad) for pad in after],
    }


def _plain(node: onnx.NodeProto, axes: int) -> dict[str, Any]:
    """Return the attributes of a window, complete."""
    found = attributes_of(node)
    return {
        "kernel_shape": found["kernel_shape"],
        "strides": found.get("strides", [1] * axes),
        "dilations": found.get("dilations", [1] * axes),
        "pads": found.get("pads", [0] * 2 * axes),
    }


@differentiates_one("Conv")
def _conv(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Go back by ConvTranspose, or, windows one beside the other, by a Conv, which onnxruntime does faster."""
    weights, group = reverse.known(node.input[1]), attributes_of(node).get("group", 1)
    bottom, top = reverse.shape(node.input[0])[2:], reverse.shape(node.output[0])[2:]
    found = _plain(node, len(bottom))
    reach = [step * (size - 1) for step, size in zip(found["dilations"], found["kernel_shape"], strict=True)]
    pads = [behind - pad for behind, pad in zip(reach * 2, found["pads"], strict=True)]
    if max(found["strides"]) > 1 or min(pads) < 0:
        back = reverse.add("ConvTranspose", gradient, node.input[1], group=group, **_transposed(found, top, bottom))
        return {0: back}
    turned = reverse.constant(f"{reverse.layer}:turned", _turned(weights, group))
    return {0: reverse.add("Conv", gradient, turned, group=group, **found | {"pads": pads})}


def _turned(weights: Array, group: int) -> Array:
    """Exchange inputs and outputs of each group, and turn every kernel round."""
    outputs, inputs, *kernel = weights.shape
    apart = weights.reshape(group, outputs // group, inputs, *kernel).swapaxes(1, 2)
    joined = apart.reshape(group * inputs, outputs // group, *kernel)
    return np.ascontiguousarray(np.flip(joined, tuple(range(2, joined.ndim))))


@differentiates_one("ConvTranspose")
def _conv_transpose(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    reverse.known(node.input[1])
    found = _plain(node, len(reverse.shape(node.input[0])) - 2)
    return {0: reverse.add("Conv", gradient, node.input[1], group=attributes_of(node).get("group", 1), **found)}


@differentiates_one("AveragePool")
def _average_pool(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Spread every window's gradient evenly; a window counts the padding, so all have the same area."""
    if not attributes_of(node).get("count_include_pad"):
        raise NoDerivative("AveragePool has a derivative here only where the padding counts")
    bottom, top = reverse.shape(node.input[0]), reverse.shape(node.output[0])
    found = _plain(node, len(bottom) - 2)
    kernel = found["kernel_shape"]
    if 4 * math.prod(kernel) > MAX_TABLES_BYTES:
        raise NoDerivative(f"AveragePool has no derivative here for a window of {kernel}")
    share = reverse.constant("share", np.full((1, 1, *kernel), 1 / math.prod(kernel), np.float32))
    planes = reverse.reshape(gradient, [math.prod(top[:2]), 1, *top[2:]])
    spread = reverse.add("ConvTranspose", planes, share, **_transposed(found, top[2:], bottom[2:]))
    return {0: reverse.reshape(spread, bottom)}


@differentiates_one("MaxPool")
def _max_pool(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Give every window's gradient to its maximum; the operator tells where that was, counted through all planes."""
    if len(node.output) == 1:
        node.output.append(node.output[0] + PLACES)
    bottom, top = reverse.shape(node.input[0]), reverse.shape(node.output[0])
    places = reverse.reshape(node.output[1], [math.prod(top)])
    values, zeros = reverse.reshape(gradient, [math.prod(top)]), reverse.zeros((math.prod(bottom),))
    return {0: reverse.reshape(reverse.add("ScatterElements", zeros, places, values, reduction="add"), bottom)}
