"""Lowering of layers that compute value by value, or over whole axes.

Accuracy: onnxruntime's Sigmoid is right to 1.5e-7 absolute only, so that results below x = -7 would be off by more
than 1e-4 of themselves; Sigmoid and Swish are made of Exp instead, at twice the time. (The gates of `recurrent` keep
the operator: only sums and products of them come out.) Exp and Tanh are right to 3e-7 of each result.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.arithmetic import reduction_axis
from autonuq.graph.shapes.registry import LayerError, canonical_axis

_PLAIN = {"AbsVal": "Abs", "TanH": "Tanh"}


@lowers(*_PLAIN)
def _plain(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.add(_PLAIN[layer.type], tensors[0], label=layer.name)]


@lowers("Sigmoid")
def _sigmoid(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [_logistic(builder, tensors[0], layer.name)]


def _logistic(builder: Builder, tensor: str, label: str) -> str:
    decay = builder.add("Exp", builder.add("Neg", tensor))
    return builder.add("Reciprocal", builder.scalar("Add", decay, 1.0), label=label)


@lowers("BNLL")
def _bnll(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """max(x, 0) + log(1 + e^-|x|), the logarithm in float64 as in Caffe; Softplus loses the digits of small results."""
    decay = builder.add("Exp", builder.add("Neg", builder.add("Abs", tensors[0])))
    wide = builder.add("Cast", decay, to=TensorProto.DOUBLE)
    one = builder.add("Cast", builder.constant("one", 1.0), to=TensorProto.DOUBLE)
    log = builder.floats(builder.add("Log", builder.add("Add", wide, one)))
    return [builder.add("Add", builder.add("Relu", tensors[0]), log, label=layer.name)]


@lowers("Dropout")
def _dropout(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Nothing in phase TEST, unless training did not scale what was kept: then everything is scaled down here."""
    message = layer.message.dropout_param
    if message.scale_train:
        return tensors[:1]
    return [builder.scalar("Mul", tensors[0], 1 - message.dropout_ratio, label=layer.name)]


