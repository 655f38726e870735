"""A graph, or a range of its layers, as an ONNX model.

A graph is lowered for fixed input shapes, because Caffe's own arithmetic (clipped pooling windows, flattened axes)
depends on them. Weights stay outside the ONNX bytes as named arrays, so that the same bytes serve other weights.
What becomes of each layer type is in the package `operators`, one module a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from autonuq.errors import ModelError
from autonuq.graph import operators as _families  # noqa: F401 - fills LOWERINGS
from autonuq.graph.detached import Weights, declared_tensor, is_weights
from autonuq.graph.hosted import HOST_LAYERS
from autonuq.graph.integers import ENGINE_DOMAIN, IntegerLowering, IntegerPlan
from autonuq.graph.layers import LayerError, infer_shapes, layer_type
from autonuq.graph.model import FED_LAYERS, Graph, Layer, Shape
from autonuq.graph.operators.builder import LOWERINGS, Builder, Lowering
from autonuq.graph.operators.channels import batch_norm_rescaling
from autonuq.graph.operators.quantizers import observed_blob, quant_factors

__all__ = [
    "IR_VERSION",
    "LOWERINGS",
    "OPSET",
    "Builder",
    "Lowered",
    "batch_norm_rescaling",
    "lower",
    "lower_layers",
    "observed_blob",
    "quant_factors",
    "serialized",
]

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True)
class Lowered:
    """A graph, or a range of its layers, in ONNX.

    Attributes
    ----------
    model : bytes
        Serialized ONNX model whose weights (see `is_weights`) are declared but absent: the bytes of two networks that
        differ in weights only are the same.
    initializers : mapping of str to Weights
        The absent ones.
    inputs : mapping of str to tuple of int
        Caffe blobs that must be fed, with their shapes; the ONNX input has the blob's name.
    outputs : mapping of str to str
        Caffe blob -> ONNX output that holds its value at the end of the range. What a calibration layer reads is
        an output too, under `observed_blob`.
    layers : tuple of str
        Names of the layers; an ONNX node that one of them became has its name in front of the last colon.
    """

    model: bytes
    initializers: Mapping[str, Weights]
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, str]
    layers: tuple[str, ...] = ()


def lower(
    graph: Graph,
    inputs: Mapping[str, Shape] | None = None,
    *,
    outputs: Iterable[str] | None = None,
    first: int = 0,
    last: int | None = None,
    observe: bool = False,
    plan: IntegerPlan | None = None,
) -> Lowered:
    """Lower a graph, or the layers `first` to `last` of it.

    Parameters
    ----------
    graph : Graph
        Validated, with blobs.
    inputs : mapping of str to tuple of int, optional
        Shapes of inputs that differ from the prototxt's.
    outputs : iterable of str, optional
        Blobs that are wanted; by default those that no layer of the range reads.
    first, last : int
        Indices into `graph.layers`, `last` included.
    observe : bool
        Also put out what the calibration layers read.
    plan : IntegerPlan, optional
        Of the whole network: what of it runs in integers. Without one everything runs in float.

    Raises
    ------
    ModelError
        A layer has no blobs, or its parameters are not supported.
    """
    layers = graph.layers[first : None if last is None else last + 1]
    builder = Builder({})
    lowerings = LOWERINGS if plan is None else IntegerLowering(builder, plan).lowerings
    lower_layers(builder, graph, inputs, first=first, last=last, lowerings=lowerings)
    wanted = tuple(outputs) if outputs is not None else graph.with_layers(layers).outputs
    made = {blob: (builder.read(blob), builder.shapes[blob]) for blob in wanted}
    names = tuple(layer.name for layer in layers)
    return _assemble(graph.name, builder, made | builder.observed if observe else made, names)


def lower_layers(
    builder: Builder,
    graph: Graph,
    inputs: Mapping[str, Shape] | None = None,
    *,
    first: int = 0,
    last: int | None = None,
    lowerings: Mapping[str, Lowering] = LOWERINGS,
) -> None:
    """Let `builder` collect the nodes of the layers `first` to `last`; see `lower`.

    Parameters
    ----------
    lowerings : mapping of str to Lowering
        By layer type.
    """
    flow = _ShapeFlow(graph, infer_shapes(graph, inputs), inputs)
    for layer in graph.layers[:first]:
        flow.advance(layer)
    builder.shapes = flow.shapes
    for layer in graph.layers[first : None if last is None else last + 1]:
        _lower_layer(graph, builder, layer, flow, lowerings)


class _ShapeFlow:
    """The shape of each blob at the layer that is being lowered (layers in place may change it)."""

    def __init__(self, graph: Graph, final: Mapping[str, Shape], inputs: Mapping[str, Shape] | None) -> None:
        self.graph, self.inputs = graph, inputs or {}
        self.shapes: dict[str, Shape] = dict(final)

    def advance(self, layer: Layer) -> list[Shape]:
        """Take one layer's tops in and return their shapes, those included that the layer does not name."""
        tops = layer_type(self.graph, layer).tops(layer, [self.shapes[bottom] for bottom in layer.bottoms])
        for top, shape in zip(layer.tops, tops, strict=False):
            self.shapes[top] = tuple(self.inputs.get(top, shape)) if layer.type in FED_LAYERS else shape
        return tops


def _lower_layer(
    graph: Graph, builder: Builder, layer: Layer, flow: _ShapeFlow, lowerings: Mapping[str, Lowering]
) -> None:
    if layer.type in HOST_LAYERS:
        raise graph.error(layer, f"type '{layer.type}' runs in Python; ONNX has no operator for it")
    bottom_shapes = [builder.shapes[bottom] for bottom in layer.bottoms]
    if len(layer.blobs) < len(layer_type(graph, layer).blobs(layer, bottom_shapes)):
        raise graph.error(layer, "has no weights; load the network with its caffemodel")
    tensors = [builder.read(bottom) for bottom in layer.bottoms]
    builder.layer, builder.shapes_of_tops = layer.name, flow.advance(layer)
    builder.shapes = flow.shapes
    try:
        tops = lowerings[layer.type](builder, layer, tensors, bottom_shapes)
    except LayerError as error:
        raise ModelError(str(error), path=graph.path, layer=layer.name) from error
    builder.tensors.update(zip(layer.tops, tops, strict=False))


def _assemble(name: str, builder: Builder, made: Mapping[str, tuple[str, Shape]], layers: tuple[str, ...]) -> Lowered:
    """Give every wanted blob an output of its own and serialize."""
    outputs = {}
    for index, (blob, (tensor, _)) in enumerate(made.items()):
        outputs[blob] = f"output:{index}"
        builder.nodes.append(helper.make_node("Identity", [tensor], [outputs[blob]]))
    nodes, constants = builder.needed(outputs.values())
    model, weights = serialized(
        name,
        nodes,
        constants,
        [helper.make_tensor_value_info(blob, TensorProto.FLOAT, shape) for blob, shape in builder.inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, made[blob][1]) for blob, output in outputs.items()],
    )
    return Lowered(model, weights, builder.inputs, outputs, layers)


def serialized(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Weights],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> tuple[bytes, dict[str, Weights]]:
    """Return an ONNX model's bytes, its weights only declared, and the weights; see `Lowered`."""
    weights = {key: found for key, found in constants.items() if is_weights(found.array)}
    initializers = [
        declared_tensor(key, found.array) if key in weights else onnx.numpy_helper.from_array(found.array, key)
        for key, found in constants.items()
    ]
    graph = helper.make_graph(nodes, name or "caffe", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ENGINE_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return model.SerializeToString(), weights
