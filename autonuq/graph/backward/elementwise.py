"""Derivatives of operators that compute value by value, operands repeated where they have fewer values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from autonuq.graph.backward.reverse import NoDerivative, Reverse, attributes_of, differentiates_one

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_LARGEST = float(np.finfo(np.float32).max)

# (backward graph, operand, result, gradient of the result) -> gradient of the operand
Unary = Callable[[Reverse, str, str, str], str]


def _relu(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.where(reverse.scalar("Greater", y, 0.0), gradient)


def _abs(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.add("Mul", gradient, reverse.add("Sign", x))


def _tanh(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.add("Sub", gradient, reverse.add("Mul", gradient, reverse.add("Mul", y, y)))


def _sigmoid(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    slope = reverse.add("Sub", y, reverse.add("Mul", y, y))
    return reverse.add("Mul", gradient, slope)


def _exp(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    """Keep below infinity: where 1 / (1 + e^-x) is saturated, its gradient 0 must stay 0."""
    return reverse.add("Mul", gradient, reverse.scalar("Min", y, _LARGEST))


def _log(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.add("Div", gradient, x)


def _neg(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.add("Neg", gradient)


def _reciprocal(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.add("Neg", reverse.add("Mul", gradient, reverse.add("Mul", y, y)))


def _sqrt(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.scalar("Mul", reverse.add("Div", gradient, y), 0.5)


def _softplus(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return reverse.add("Mul", gradient, reverse.add("Sigmoid", x))


def _identity(reverse: Reverse, x: str, y: str, gradient: str) -> str:
    return gradient


_UNARY: dict[str, Unary] = {
    "Abs": _abs,
    "Exp": _exp,
    "Identity": _identity,
    "Log": _log,
    "Neg": _neg,
    "Reciprocal": _reciprocal,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Sqrt": _sqrt,
    "Tanh": _tanh,
}


@differentiates_one(*_UNARY)
def _unary(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return {0: _UNARY[node.op_type](reverse, node.input[0], node.output[0], gradient)}


@differentiates_one("LeakyRelu")
def _leaky_relu(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    leak = reverse.scalar("Mul", gradient, attributes_of(node).get("alpha", 0.01))
    return {0: reverse.add("Where", reverse.scalar("Greater", node.input[0], 0.0), gradient, leak)}


@differentiates_one("Elu")
def _elu(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Below 0 the slope is alpha e^x = y + alpha."""
    below = reverse.add("Mul", gradient, reverse.scalar("Add", node.output[0], attributes_of(node).get("alpha", 1.0)))
    return {0: reverse.add("Where", reverse.scalar("Greater", node.input[0], 0.0), gradient, below)}


@differentiates_one("Cast")
def _cast(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    kind = reverse.element_type(node.input[0])
    if kind not in _FLOATS or attributes_of(node)["to"] not in _FLOATS:
        raise NoDerivative("a conversion to or from integers has no derivative")
    return {0: reverse.add("Cast", gradient, to=kind)}


@differentiates_one("Clip")
def _clip(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    x, low, high = node.input
    inside = reverse.add("And", reverse.add("Greater", x, low), reverse.add("Less", x, high))
    return {0: reverse.where(inside, gradient)}


@differentiates_one("Pow")
def _pow(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    exponent = float(reverse.known(node.input[1]))
    slope = reverse.scalar("Mul", reverse.scalar("Pow", node.input[0], exponent - 1), exponent)
    return {0: reverse.add("Mul", gradient, slope)}


def _operands(reverse: Reverse, node: onnx.NodeProto, *gradients: str, first: int = 0) -> dict[int, str]:
    """Sum the gradients of operands, from `first` on, to the operands' own shapes."""
    shape = reverse.shape(node.output[0])
    return {
        index: reverse.summed_to(gradient, shape, reverse.shape(node.input[index]))
        for index, gradient in enumerate(gradients, first)
    }


@differentiates_one("Add")
def _add(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return _operands(reverse, node, gradient, gradient)


@differentiates_one("Sub")
def _sub(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    return _operands(reverse, node, gradient, reverse.add("Neg", gradient))


@differentiates_one("Mul")
def _mul(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    a, b = node.input
    return _operands(reverse, node, reverse.add("Mul", gradient, b), reverse.add("Mul", gradient, a))


@differentiates_one("Div")
def _div(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    share = reverse.add("Div", gradient, node.input[1])
    return _operands(reverse, node, share, reverse.add("Neg", reverse.add("Mul", share, node.output[0])))


@differentiates_one("Max", "Min")
def _extreme(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    """Of equal operands the second counts, a constant limit in the lowerings."""
    if len(node.input) != 2:
        raise NoDerivative(f"{node.op_type} of {len(node.input)} operands has no derivative here")
    first = reverse.add("Greater" if node.op_type == "Max" else "Less", *node.input)
    return _operands(reverse, node, reverse.where(first, gradient), reverse.where(reverse.add("Not", first), gradient))


@differentiates_one("Where")
def _where(reverse: Reverse, node: onnx.NodeProto, gradient: str) -> Mapping[int, str]:
    condition = node.input[0]
    other = reverse.where(reverse.add("Not", condition), gradient)
    return _operands(reverse, node, reverse.where(condition, gradient), other, first=1)
