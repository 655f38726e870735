"""The gradients of a network's heads at the outputs of its layers, as two ONNX models: there, and back.

The forward model hands over the heads' values, what the layers read, and whatever the backward model needs of the
pass. The backward model takes a seed for every head (the gradient of something with respect to the head) and returns
the gradients at the layers' own outputs. One forward pass serves any number of seeds.

Where a layer has no derivative (it runs in Python, or one of its operators has no rule in `backward`), gradients start
at the blobs that it reads: these are heads, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from autonuq.graph.backward import NoDerivative, Reverse
from autonuq.graph.detached import Weights, declared_tensor
from autonuq.graph.heads import Head, find_heads
from autonuq.graph.hosted import HOST_LAYERS
from autonuq.graph.lowering import IR_VERSION, LOWERINGS, OPSET, Lowered, lower_layers, serialized
from autonuq.graph.model import Array, Graph, Layer, Shape, Value
from autonuq.graph.operators.builder import Builder, Lowering, reads
from autonuq.graph.shapes.registry import canonical_axis


@dataclass(frozen=True)
class GradientHead:
    """Where gradients start.

    Attributes
    ----------
    blob : str
    shape : tuple of int
    classes : int or None
        Axis of a softmax whose logits these are; None for other values.
    value : str
        Its value among the forward model's outputs.
    seed : str
        The backward model's input for the gradient with respect to it.
    """

    blob: str
    shape: Shape
    classes: int | None
    value: str
    seed: str


@dataclass(frozen=True)
class LayerPass:
    """One use of a layer's weights; a layer with several bottoms has as many.

    Attributes
    ----------
    bottom : str
        What the weights meet: an output of the forward model, or an input of the network.
    gradient : str
        An output of the backward model: the gradient at what the layer made, before any layer in place behind it.
    shape : tuple of int
        That of the gradient.
    """

    bottom: str
    gradient: str
    shape: Shape


@dataclass(frozen=True)
class LoweredGradients:
    """Forward and backward model; see `lower_gradients`.

    Attributes
    ----------
    forward, backward : Lowered
        What the backward model needs beside the seeds has the same name among the forward model's outputs, or among the
        network's inputs.
    heads : tuple of GradientHead
    layers : mapping of str to tuple of LayerPass
        By layer.
    unreached : mapping of str to str
        Layers that no gradient arrives at -> the reason.
    """

    forward: Lowered
    backward: Lowered
    heads: tuple[GradientHead, ...]
    layers: Mapping[str, tuple[LayerPass, ...]]
    unreached: Mapping[str, str]


def lower_gradients(graph: Graph, inputs: Mapping[str, Shape] | None, layers: Iterable[str]) -> LoweredGradients:
    """Lower a network and its derivative.

    Parameters
    ----------
    graph : Graph
        Validated, with blobs; float32.
    inputs : mapping of str to tuple of int, optional
        Shapes of inputs that differ from the prototxt's.
    layers : iterable of str
        Layers at whose outputs gradients are wanted.

    Raises
    ------
    ModelError
        A layer has no blobs, or its parameters are not supported.
    ValueError
        The network has no layer of one of the names.

    Notes
    -----
    What depends on a layer that runs in Python is not computed, so its layers are not reached; what that layer reads
    is a head.

    **Cost**: the backward model multiplies about as often as the forward one; the gradients of weights are left to the
    caller, who has both factors.
    """
    traced = _Trace(graph, inputs, frozenset(layers))
    unknown = sorted(traced.wanted - graph.by_name.keys())
    if unknown:
        raise ValueError(f"The 'layers' of lower_gradients must be layers of the network. Got {', '.join(unknown)}.")
    return _differentiated(traced)


class _PlainBuilder(Builder):
    """Keeps every layer's own output: nothing is folded into another layer."""

    def rescale(self, tensor: str, factor: Array, shift: Array, *, label: str) -> None:
        return None


