"""Caffe layers as ONNX operators.

A graph is lowered for fixed input shapes, because Caffe's own arithmetic (clipped pooling windows, flattened axes)
depends on them. Weights stay outside the ONNX bytes as named arrays, so that the same bytes serve other weights.

Source: each layer's `Forward_cpu` in BVLC Caffe; ONNX operator set 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.layers import (
    LayerError,
    PoolingWindow,
    canonical_axis,
    concat_axis,
    convolution,
    infer_shapes,
    layer_type,
    pooling,
    scale_shape,
)
from autonuq.graph.model import Array, Graph, Layer, Shape

OPSET = 17
IR_VERSION = 8
_EXTERNAL_BYTES = 1024  # smaller constants stay inside the ONNX bytes: operators want their shapes early


@dataclass(frozen=True)
class Lowered:
    """A graph, or a range of its layers, in ONNX.

    Attributes
    ----------
    model : bytes
        Serialized ONNX model whose large initializers are declared but absent.
    initializers : mapping of str to ndarray
        The absent ones.
    inputs : mapping of str to tuple of int
        Caffe blobs that must be fed, with their shapes; the ONNX input has the blob's name.
    outputs : mapping of str to str
        Caffe blob -> ONNX output that holds its value at the end of the range. What a calibration layer reads is
        an output too, under `observed_blob`.
    """

    model: bytes
    initializers: Mapping[str, Array]
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, str]


def observed_blob(layer: str, index: int) -> str:
    """Return the name under which `lower(observe=True)` gives bottom `index` of a calibration layer."""
    return f"{layer}#{index}"


class Builder:
    """Collects ONNX nodes while layers are lowered one after the other."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)  # blob -> shape
        self.tensors: dict[str, str] = {}  # blob -> tensor that holds its present value
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.inputs: dict[str, Shape] = {}
        self.observed: dict[str, tuple[str, Shape]] = {}  # as `observed_blob` -> tensor and shape
        self._count = 0

    def read(self, blob: str) -> str:
        """Return the tensor of a blob; a blob that nothing made so far becomes an input."""
        if blob not in self.tensors:
            self.inputs[blob] = self.shapes[blob]
            self.tensors[blob] = blob
        return self.tensors[blob]

    def constant(self, label: str, values: Array | Sequence[float] | float) -> str:
        """Add a float32 (or integer) constant and return its tensor."""
        array = np.asarray(values)
        array = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array.astype(np.int64, copy=False)
        return self._add_constant(label, array)

    def _add_constant(self, label: str, array: Array) -> str:
        name = self._unique(label)
        self.initializers[name] = array
        return name

    def add(self, operator: str, *inputs: str, label: str = "t", **attributes: object) -> str:
        """Add one operator with one output and return that tensor."""
        output = self._unique(label)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def _unique(self, label: str) -> str:
        self._count += 1
        return f"{label}:{self._count}"


Lowering = Callable[[Builder, Layer, list[str], list[Shape]], list[str]]
LOWERINGS: dict[str, Lowering] = {}


def _lowers(*names: str) -> Callable[[Lowering], Lowering]:
    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register


