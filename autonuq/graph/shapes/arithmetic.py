"""Layers that compute value by value, or over whole axes: activations, sums, products, reductions."""

from __future__ import annotations

import math

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import LayerError, canonical_axis, define, same

UNARY_TYPES = (
    "AbsVal",
    "BNLL",
    "Clip",
    "Dropout",
    "ELU",
    "Exp",
    "Log",
    "Power",
    "ReLU",
    "ReLU6",
    "Sigmoid",
    "Swish",
    "TanH",
    "Threshold",
)


def _inner_product_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.inner_product_param
    axis = canonical_axis(message.axis, len(bottoms[0]))
    if message.num_output < 1:
        raise LayerError("num_output must be positive")
    return [(*bottoms[0][:axis], message.num_output)]


def _inner_product_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.inner_product_param
    inputs = math.prod(bottoms[0][canonical_axis(message.axis, len(bottoms[0])) :])
    weight = (inputs, message.num_output) if message.transpose else (message.num_output, inputs)
    return [weight, (message.num_output,)] if message.bias_term else [weight]


def _embed_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [(*bottoms[0], layer.message.embed_param.num_output)]


def _embed_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.embed_param
    if message.num_output < 1 or message.input_dim < 1:
        raise LayerError("num_output and input_dim must be positive")
    weight = (message.input_dim, message.num_output)
    return [weight, (message.num_output,)] if message.bias_term else [weight]


def _eltwise_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if len(set(bottoms)) > 1:
        raise LayerError(f"element-wise inputs differ in shape: {', '.join(map(str, bottoms))}")
    message = layer.message.eltwise_param
    if message.coeff and len(message.coeff) != len(bottoms):
        raise LayerError(f"has {len(message.coeff)} coefficients for {len(bottoms)} bottoms")
    if message.coeff and message.operation == caffe_pb2.EltwiseParameter.PROD:
        raise LayerError("takes coefficients only for SUM")
    return bottoms[:1]


def _softmax_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    canonical_axis(layer.message.softmax_param.axis, len(bottoms[0]))
    return bottoms


def reduction_axis(layer: Layer, bottom: Shape) -> int:
    """Return the first of the axes that Reduction removes; the axis may be that of a scalar."""
    return canonical_axis(layer.message.reduction_param.axis, len(bottom)) if bottom else 0


def _reduction_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [bottoms[0][: reduction_axis(layer, bottoms[0])]]


def _arg_max_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Without an axis the top has at least three: (N, 1 or 2, top_k, 1, ...)."""
    message, bottom = layer.message.argmax_param, bottoms[0]
    axis = canonical_axis(message.axis, len(bottom)) if message.HasField("axis") else None
    available = math.prod(bottom[1:]) if axis is None else bottom[axis]
    if not 1 <= message.top_k <= available:
        raise LayerError(f"top_k must be in 1..{available}, got {message.top_k}")
    if not bottom:
        raise LayerError("needs an input with axes, got a scalar")
    if axis is not None:
        return [(*bottom[:axis], message.top_k, *bottom[axis + 1 :])]
    return [(bottom[0], 2 if message.out_max_val else 1, message.top_k, *(1,) * (len(bottom) - 3))]


define(UNARY_TYPES, same)
define(["InnerProduct"], _inner_product_tops, _inner_product_blobs)
define(["Embed"], _embed_tops, _embed_blobs)
define(["Eltwise"], _eltwise_tops, bottoms=range(2, 2**31))
define(["Softmax"], _softmax_tops)
define(["Reduction"], _reduction_tops)
define(["ArgMax"], _arg_max_tops)
