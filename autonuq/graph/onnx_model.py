"""A quantized network as an ONNX model of its own: integers inside, so that any runtime for ONNX executes it.

A Quant layer becomes QuantizeLinear and DequantizeLinear, the weights of a quantized layer int8 codes behind a
DequantizeLinear (which gives the fake-quant model's weights bit for bit), a DeQuant layer what its shift asks for.

With codebooks, a layer's codes are indices into its levels, ceil(log2 levels) bits each: a Gather behind the function
`Unpack` of the model itself. Bit b of index i is bit i % 8 of byte (b, i // 8): every number of bits packs without a
gap, where ONNX's own 4-bit tensors would serve 16 levels only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx
from onnx import FunctionProto, TensorProto, helper, numpy_helper, parser

from autonuq.graph.any_batch import free_batch
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.lowering import IR_VERSION, LOWERINGS, OPSET, Builder, lower_layers
from autonuq.graph.model import Array, Graph, Layer, Shape
from autonuq.graph.record import Factors

DOMAIN = "autonuq"
_OPSETS = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
# Shifting to the left, then to the right leaves one bit of a uint8. `powers` is (1, bits).
_UNPACK = f"""
<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">
Unpack (packed, powers, levels, shape) => (codes)
{{
   up = Constant <value = uint8[8] {{7, 6, 5, 4, 3, 2, 1, 0}}> ()
   down = Constant <value = uint8 {{7}}> ()
   last = Constant <value = int64[1] {{2}}> ()
   first = Constant <value = int64[1] {{0}}> ()
   rows = Constant <value = int64[2] {{0, -1}}> ()
   flat = Constant <value = int64[1] {{-1}}> ()
   bytes = Unsqueeze (packed, last)
   high = BitShift <direction = "LEFT"> (bytes, up)
   low = BitShift <direction = "RIGHT"> (high, down)
   bits = Reshape (low, rows)
   sums = MatMulInteger (powers, bits)
   indices = Reshape (sums, flat)
   count = ReduceProd <keepdims = 1> (shape)
   kept = Slice (indices, first, count)
   values = Gather (levels, kept)
   codes = Reshape (values, shape)
}}
"""


class IntegerWeights(Protocol):
    """Weights as codes times scale; `quant.uniform.UniformWeights` is one."""

    @property
    def codes(self) -> Array: ...  # noqa: D102
    @property
    def scale(self) -> Array: ...  # noqa: D102
    @property
    def channel_axis(self) -> int | None: ...  # noqa: D102


def build_onnx(
    graph: Graph,
    weights: Mapping[str, IntegerWeights],
    factors: Mapping[str, Factors],
    *,
    codebooks: bool = False,
    metadata: Mapping[str, str],
) -> bytes:
    """Serialize a fake-quant network as ONNX.

    Parameters
    ----------
    graph : Graph
        As from `insert_quantizers`, with float32 blobs.
    weights : mapping of str to IntegerWeights
        By name of every quantized layer that has weights: what the graph's are made of.
    factors : mapping of str to Factors
        By name of every quantized layer.
    codebooks : bool
        Store indices into each layer's levels instead of int8 codes.
    metadata : mapping of str to str
        Goes into the model's metadata, each key behind "autonuq:".

    Raises
    ------
    ModelError
        A layer has no ONNX operator.

    Notes
    -----
    Outputs, and the inputs that are read, have the names and the shapes of the Caffe blobs, but any batch size,
    "batch", if the network treats its items one by one (`find_batch`). Otherwise the prototxt's stays, and a warning
    and the metadata ("batch") say why. The model passes `onnx.checker` with full shape inference. Ties are rounded to
    even by QuantizeLinear, away from zero by Caffe: that is all that differs.
    """
    builder = _IntegerBuilder(graph, weights, codebooks)
    _lower(builder, graph, factors)
    axes, size, note = _free_batch(builder, graph, factors)
    for blob in graph.outputs:
        builder.nodes.append(helper.make_node("Identity", [builder.read(blob)], [blob]))
    nodes, constants = builder.needed(graph.outputs)
    read = {name for node in nodes for name in node.input}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            graph.name or "caffe",
            [_declared(blob, shape, axes, size) for blob, shape in builder.inputs.items() if blob in read],
            [_declared(blob, builder.shapes[blob], axes, size) for blob in graph.outputs],
            [numpy_helper.from_array(np.asarray(found.values, order="C"), key) for key, found in constants.items()],
        ),
        opset_imports=_OPSETS if codebooks else _OPSETS[:1],
        ir_version=IR_VERSION,
        producer_name="autonuq",
        functions=[_unpack_function()] if codebooks else [],
    )
    helper.set_model_props(model, {f"{DOMAIN}:{key}": value for key, value in {**metadata, "batch": note}.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _lower(
    builder: _IntegerBuilder,
    graph: Graph,
    factors: Mapping[str, Factors],
    inputs: Mapping[str, Shape] | None = None,
) -> None:
    lowerings = LOWERINGS | {"Quant": lambda _, layer, tensors, shapes: _quantize(builder, layer, tensors, factors)}
    lower_layers(builder, graph, inputs, lowerings=lowerings)


def _free_batch(
    builder: _IntegerBuilder, graph: Graph, factors: Mapping[str, Factors]
) -> tuple[Mapping[str, int], int, str]:
    """Make the nodes fit any batch size if the network does.

    Returns
    -------
    mapping of str to int
        The axis of every blob that has the size of the batch.
    int
        The prototxt's batch size.
    str
        What the metadata say of it.
    """
    try:
        batch = find_batch(graph)
        one_more = builder.sibling()
        _lower(one_more, graph, factors, batch.inputs)
        free_batch(builder, one_more, batch.size)
    except MixesItems as reason:
        note = f"the prototxt's size only: {reason}"
        warnings.warn(f"the ONNX file runs at the batch size of the prototxt only: {reason}", stacklevel=3)
        return {}, 0, note
    return batch.axes, batch.size, "any"


def _declared(blob: str, shape: Shape, axes: Mapping[str, int], size: int) -> onnx.ValueInfoProto:
    """Declare an input or an output; a size that is a multiple of the batch's has no name."""
    sizes: list[int | str | None] = list(shape)
    if blob in axes:
        sizes[axes[blob]] = "batch" if shape[axes[blob]] == size else None
    return helper.make_tensor_value_info(blob, TensorProto.FLOAT, sizes)


