"""Derivatives of operators that compute over whole axes, and of matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from autonuq.graph.backward.reverse import NoDerivative, Reverse, attributes_of, differentiates_one


def _axes(reverse: Reverse, node: onnx.NodeProto) -> list[int]:
    """Return the axes that a reduction runs over: an attribute or, of ReduceSum, an operand; without them all."""
    count = len(reverse.shape(node.input[0]))
    found = attributes_of(node).get("axes")
    if len(node.input) > 1:
        found = reverse.known(node.input[1]).tolist()
    return list(range(count)) if found is None else [axis % count for axis in found]


def _kept(reverse: Reverse, node: onnx.NodeProto, tensor: str) -> str:
    """Shape a reduction's result, or its gradient, so that it lines up with the operand."""
    axes = _axes(reverse, node)
    return reverse.reshape(
        tensor, [1 if axis in axes else size for axis, size in enumerate(reverse.shape(node.input[0]))]
    )


@differentiates_one("ReduceSum", "ReduceMean")
def _sum(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    shape = reverse.shape(node.input[0])
    gradient = _kept(reverse, node, gradient)
    if node.op_type == "ReduceMean":
        gradient = reverse.scalar("Div", gradient, math.prod(shape[axis] for axis in _axes(reverse, node)))
    return {0: reverse.add("Expand", gradient, reverse.constant("shape", np.array(shape)))}


@differentiates_one("ReduceSumSquare")
def _sum_square(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    doubled = reverse.scalar("Mul", _kept(reverse, node, gradient), 2.0)
    return {0: reverse.add("Mul", doubled, node.input[0])}


@differentiates_one("ReduceL1")
def _sum_magnitudes(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return {0: reverse.add("Mul", _kept(reverse, node, gradient), reverse.add("Sign", node.input[0]))}


@differentiates_one("ReduceMax", "GlobalMaxPool")
def _maximum(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Share it among equal maxima."""
    if node.op_type == "GlobalMaxPool":
        largest, axes = node.output[0], list(range(2, len(reverse.shape(node.input[0]))))
    else:
        largest, axes = _kept(reverse, node, node.output[0]), _axes(reverse, node)
        gradient = _kept(reverse, node, gradient)
    equal = reverse.floats(reverse.add("Equal", node.input[0], largest))
    count = reverse.add("ReduceSum", equal, reverse.constant("axes", np.array(axes)))
    return {0: reverse.add("Mul", equal, reverse.add("Div", gradient, count))}


@differentiates_one("GlobalAveragePool")
def _global_average(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    shape = reverse.shape(node.input[0])
    share = reverse.scalar("Div", gradient, math.prod(shape[2:]))
    return {0: reverse.add("Expand", share, reverse.constant("shape", np.array(shape)))}


@differentiates_one("Softmax")
def _softmax(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Y (g - sum y g)."""
    y, axis = node.output[0], attributes_of(node).get("axis", -1)
    total = reverse.add("ReduceSum", reverse.add("Mul", gradient, y), reverse.constant("axes", np.array([axis])))
    return {0: reverse.add("Mul", y, reverse.add("Sub", gradient, total))}


@differentiates_one("BatchNormalization")
def _batch_normalization(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    scale, _, _, variance = (reverse.known(tensor).astype(np.float64) for tensor in node.input[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    along = (-1, *(1,) * (len(reverse.shape(node.input[0])) - 2))
    return {0: reverse.add("Mul", gradient, reverse.constant("factor", factor.reshape(along)))}


@differentiates_one("Gemm")
def _gemm(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    found = attributes_of(node)
    if found.get("transA") or found.get("alpha", 1.0) != 1 or found.get("beta", 1.0) != 1:
        raise NoDerivative("Gemm has a derivative here only for plain products")
    back = {0: reverse.add("Gemm", gradient, node.input[1], transB=1 - found.get("transB", 0))}
    if len(node.input) > 2:
        back[2] = reverse.summed_to(gradient, reverse.shape(node.output[0]), reverse.shape(node.input[2]))
    return back