@dataclass(frozen=True)
class _Lowered:
    """What became of one layer: its tensors and its nodes."""

    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]


class _Trace:
    """A lowered network that knows which tensors and nodes belong to which layer.

    Attributes
    ----------
    graph : Graph
        Without the layers behind one that runs in Python.
    made : mapping of str to _Lowered
        By layer.
    active : set of str
        Tensors that depend on what the wanted layers make.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Shape] | None, wanted: Collection[str]) -> None:
        self.whole, self.wanted = graph, wanted
        self.graph = graph.with_layers(computable_layers(graph))
        self.builder = _PlainBuilder({})
        self.made: dict[str, _Lowered] = {}
        recorded = {kind: partial(self._record, lowering) for kind, lowering in LOWERINGS.items()}
        lower_layers(self.builder, self.graph, inputs, lowerings=recorded)
        self.active = self._active()

    def _record(
        self, lowering: Lowering, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]
    ) -> list[str]:
        before = len(builder.nodes)
        tops = lowering(builder, layer, tensors, shapes)
        self.made[layer.name] = _Lowered(tuple(tensors), tuple(tops), tuple(builder.nodes[before:]))
        return tops

    def _active(self) -> set[str]:
        found: set[str] = set()
        for name, made in self.made.items():
            for node in made.nodes:
                if found.intersection(node.input):
                    found.update(node.output)
            if name in self.wanted:
                found.update(made.tops)
        return found

    def tensor(self, value: Value) -> str | None:
        """Return the tensor of a value; None if it is not computed."""
        index, place = value
        made = self.made.get(self.whole.layers[index].name)
        return None if made is None else made.tops[place]

    def values(self) -> dict[str, onnx.ValueInfoProto]:
        """Infer type and shape of every tensor."""
        builder = self.builder
        initializers = [
            declared_tensor(name, array)
            if array.dtype == np.float32 and array.ndim
            else onnx.numpy_helper.from_array(array, name)
            for name, array in builder.initializers.items()
        ]
        graph = helper.make_graph(builder.nodes, "shapes", _float_infos(builder.inputs), [], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        return {info.name: info for info in (*inferred.input, *inferred.value_info)}


def computable_layers(graph: Graph) -> list[Layer]:
    """Return the layers that neither run in Python nor depend on one that does."""
    behind: set[int] = set()
    for index, (layer, values) in enumerate(zip(graph.layers, graph.sources, strict=True)):
        if layer.type in HOST_LAYERS or behind.intersection(maker for maker, _ in values):
            behind.add(index)
    return [layer for index, layer in enumerate(graph.layers) if index not in behind]


def _float_infos(shapes: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


class _Heads:
    """The heads found so far, and their seeds in the backward graph."""

    def __init__(self, trace: _Trace, reverse: Reverse) -> None:
        self._trace, self._reverse = trace, reverse
        self.found: dict[str, GradientHead] = {}  # by tensor

    def add(self, head: Head) -> None:
        """Let gradients start at a value, if it is computed and depends on the wanted layers."""
        tensor = self._trace.tensor(head.value)
        if tensor not in self._trace.active or tensor in self.found or not self._reverse.has_shape(tensor):
            return
        shape, seed = self._reverse.shape(tensor), f"{head.blob}:seed{len(self.found)}"
        classes = None if head.classes is None else canonical_axis(head.classes, len(shape))
        self.found[tensor] = GradientHead(head.blob, shape, classes, tensor, seed)
        self._reverse.collect(tensor, seed)


def _differentiated(trace: _Trace) -> LoweredGradients:
    reverse = Reverse(trace.builder, trace.values())
    heads, ends = _Heads(trace, reverse), find_heads(trace.whole)
    for head in ends:
        heads.add(head)
    for index in _before(trace.whole, ends):
        _carry(trace, reverse, heads, index)
    seeds = {head.seed for head in heads.found.values()}
    passes = {name: _passes(reverse, seeds, name, made) for name, made in trace.made.items() if name in trace.wanted}
    reached = {name: found for name, found in passes.items() if found}
    reasons = {name: _why_not(trace, name) for name in sorted(trace.wanted - reached.keys())}
    return _assembled(trace, reverse, tuple(heads.found.values()), reached, reasons)


def _before(graph: Graph, heads: Iterable[Head]) -> list[int]:
    """Return the layers that heads are made by, the last first."""
    left, found = [head.value[0] for head in heads], set[int]()
    while left:
        index = left.pop()
        if index not in found:
            found.add(index)
            left += [maker for maker, _ in graph.sources[index]]
    return sorted(found, reverse=True)


def _carry(trace: _Trace, reverse: Reverse, heads: _Heads, index: int) -> None:
    """Carry gradients through a layer, or start them at what it reads."""
    layer = trace.whole.layers[index]
    made = trace.made.get(layer.name)
    if made is not None and all(map(reverse.has_shape, made.tops)):
        reverse.layer = layer.name
        try:
            reverse.through(made.nodes, trace.active)
        except NoDerivative:
            pass
        else:
            return
    for blob, value in zip(layer.bottoms, trace.whole.sources[index], strict=True):
        heads.add(Head(blob, value))


def _passes(reverse: Reverse, seeds: Collection[str], name: str, made: _Lowered) -> tuple[LayerPass, ...]:
    reverse.layer = name
    found = []
    for bottom, top in zip(made.bottoms, made.tops, strict=False):
        gradient = reverse.gradient(top)
        if gradient is not None:  # an input of a model cannot be an output of it
            gradient = reverse.add("Identity", gradient) if gradient in seeds else gradient
            found.append(LayerPass(bottom, gradient, reverse.shape(top)))
    return tuple(found)


def _why_not(trace: _Trace, name: str) -> str:
    if name not in trace.made:
        return "it lies behind a layer that runs in Python"
    return "no output of the network has a gradient there"


def _assembled(
    trace: _Trace,
    reverse: Reverse,
    heads: tuple[GradientHead, ...],
    layers: Mapping[str, tuple[LayerPass, ...]],
    unreached: Mapping[str, str],
) -> LoweredGradients:
    passes = [one for found in layers.values() for one in found]
    nodes, constants = reverse.needed([one.gradient for one in passes])
    seeds = {head.seed: head.shape for head in heads}
    saved = [name for name in _read_from_outside(nodes, constants) if name not in seeds]
    handed = dict.fromkeys([*(head.value for head in heads), *(one.bottom for one in passes), *saved])
    inputs, names = trace.builder.inputs, tuple(trace.made)
    outputs = [name for name in handed if name not in inputs]
    backward = _model(
        trace.graph.name,
        (nodes, constants),
        [*_float_infos(seeds), *map(reverse.info, saved)],
        _float_infos({one.gradient: one.shape for one in passes}),
        names,
    )
    needed = trace.builder.needed(outputs)
    read = {name: inputs[name] for name in _read_from_outside(*needed)}
    forward = _model(trace.graph.name, needed, _float_infos(read), [reverse.info(name) for name in outputs], names)
    return LoweredGradients(forward, backward, heads, layers, unreached)


def _read_from_outside(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Weights]) -> list[str]:
    """Return the tensors that nodes read, but neither make nor have as constants."""
    made = {tensor for node in nodes for tensor in node.output}
    read = dict.fromkeys(tensor for node in nodes for tensor in sorted(reads(node)) if tensor)
    return [tensor for tensor in read if tensor not in made and tensor not in constants]


def _model(
    name: str,
    content: tuple[Sequence[onnx.NodeProto], Mapping[str, Weights]],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    layers: tuple[str, ...],
) -> Lowered:
    model, weights = serialized(name, *content, inputs, outputs)
    shapes = {info.name: tuple(size.dim_value for size in info.type.tensor_type.shape.dim) for info in inputs}
    return Lowered(model, weights, shapes, {info.name: info.name for info in outputs}, layers)