def _unpack_function() -> FunctionProto:
    return parser.parse_function(_UNPACK)


def _quantize(builder: _IntegerBuilder, layer: Layer, tensors: list[str], factors: Mapping[str, Factors]) -> list[str]:
    found = factors[layer.message.quant_param.object_layer]
    scale = builder.constant("scale", float(found.scale_d or 0))
    zero = builder.stored("zero", np.array(found.offset_d, np.int8))
    codes = builder.add("QuantizeLinear", tensors[0], scale, zero)
    return [builder.add("DequantizeLinear", codes, scale, zero, label=layer.name)]


class _IntegerBuilder(Builder):
    """A builder that stores the weights of quantized layers as integers."""

    def __init__(self, graph: Graph, weights: Mapping[str, IntegerWeights], codebooks: bool) -> None:
        super().__init__({})
        self._integers = {id(layer.blobs[0]): layer.name for layer in graph.layers if layer.name in weights}
        self._weights, self._codebooks = weights, codebooks
        self._powers: dict[int, str] = {}
        self._packed: dict[str, Array] = {}
        self._origin = graph

    def sibling(self) -> _IntegerBuilder:
        """Return an empty builder for the same network; what is packed already is not packed again."""
        other = _IntegerBuilder(self._origin, self._weights, self._codebooks)
        other._packed = self._packed
        return other

    def constant(self, label: str, values: Array | list[float] | float) -> str:  # type: ignore[override]
        """Add a constant; see `Builder.constant`."""
        name = self._integers.get(id(values))
        if name is None:
            return super().constant(label, values)
        found = self._weights[name]
        codes = self._codes(name, found.codes)
        scale = np.ascontiguousarray(found.scale, np.float32)
        if found.channel_axis is None:
            return self.add("DequantizeLinear", codes, self.stored("scale", scale.reshape(())), label=label)
        return self.add("DequantizeLinear", codes, self.stored("scale", scale), label=label, axis=found.channel_axis)

    def _codes(self, layer: str, codes: Array) -> str:
        steps = codes.view(np.uint8)
        present = np.bincount(steps.reshape(-1), minlength=256) > 0
        levels = np.arange(256, dtype=np.uint8)[present].view(np.int8)
        bits = max(1, math.ceil(math.log2(len(levels))))
        if not self._codebooks or bits == 8:
            return self.stored(f"{layer}:codes", codes)
        if bits not in self._powers:
            self._powers[bits] = self.stored("powers", 1 << np.arange(bits, dtype=np.uint8)[None])
        if layer not in self._packed:
            self._packed[layer] = pack_indices((np.cumsum(present) - 1)[steps], bits)
        return self.add(
            "Unpack",
            self.stored(f"{layer}:indices", self._packed[layer]),
            self._powers[bits],
            self.stored(f"{layer}:levels", levels),
            self.stored(f"{layer}:shape", np.array(codes.shape, np.int64)),
            domain=DOMAIN,
        )


def pack_indices(indices: Array, bits: int) -> Array:
    """Lay out indices bit by bit.

    Parameters
    ----------
    indices : ndarray of int, any shape, n values in [0, 2**bits)

    Returns
    -------
    ndarray of uint8, shape (bits, ceil(n / 8))
        Bit b of index i is bit i % 8 of byte (b, i // 8).
    """
    flat = indices.reshape(-1)
    return np.stack([np.packbits((flat >> bit & 1).astype(np.uint8), bitorder="little") for bit in range(bits)])
