"""Where ONNX nodes are collected, and where the lowering of every layer type is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from autonuq.graph.detached import Weights
from autonuq.graph.model import Array, Layer, Shape
from autonuq.graph.shapes.registry import LayerError

MAX_TABLES_BYTES = 1 << 27
"""What a network's tables may take while it is lowered: arrays that are made of settings and sizes, not of weights.

A layer of a hundred bytes can ask for gigabytes of them. The largest in use are the boxes of detectors, 50 MB for SSD
on images of 4,096 x 4,096 pixels; most networks need some kilobytes.
"""


class Builder:
    """Collects ONNX nodes while layers are lowered one after the other."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)  # blob -> shape
        self.tensors: dict[str, str] = {}  # blob -> tensor that holds its present value
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.inputs: dict[str, Shape] = {}
        self.observed: dict[str, tuple[str, Shape]] = {}  # as `observed_blob` -> tensor and shape
        self.shapes_of_tops: list[Shape] = []  # of the layer that is being lowered
        self.layer = "t"  # its name: what its tensors are called that nobody gives a label
        self._count = 0
        self._tables_bytes = 0
        self._makers: dict[str, onnx.NodeProto] = {}  # tensor -> its node
        self._rescaled: dict[str, tuple[Array, Array]] = {}  # weights -> (what they are made of, factor per output)

    def read(self, blob: str) -> str:
        """Return the tensor of a blob; a blob that nothing made so far becomes an input."""
        if blob not in self.tensors:
            self.inputs[blob] = self.shapes[blob]
            self.tensors[blob] = blob
        return self.tensors[blob]

    def afford(self, what: str, size_bytes: int) -> None:
        """Refuse a table that takes too much, together with those before it; called before it is made.

        Raises
        ------
        LayerError
            All of them would take more than `MAX_TABLES_BYTES`.
        """
        self._tables_bytes += size_bytes
        if self._tables_bytes > MAX_TABLES_BYTES:
            raise LayerError(
                f"{what} would take {size_bytes:,} bytes; what layers' settings make may take {MAX_TABLES_BYTES:,} "
                f"bytes in a network, {self._tables_bytes - size_bytes:,} of which are used: take smaller sizes"
            )

    def counted(self, count: int) -> str:
        """Return a tensor of the integers from 0 on, below `count`; the engine makes them."""
        return self.add("Range", *(self.constant("count", number) for number in (0, count, 1)))

    def constant(self, label: str, values: Array | Sequence[float] | float) -> str:
        """Add a float32 (or integer) constant and return its tensor; float32 arrays are not copied."""
        array = np.asarray(values)
        array = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array.astype(np.int64, copy=False)
        name = self._unique(label)
        self.initializers[name] = array
        return name

    def stored(self, label: str, values: Array) -> str:
        """Add a constant of the type that it has and return its tensor."""
        name = self._unique(label)
        self.initializers[name] = values
        return name

    def weights(self, layer: Layer) -> list[str]:
        """Add a layer's blobs as they are."""
        return [self.constant(f"{layer.name}:{index}", blob) for index, blob in enumerate(layer.blobs)]

    def add(self, operator: str, *inputs: str, label: str | None = None, **attributes: Any) -> str:
        """Add one operator with one output and return that tensor."""
        return self.add_many(operator, *inputs, count=1, label=label, **attributes)[0]

    def add_many(
        self, operator: str, *inputs: str, count: int, label: str | None = None, **attributes: Any
    ) -> list[str]:
        """Add one operator with several outputs and return those tensors."""
        outputs = [self._unique(label or self.layer) for _ in range(count)]
        domain = attributes.pop("domain", "")
        node = onnx.NodeProto(op_type=operator, domain=domain, input=inputs, output=outputs, name=outputs[0])
        node.attribute.extend(_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        self._makers.update(dict.fromkeys(outputs, self.nodes[-1]))
        return outputs

    def rescale(self, tensor: str, factor: Array, shift: Array, *, label: str) -> str | None:
        """Return `tensor * factor + shift` per channel if a Conv made `tensor`: the same Conv with other weights.

        None if it did not, or if its weights are no constant.
        The first one drops out in `needed` unless somebody else reads it. The products are made later,
        once for a BatchNorm and the Scale behind it.
        """
        maker = self._makers.get(tensor)
        if maker is None or maker.op_type != "Conv" or maker.input[1] not in self.initializers:
            return None
        data, weights, *bias = maker.input
        array, before = self._rescaled.get(weights, (self.initializers[weights], np.ones(len(factor))))
        product, moved = self._unique(f"{label}:weights"), shift + (self.initializers[bias[0]] * factor if bias else 0)
        self.initializers[product] = array
        self._rescaled[product] = array, before * factor
        result = self.add("Conv", data, product, self.constant(f"{label}:bias", moved), label=label)
        self.nodes[-1].attribute.extend(maker.attribute)
        return result

    def needed(self, outputs: Iterable[str]) -> tuple[list[onnx.NodeProto], dict[str, Weights]]:
        """Return the nodes that some outputs need, in order, and the constants that these read."""
        wanted, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(reads(node))
                nodes.append(node)
        return nodes[::-1], {name: self._values(name) for name in self.initializers if name in wanted}

    def _values(self, name: str) -> Weights:
        if name not in self._rescaled:
            return Weights(self.initializers[name])
        array, factor = self._rescaled[name]
        return Weights(array, factor.astype(np.float32))

    def reshape(self, tensor: str, shape: Sequence[int], *, label: str | None = None) -> str:
        """Add a Reshape to a shape that is known now."""
        return self.add(
            "Reshape", tensor, self.constant(f"{label or self.layer}:shape", np.array(shape, np.int64)), label=label
        )

    def indices(self, tensor: str) -> str:
        """Turn float32 values into integers as C does, towards zero."""
        return self.add("Cast", tensor, to=TensorProto.INT64)

    def floats(self, tensor: str, *, label: str | None = None) -> str:
        """Turn integers or truth values into float32: every Caffe blob is."""
        return self.add("Cast", tensor, label=label, to=TensorProto.FLOAT)

    def scalar(self, operator: str, tensor: str, value: float, *, label: str | None = None) -> str:
        """Add `tensor operator value`."""
        return self.add(operator, tensor, self.constant(f"{label or self.layer}:value", float(value)), label=label)

    def _unique(self, label: str) -> str:
        self._count += 1
        return f"{label}:{self._count}"


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    """Make an attribute; whole numbers, which most are, without onnx's long way through all types."""
    if type(value) is int:
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INT, i=value)
    if type(value) in (tuple, list) and all(type(each) is int for each in value):  # the axes of a scalar are none
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS, ints=value)
    return helper.make_attribute(name, value)


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, those included that a graph inside it takes from outside."""
    inside = [inner for attribute in node.attribute for inner in attribute.g.node]
    return set(node.input).union(*(reads(inner) for inner in inside))


Lowering = Callable[[Builder, Layer, list[str], list[Shape]], list[str]]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of some layer types."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register