def lower(
    graph: Graph,
    inputs: Mapping[str, Shape] | None = None,
    *,
    outputs: Iterable[str] | None = None,
    first: int = 0,
    last: int | None = None,
    observe: bool = False,
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

    Raises
    ------
    ModelError
        A layer has no blobs, or its parameters are not supported.
    """
    shapes = infer_shapes(graph, inputs)
    layers = graph.layers[first : None if last is None else last + 1]
    builder = Builder({})
    flow = _ShapeFlow(graph, shapes, inputs)
    for layer in graph.layers[:first]:
        flow.advance(layer)
    builder.shapes = flow.shapes
    for layer in layers:
        _lower_layer(graph, builder, layer, flow)
    wanted = tuple(outputs) if outputs is not None else graph.with_layers(layers).outputs
    made = {blob: (builder.read(blob), builder.shapes[blob]) for blob in wanted}
    return _assemble(graph.name, builder, made | builder.observed if observe else made)


class _ShapeFlow:
    """The shape of each blob at the layer that is being lowered (layers in place may change it)."""

    def __init__(self, graph: Graph, final: Mapping[str, Shape], inputs: Mapping[str, Shape] | None) -> None:
        self.graph, self.inputs = graph, inputs or {}
        self.shapes: dict[str, Shape] = dict(final)

    def advance(self, layer: Layer) -> None:
        bottoms = [self.shapes[bottom] for bottom in layer.bottoms]
        for top, shape in zip(layer.tops, layer_type(self.graph, layer).tops(layer, bottoms), strict=False):
            self.shapes[top] = tuple(self.inputs.get(top, shape)) if layer.type == "Input" else shape


def _lower_layer(graph: Graph, builder: Builder, layer: Layer, flow: _ShapeFlow) -> None:
    definition = layer_type(graph, layer)
    bottom_shapes = [builder.shapes[bottom] for bottom in layer.bottoms]
    expected = definition.blobs(layer, bottom_shapes) if bottom_shapes else []
    if len(layer.blobs) < len(expected):
        raise graph.error(layer, "has no weights; load the network with its caffemodel")
    tensors = [builder.read(bottom) for bottom in layer.bottoms]
    try:
        tops = LOWERINGS[layer.type](builder, layer, tensors, bottom_shapes)
    except LayerError as error:
        raise ModelError(str(error), path=graph.path, layer=layer.name) from error
    flow.advance(layer)
    builder.shapes = flow.shapes
    builder.tensors.update(zip(layer.tops, tops, strict=False))


def _assemble(name: str, builder: Builder, made: Mapping[str, tuple[str, Shape]]) -> Lowered:
    """Give every wanted blob an output of its own and serialize."""
    outputs = {}
    for index, (blob, (tensor, _)) in enumerate(made.items()):
        outputs[blob] = f"output:{index}"
        builder.nodes.append(helper.make_node("Identity", [tensor], [outputs[blob]]))
    external = {key: array for key, array in builder.initializers.items() if array.nbytes >= _EXTERNAL_BYTES}
    graph = helper.make_graph(
        builder.nodes,
        name or "caffe",
        [helper.make_tensor_value_info(blob, TensorProto.FLOAT, shape) for blob, shape in builder.inputs.items()],
        [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, made[blob][1])
            for blob, output in outputs.items()
        ],
        [
            _external_tensor(key, array) if key in external else onnx.numpy_helper.from_array(array, key)
            for key, array in builder.initializers.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return Lowered(model.SerializeToString(), external, builder.inputs, outputs)


def _external_tensor(name: str, array: Array) -> onnx.TensorProto:
    tensor = onnx.TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _broadcast(values: Array, axis: int, axes: int) -> Array:
    """Shape `values` so that they line up with the axes from `axis` on of a tensor with `axes` axes."""
    return values.reshape(values.shape + (1,) * (axes - axis - values.ndim))


@_lowers("Input")
def _input(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.read(top) for top in layer.tops]


@_lowers("Convolution", "Deconvolution")
def _convolution(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    found = convolution(layer, len(shapes[0]) - 2)
    operands = [builder.constant(f"{layer.name}:{index}", blob) for index, blob in enumerate(layer.blobs)]
    operator = "ConvTranspose" if layer.type == "Deconvolution" else "Conv"
    return [
        builder.add(
            operator,
            tensor,
            *operands,
            label=layer.name,
            kernel_shape=found.kernel,
            strides=found.stride,
            pads=found.pad * 2,
            dilations=found.dilation,
            group=found.group,
        )
        for tensor in tensors
    ]


@_lowers("InnerProduct")
def _inner_product(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.inner_product_param
    axis = canonical_axis(message.axis, len(shapes[0]))
    rows, columns = math.prod(shapes[0][:axis]), math.prod(shapes[0][axis:])
    flat = tensors[0]
    if (rows, columns) != shapes[0]:
        flat = builder.add("Reshape", flat, builder.constant(f"{layer.name}:rows", np.array([rows, columns])))
    operands = [builder.constant(f"{layer.name}:{index}", blob) for index, blob in enumerate(layer.blobs)]
    result = builder.add("Gemm", flat, *operands, label=layer.name, transB=0 if message.transpose else 1)
    if axis != 1:
        shape = np.array([*shapes[0][:axis], message.num_output])
        result = builder.add("Reshape", result, builder.constant(f"{layer.name}:shape", shape))
    return [result]


@_lowers("Pooling")
def _pooling(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    found = pooling(layer, shapes[0])
    if found.is_global:
        operator = "GlobalMaxPool" if found.method == "MAX" else "GlobalAveragePool"
        return [builder.add(operator, tensors[0], label=layer.name)]
    extent = [(n - 1) * s + k for n, s, k in zip(found.output, found.stride, found.kernel, strict=True)]
    end = [max(0, e - n - p) for e, n, p in zip(extent, shapes[0][2:], found.pad, strict=True)]
    window = {"kernel_shape": found.kernel, "strides": found.stride, "pads": [*found.pad, *end]}
    if found.method == "MAX":
        return [builder.add("MaxPool", tensors[0], label=layer.name, **window)]
    pooled = builder.add("AveragePool", tensors[0], label=layer.name, count_include_pad=1, **window)
    correction = _overhang_correction(found, shapes[0])
    if correction is not None:
        pooled = builder.add("Mul", pooled, builder.constant(f"{layer.name}:area", correction), label=layer.name)
    return [pooled]


def _overhang_correction(found: PoolingWindow, bottom: Shape) -> Array | None:
    """Return area/counted of each window: Caffe counts the padding of a window but not what overhangs it."""
    counted = []
    for size, kernel, stride, pad, output in zip(
        bottom[2:],
        found.kernel,
        found.stride,
        found.pad,
        found.output,
        strict=True,
    ):
        start = np.arange(output) * stride - pad
        counted.append(kernel / (np.minimum(start + kernel, size + pad) - start))
    correction = np.multiply.outer(*counted).astype(np.float32)
    return None if (correction == 1).all() else correction


@_lowers("ReLU")
def _relu(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    slope = layer.message.relu_param.negative_slope
    if slope:
        return [builder.add("LeakyRelu", tensors[0], label=layer.name, alpha=slope)]
    return [builder.add("Relu", tensors[0], label=layer.name)]


@_lowers("Softmax")
def _softmax(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    axis = layer.message.softmax_param.axis
    return [builder.add("Softmax", tensor, label=layer.name, axis=axis) for tensor in tensors]


@_lowers("Dropout", "AntiQuant")
def _identity(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return tensors[:1]


@_lowers("BatchNorm")
def _batch_norm(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    mean, variance = batch_norm_statistics(layer)
    ones = np.ones_like(mean)
    operands = [
        builder.constant(f"{layer.name}:{label}", values)
        for label, values in (("ones", ones), ("zeros", ones * 0), ("mean", mean), ("variance", variance))
    ]
    epsilon = layer.message.batch_norm_param.eps
    return [builder.add("BatchNormalization", tensors[0], *operands, label=layer.name, epsilon=epsilon)]


def batch_norm_statistics(layer: Layer) -> tuple[Array, Array]:
    """Return mean and variance, shape (C,): the stored sums divided by the moving-average factor (0 stays 0)."""
    mean, variance, factor = layer.blobs
    share = np.float32(0 if factor[0] == 0 else 1 / factor[0])
    return mean * share, variance * share


@_lowers("Scale")
def _scale(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    axes = len(shapes[0])
    axis = canonical_axis(layer.message.scale_param.axis, axes)
    blobs = list(layer.blobs)
    if len(tensors) == 2:
        shape = np.array(shapes[1] + (1,) * (axes - axis - len(shapes[1])))
        factor = builder.add("Reshape", tensors[1], builder.constant(f"{layer.name}:shape", shape))
    else:
        values = blobs.pop(0).reshape(scale_shape(layer, shapes[0]))
        factor = builder.constant(f"{layer.name}:scale", _broadcast(values, axis, axes))
    result = builder.add("Mul", tensors[0], factor, label=layer.name)
    if blobs:
        bias = builder.constant(f"{layer.name}:bias", _broadcast(blobs[0], axis, axes))
        result = builder.add("Add", result, bias, label=layer.name)
    return [result]


@_lowers("Eltwise")
def _eltwise(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.eltwise_param
    if message.operation == caffe_pb2.EltwiseParameter.SUM:
        tensors = [
            tensor if factor == 1 else builder.add("Mul", tensor, builder.constant(f"{layer.name}:coeff", factor))
            for tensor, factor in zip(tensors, message.coeff or [1.0] * len(tensors), strict=True)
        ]
    operator = {
        caffe_pb2.EltwiseParameter.SUM: "Add",
        caffe_pb2.EltwiseParameter.PROD: "Mul",
        caffe_pb2.EltwiseParameter.MAX: "Max",
    }[message.operation]
    result = tensors[0]
    for tensor in tensors[1:]:
        result = builder.add(operator, result, tensor, label=layer.name)
    return [result]


@_lowers("Concat")
def _concat(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.add("Concat", *tensors, label=layer.name, axis=concat_axis(layer, shapes[0]))]


def _rounded(builder: Builder, tensor: str, *, signed: bool = True) -> str:
    """C's round(), half away from zero, for values below 2**23.

    Adding the largest float32 below 0.5 and truncating is exact there: halves tie to the even sum, which is the
    next integer, and anything smaller stays below it. Adding 0.5 itself would round 0.49999997 up.
    """
    below_half = builder.constant("below_half", float(np.nextafter(np.float32(0.5), np.float32(0))))
    if not signed:
        return builder.add("Floor", builder.add("Add", tensor, below_half))
    away = builder.add("Add", tensor, builder.add("Mul", builder.add("Sign", tensor), below_half))
    return builder.add("Cast", builder.add("Cast", away, to=TensorProto.INT32), to=TensorProto.FLOAT)


@_lowers("Quant")
def _quant(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Fake quantization: onto the int8 grid and back to float (AMCT's quant_layer; `scale` is the reciprocal)."""
    factor, offset = quant_factors(layer)
    steps = builder.add("Mul", tensors[0], builder.constant("scale", factor))
    low, high = builder.constant("low", -128.0 - offset), builder.constant("high", 127.0 - offset)
    rounded = _rounded(builder, builder.add("Clip", steps, low, high), signed=offset > -128)
    return [builder.add("Div", rounded, builder.constant("scale", factor), label=layer.name)]


def quant_factors(layer: Layer) -> tuple[float, int]:
    """Return the factor (1/scale_d) and the offset of a Quant layer.

    Raises
    ------
    LayerError
        The factor is not finite and positive, or the offset is no single byte.
    """
    message = layer.message.quant_param
    offset = message.offset or b"\0"
    if not (math.isfinite(message.scale) and message.scale > np.finfo(np.float64).eps) or len(offset) != 1:
        raise LayerError(f"Quant needs a finite positive scale and a 1-byte offset, got {message.scale}, {offset!r}")
    return message.scale, int.from_bytes(offset, "little", signed=True)


@_lowers("DeQuant")
def _dequant(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """AMCT's dequant_layer: the identity unless a shift is asked for."""
    scale, shift, _ = layer.blobs
    if not shift.any():
        return tensors[:1]
    if shift.min() < 1 or shift.max() > 16:
        raise LayerError(f"DeQuant needs all shifts 0 or all in 1..16, got {shift.min():g} to {shift.max():g}")
    scale, shift = (_broadcast(blob, 1, len(shapes[0])) for blob in (scale, shift))
    deq = builder.constant(f"{layer.name}:scale", scale)
    power = builder.constant(f"{layer.name}:power", np.exp2(shift).astype(np.float32))
    codes = _rounded(builder, builder.add("Div", tensors[0], deq))
    shifted = _rounded(builder, builder.add("Div", codes, power))
    limits = [builder.constant("int16", float(limit)) for limit in (-(2**15), 2**15 - 1)]
    clipped = builder.add("Clip", shifted, *limits)
    return [builder.add("Mul", builder.add("Mul", clipped, deq), power, label=layer.name)]


@_lowers("IFMR", "HFMG")
def _observer(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Calibration layers have no tops; `runtime` fetches what they read."""
    for index, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        builder.observed[observed_blob(layer.name, index)] = (tensor, shape)
    return []
