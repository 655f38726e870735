"""Where the nodes of a backward graph are collected, and where the rule of every operator is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from autonuq.graph.model import Array, Shape
from autonuq.graph.operators.builder import Builder

PLACES = ":places"
"""What is appended to a pooled tensor's name for the places of its maxima."""


class NoDerivative(Exception):  # noqa: N818 - an answer, not an error
    """An operator has no rule, or not for these operands; says which."""


class Reverse(Builder):
    """Collects the nodes that carry gradients backwards through the nodes of a forward graph.

    Parameters
    ----------
    forward : Builder
        Its nodes are differentiated; its constants can be read.
    values : mapping of str to onnx.ValueInfoProto
        Type and shape of the forward graph's tensors.

    Notes
    -----
    A rule may read every tensor of the forward graph by its name: those that are left in the end are what a forward
    pass must hand over.
    """

    def __init__(self, forward: Builder, values: Mapping[str, onnx.ValueInfoProto]) -> None:
        super().__init__({})
        self.initializers = dict(forward.initializers)
        self._infos = values
        self._parts: dict[str, list[str]] = {}  # forward tensor -> gradients that add up to its own

    def info(self, tensor: str) -> onnx.ValueInfoProto:
        """Return the type and shape of a forward tensor."""
        if tensor.endswith(PLACES):
            return helper.make_tensor_value_info(tensor, TensorProto.INT64, self.shape(tensor.removesuffix(PLACES)))
        return self._infos[tensor]

    def has_shape(self, tensor: str) -> bool:
        """Say whether a forward tensor has a shape that does not depend on the data."""
        return tensor in self.initializers or tensor in self._infos and _is_complete(self._infos[tensor])

    def shape(self, tensor: str) -> Shape:
        """Return the shape of a forward tensor.

        Raises
        ------
        NoDerivative
            It depends on the data.
        """
        if tensor in self.initializers:
            return self.initializers[tensor].shape
        if not self.has_shape(tensor):
            raise NoDerivative("the data decide its shape")
        return tuple(size.dim_value for size in self._infos[tensor].type.tensor_type.shape.dim)

    def element_type(self, tensor: str) -> int:
        """Return the ONNX type of a forward tensor's elements."""
        return self._infos[tensor].type.tensor_type.elem_type if tensor in self._infos else TensorProto.FLOAT

    def known(self, tensor: str) -> Array:
        """Return the values of a constant.

        Raises
        ------
        NoDerivative
            It is none.
        """
        if tensor not in self.initializers:
            raise NoDerivative(f"'{tensor}' is not constant")
        return self.initializers[tensor]

    def collect(self, tensor: str, gradient: str) -> None:
        """Add to a forward tensor's gradient."""
        self._parts.setdefault(tensor, []).append(gradient)

    def gradient(self, tensor: str) -> str | None:
        """Return the tensor with a forward tensor's whole gradient; None if none arrives there."""
        parts = self._parts.get(tensor)
        if parts is None:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = self.add("Add", total, part)
        self._parts[tensor] = [total]
        return total

    def through(self, nodes: Sequence[onnx.NodeProto], active: set[str]) -> None:
        """Carry the gradients that arrive at the outputs of some nodes on to what they read.

        Parameters
        ----------
        nodes : sequence of NodeProto
            In the order of execution.
        active : set of str
            Tensors whose gradients are wanted.

        Raises
        ------
        NoDerivative
            One of them has none; nothing has changed.
        """
        before = len(self.nodes), {tensor: list(parts) for tensor, parts in self._parts.items()}
        try:
            for node in reversed(nodes):
                self._through_one(node, active)
        except NoDerivative:
            del self.nodes[before[0] :]
            self._parts = before[1]
            raise

    def _through_one(self, node: onnx.NodeProto, active: set[str]) -> None:
        gradients = [self.gradient(tensor) for tensor in node.output]
        if not any(gradients) or not active.intersection(node.input):
            return
        if node.op_type not in RULES:
            raise NoDerivative(f"ONNX operator {node.op_type} has no derivative here")
        for index, gradient in RULES[node.op_type](self, node, gradients).items():
            if node.input[index] in active:
                self.collect(node.input[index], gradient)

    def summed_to(self, gradient: str, shape: Shape, wanted: Shape) -> str:
        """Add up over the axes along which an operand of shape `wanted` was repeated to `shape`."""
        if shape == wanted:
            return gradient
        aligned = (1,) * (len(shape) - len(wanted)) + wanted
        axes = [axis for axis, sizes in enumerate(zip(shape, aligned, strict=True)) if sizes[0] != sizes[1]]
        if axes:
            gradient = self.add("ReduceSum", gradient, self.constant("axes", np.array(axes)))
        return gradient if aligned == wanted else self.reshape(gradient, wanted)

    def zeros(self, shape: Shape) -> str:
        """Add zeros of one shape."""
        return self.add("Expand", self.constant("zero", 0.0), self.constant("size", np.array(shape, np.int64)))

    def scattered(self, gradient: str, places: str, count: int, shape: Shape, axis: int) -> str:
        """Add up what was gathered along an axis: `gradient` is (*shape[:axis], count, *shape[axis + 1:])."""
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        rows = self.add("Transpose", self.reshape(gradient, [outer, count, inner]), perm=[1, 0, 2])
        found = self.zeros((shape[axis], outer, inner))
        found = self.add("ScatterND", found, self.reshape(places, [count, 1]), rows, reduction="add")
        return self.reshape(self.add("Transpose", found, perm=[1, 0, 2]), shape)

    def where(self, condition: str, gradient: str) -> str:
        """Keep a gradient where a condition holds, 0 elsewhere; onnxruntime's Where takes three times as long."""
        return self.add("Mul", gradient, self.floats(condition))

    def _unique(self, label: str) -> str:
        self._count += 1
        return f"{label}:backward{self._count}"  # not one of the forward graph's


def _is_complete(info: onnx.ValueInfoProto) -> bool:
    found = info.type.tensor_type
    return found.HasField("shape") and all(size.HasField("dim_value") for size in found.shape.dim)


Rule = Callable[[Reverse, onnx.NodeProto, list[str | None]], Mapping[int, str]]
"""(backward graph, node, gradient of each output) -> gradient of each input that can have one, by index."""
RULES: dict[str, Rule] = {}


def differentiates(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of some ONNX operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


OneRule = Callable[[Reverse, onnx.NodeProto, str], Mapping[int, str]]


def differentiates_one(*operators: str) -> Callable[[OneRule], OneRule]:
    """Register a rule of operators with one output: (backward graph, node, its gradient)."""

    def register(function: OneRule) -> OneRule:
        def rule(reverse: Reverse, node: onnx.NodeProto, gradients: list[str | None]) -> Mapping[int, str]:
            gradient = gradients[0]
            return {} if gradient is None else function(reverse, node, gradient)

        RULES.update(dict.fromkeys(operators, rule))
        return function

    return register


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