@lowers("ReLU")
def _relu(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    slope = layer.message.relu_param.negative_slope
    if slope:
        return [builder.add("LeakyRelu", tensors[0], label=layer.name, alpha=slope)]
    return [builder.add("Relu", tensors[0], label=layer.name)]


@lowers("ReLU6")
def _relu6(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """min(max(x, 0), 6) + slope min(x, 0)."""
    slope = layer.message.relu_param.negative_slope
    limits = [builder.constant("limit", limit) for limit in (0.0, 6.0)]
    result = builder.add("Clip", tensors[0], *limits, label=layer.name)
    if not slope:
        return [result]
    leak = builder.scalar("Mul", builder.scalar("Min", tensors[0], 0.0), slope)
    return [builder.add("Add", result, leak, label=layer.name)]


@lowers("ELU")
def _elu(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.add("Elu", tensors[0], label=layer.name, alpha=layer.message.elu_param.alpha)]


@lowers("Swish")
def _swish(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    beta = layer.message.swish_param.beta
    steep = tensors[0] if beta == 1 else builder.scalar("Mul", tensors[0], beta)
    return [builder.add("Mul", tensors[0], _logistic(builder, steep, layer.name), label=layer.name)]


@lowers("Clip")
def _clip(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.clip_param
    limits = [builder.constant(f"{layer.name}:limit", float(limit)) for limit in (message.min, message.max)]
    return [builder.add("Clip", tensors[0], *limits, label=layer.name)]


@lowers("Threshold")
def _threshold(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    above = builder.scalar("Greater", tensors[0], layer.message.threshold_param.threshold)
    return [builder.floats(above, label=layer.name)]


def _linear(builder: Builder, tensor: str, scale: float, shift: float) -> str:
    scaled = tensor if scale == 1 else builder.scalar("Mul", tensor, scale)
    return scaled if shift == 0 else builder.scalar("Add", scaled, shift)


_POWERS = {0.5: "Sqrt", -1.0: "Reciprocal"}  # ten times as fast as Pow


@lowers("Power")
def _power(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """(shift + scale x)^power; where power * scale is 0 the input does not matter, not even if it is not finite."""
    message = layer.message.power_param
    if message.power * message.scale == 0:
        with np.errstate(all="ignore"):
            value = np.float32(1) if message.power == 0 else np.float32(message.shift) ** np.float32(message.power)
        size = builder.constant(f"{layer.name}:shape", np.array(shapes[0], np.int64))
        return [builder.add("Expand", builder.constant(f"{layer.name}:value", float(value)), size, label=layer.name)]
    linear = _linear(builder, tensors[0], message.scale, message.shift)
    if message.power in _POWERS:
        return [builder.add(_POWERS[message.power], linear, label=layer.name)]
    return [linear if message.power == 1 else builder.scalar("Pow", linear, message.power, label=layer.name)]


def _log_base(layer: Layer, base: float) -> float:
    """Return ln(base); Caffe's default -1 stands for e."""
    if base != -1 and base <= 0:
        raise LayerError(f"base must be positive or -1 for e, got {base}")
    return 1.0 if base == -1 else math.log(base)


@lowers("Exp")
def _exp(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """base^(shift + scale x), computed as base^shift * e^(x scale ln base)."""
    message = layer.message.exp_param
    log_base = _log_base(layer, message.base)
    power = builder.add("Exp", _linear(builder, tensors[0], message.scale * log_base, 0.0), label=layer.name)
    outer = math.exp(message.shift * log_base) if abs(message.shift * log_base) < 700 else math.inf
    return [power if outer == 1 else builder.scalar("Mul", power, outer, label=layer.name)]


@lowers("Log")
def _log(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.log_param
    log_base = _log_base(layer, message.base)
    if log_base == 0:
        raise LayerError("base 1 has no logarithm")
    log = builder.add("Log", _linear(builder, tensors[0], message.scale, message.shift), label=layer.name)
    return [log if log_base == 1 else builder.scalar("Mul", log, 1 / log_base, label=layer.name)]


@lowers("InnerProduct")
def _inner_product(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.inner_product_param
    axis = canonical_axis(message.axis, len(shapes[0]))
    rows, columns = math.prod(shapes[0][:axis]), math.prod(shapes[0][axis:])
    flat = tensors[0] if (rows, columns) == shapes[0] else builder.reshape(tensors[0], [rows, columns])
    result = builder.add("Gemm", flat, *builder.weights(layer), label=layer.name, transB=0 if message.transpose else 1)
    return [result if axis == 1 else builder.reshape(result, builder.shapes_of_tops[0], label=layer.name)]


@lowers("Embed")
def _embed(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Rows of the weights; an index outside them fails here, where Caffe reads whatever lies there."""
    weights, *bias = builder.weights(layer)
    rows = builder.add("Gather", weights, builder.indices(tensors[0]), label=layer.name, axis=0)
    return [builder.add("Add", rows, *bias, label=layer.name) if bias else rows]


@lowers("Eltwise")
def _eltwise(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.eltwise_param
    if message.operation == caffe_pb2.EltwiseParameter.SUM:
        tensors = [
            tensor if factor == 1 else builder.scalar("Mul", tensor, factor)
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


@lowers("Softmax")
def _softmax(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    axis = canonical_axis(layer.message.softmax_param.axis, len(shapes[0]))
    return [softmax(builder, tensors[0], shapes[0], axis, layer.name)]


def softmax(builder: Builder, tensor: str, shape: Shape, axis: int, label: str) -> str:
    """Divide exponentials by their sum; onnxruntime's own operator is slow unless the axis is the last that counts."""
    if math.prod(shape[axis + 1 :]) == 1:
        return builder.add("Softmax", tensor, label=label, axis=axis)
    powers = builder.add("Exp", builder.add("Sub", tensor, builder.add("ReduceMax", tensor, axes=[axis])))
    total = builder.add("ReduceSum", powers, builder.constant("axis", np.array([axis])))
    return builder.add("Div", powers, total, label=label)


_REDUCTIONS = {
    caffe_pb2.ReductionParameter.MEAN: "ReduceMean",
    caffe_pb2.ReductionParameter.ASUM: "ReduceL1",
    caffe_pb2.ReductionParameter.SUMSQ: "ReduceSumSquare",
}


@lowers("Reduction")
def _reduction(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Sum over all axes from one on, in one pass over rows, times coeff."""
    message = layer.message.reduction_param
    kept = math.prod(shapes[0][: reduction_axis(layer, shapes[0])])
    rows = builder.reshape(tensors[0], [kept, -1])
    if message.operation == caffe_pb2.ReductionParameter.SUM:
        result = builder.add("ReduceSum", rows, builder.constant(f"{layer.name}:axes", np.array([1])))
    else:
        result = builder.add(_REDUCTIONS[message.operation], rows, axes=[1])
    if message.coeff != 1:
        result = builder.scalar("Mul", result, message.coeff)
    return [builder.reshape(result, builder.shapes_of_tops[0], label=layer.name)]


@lowers("ArgMax")
def _arg_max(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Find the k largest along an axis, or of a whole item: indices as float32, values, or both."""
    message = layer.message.argmax_param
    if message.HasField("axis"):
        axis = canonical_axis(message.axis, len(shapes[0]))
        values, places = _largest(builder, tensors[0], axis, shapes[0][axis], message.top_k)
        return [values if message.out_max_val else builder.floats(places, label=layer.name)]
    count = math.prod(shapes[0][1:])
    rows = builder.reshape(tensors[0], [shapes[0][0], count])
    values, places = _largest(builder, rows, 1, count, message.top_k)
    result = builder.floats(places)
    if message.out_max_val:
        result = builder.add("Concat", result, values, axis=1)
    return [builder.reshape(result, builder.shapes_of_tops[0], label=layer.name)]


def _largest(builder: Builder, tensor: str, axis: int, count: int, top_k: int) -> tuple[str, str]:
    """Return values and indices of the `top_k` largest; of equal ones Caffe takes the later first, TopK the earlier."""
    if top_k == 1:
        place = builder.add("ArgMax", tensor, axis=axis, select_last_index=1)
        return builder.add("ReduceMax", tensor, axes=[axis]), place
    backwards = (builder.constant("backwards", np.array([number])) for number in (-1, -count - 1, axis, -1))
    turned = builder.add("Slice", tensor, *backwards)
    values, places = builder.add_many("TopK", turned, builder.constant("k", np.array([top_k])), count=2, axis=axis)
    return values, builder.add("Sub", builder.constant("last", count - 1), places)
