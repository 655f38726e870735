"""What each Caffe layer type means for shapes: its parameters, its tops and its blobs.

Every formula is Caffe's own definition (`LayerSetUp` and `Reshape` of the layer in BVLC Caffe). `lowering` holds the
arithmetic of the same types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.model import Graph, Layer, Shape

MAX_ELEMENTS = 2**31 - 1  # Caffe's Blob::Reshape refuses more


class LayerError(ValueError):
    """A layer's parameters or bottoms are wrong; the message goes to the user with file and layer in front."""


@dataclass(frozen=True)
class ConvolutionWindow:
    """Parameters of Convolution and Deconvolution, one entry a spatial axis.

    Attributes
    ----------
    num_output, group : int
    kernel, stride, pad, dilation : tuple of int
    bias : bool
    """

    num_output: int
    group: int
    kernel: Shape
    stride: Shape
    pad: Shape
    dilation: Shape
    bias: bool


def convolution(layer: Layer, spatial_axes: int) -> ConvolutionWindow:
    """Read a layer's convolution_param for inputs with so many spatial axes."""
    message = layer.message.convolution_param
    if message.axis not in (1, -1 - spatial_axes):
        raise LayerError(f"convolution over axis {message.axis} is not supported; axis must be 1")
    kernel = _spatial(message, "kernel_size", ("kernel_h", "kernel_w"), spatial_axes, None)
    found = ConvolutionWindow(
        num_output=message.num_output,
        group=message.group,
        kernel=kernel,
        stride=_spatial(message, "stride", ("stride_h", "stride_w"), spatial_axes, 1),
        pad=_spatial(message, "pad", ("pad_h", "pad_w"), spatial_axes, 0),
        dilation=_spatial(message, "dilation", None, spatial_axes, 1),
        bias=message.bias_term,
    )
    if found.num_output < 1 or found.group < 1 or found.num_output % found.group:
        raise LayerError(f"num_output {found.num_output} must be positive and a multiple of group {found.group}")
    if min(*kernel, *found.stride, *found.dilation) < 1:
        raise LayerError("kernel, stride and dilation must be positive")
    return found


def _spatial(
    message: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter,
    name: str,
    pair: tuple[str, str] | None,
    axes: int,
    default: int | None,
) -> Shape:
    """Read a repeated spatial parameter, or its _h and _w spelling for two axes."""
    if pair and (message.HasField(pair[0]) or message.HasField(pair[1])):  # type: ignore[arg-type]
        if axes != 2:
            raise LayerError(f"{pair[0]} and {pair[1]} need two spatial axes, not {axes}")
        return (getattr(message, pair[0]), getattr(message, pair[1]))
    values = getattr(message, name)
    values = tuple(values) if isinstance(values, Sequence) or hasattr(values, "__len__") else (values,)
    if not values and default is not None:
        values = (default,)
    if len(values) not in (1, axes):
        raise LayerError(f"{name} has {len(values)} values for {axes} spatial axes")
    return values * axes if len(values) == 1 else values


@dataclass(frozen=True)
class PoolingWindow:
    """Parameters of 2-D pooling after its input is known.

    Attributes
    ----------
    method : {"MAX", "AVE"}
    is_global : bool
    kernel, stride, pad, output : tuple of int, (height, width)
        `output` is Caffe's rounded-up size, clipped so that the last window starts inside the padded input.
    """

    method: str
    is_global: bool
    kernel: Shape
    stride: Shape
    pad: Shape
    output: Shape


def pooling(layer: Layer, bottom: Shape) -> PoolingWindow:
    """Read a layer's pooling_param for one input shape (N, C, H, W)."""
    message = layer.message.pooling_param
    if len(bottom) != 4:
        raise LayerError(f"pooling needs an input of 4 axes, got {bottom}")
    method = caffe_pb2.PoolingParameter.PoolMethod.Name(message.pool)
    if method not in ("MAX", "AVE"):
        raise LayerError(f"pooling method {method} is not supported; MAX and AVE are")
    size = bottom[2:]
    if message.global_pooling:
        return PoolingWindow(method, True, size, (1, 1), (0, 0), (1, 1))
    kernel = _pair(message, "kernel_size", "kernel_h", "kernel_w")
    stride = _pair(message, "stride", "stride_h", "stride_w")
    pad = _pair(message, "pad", "pad_h", "pad_w")
    if min(*kernel, *stride) < 1:
        raise LayerError("pooling needs a positive kernel and stride, or global_pooling")
    if any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise LayerError(f"pad {pad} must be smaller than kernel {kernel}")
    floor = message.round_mode == caffe_pb2.PoolingParameter.FLOOR or not message.ceil_mode
    output = tuple(
        _pooled_size(n, k, s, p, floor) for n, k, s, p in zip(size, kernel, stride, pad, strict=True)
    )
    return PoolingWindow(method, False, kernel, stride, pad, output)


def _pair(message: caffe_pb2.PoolingParameter, both: str, height: str, width: str) -> Shape:
    if message.HasField(height) and message.HasField(width):  # type: ignore[arg-type]
        return (getattr(message, height), getattr(message, width))
    return (getattr(message, both),) * 2


def _pooled_size(size: int, kernel: int, stride: int, pad: int, floor: bool) -> int:
    span = size + 2 * pad - kernel
    steps = span // stride if floor else -(-span // stride)
    count = steps + 1
    if pad and (count - 1) * stride >= size + pad:
        count -= 1
    if count < 1:
        raise LayerError(f"kernel {kernel} is larger than the padded input {size + 2 * pad}")
    return count


def canonical_axis(axis: int, axes: int) -> int:
    """Caffe's CanonicalAxisIndex: negative axes count from the end."""
    if not -axes <= axis < axes:
        raise LayerError(f"axis {axis} is outside an input of {axes} axes")
    return axis % axes


Tops = Callable[[Layer, list[Shape]], list[Shape]]


@dataclass(frozen=True)
class LayerType:
    """Shapes of one layer type.

    Attributes
    ----------
    tops : callable
        (layer, bottom shapes) -> top shapes.
    blobs : callable
        (layer, bottom shapes) -> shapes of the layer's own blobs.
    bottoms : range
        How many bottoms it takes.
    """

    tops: Tops
    blobs: Tops
    bottoms: range


LAYER_TYPES: dict[str, LayerType] = {}
_ONE, _ANY = range(1, 2), range(1, 2**31)


def _no_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return []


def _same(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return bottoms[:1]


def _define(names: Iterable[str], tops: Tops, blobs: Tops = _no_blobs, bottoms: range = _ONE) -> None:
    LAYER_TYPES.update(dict.fromkeys(names, LayerType(tops, blobs, bottoms)))


def _input_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    shapes = [tuple(shape.dim) for shape in layer.message.input_param.shape]
    return shapes * len(layer.tops) if len(shapes) == 1 else shapes


def _convolution_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [_convolved(layer, bottom) for bottom in bottoms]


def _convolved(layer: Layer, bottom: Shape) -> Shape:
    if len(bottom) < 3:
        raise LayerError(f"convolution needs spatial axes, got an input of shape {bottom}")
    found = convolution(layer, len(bottom) - 2)
    if bottom[1] % found.group:
        raise LayerError(f"{bottom[1]} input channels are no multiple of group {found.group}")
    sizes = []
    for size, kernel, stride, pad, dilation in zip(
        bottom[2:], found.kernel, found.stride, found.pad, found.dilation, strict=True
    ):
        extent = dilation * (kernel - 1) + 1
        if layer.type == "Deconvolution":
            result = stride * (size - 1) + extent - 2 * pad
        else:
            result = (size + 2 * pad - extent) // stride + 1
        if result < 1:
            raise LayerError(f"kernel of extent {extent} is larger than the padded input {size + 2 * pad}")
        sizes.append(result)
    return (bottom[0], found.num_output, *sizes)


def _convolution_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    found = convolution(layer, len(bottoms[0]) - 2)
    channels = bottoms[0][1]
    if layer.type == "Deconvolution":
        weight = (channels, found.num_output // found.group, *found.kernel)
    else:
        weight = (found.num_output, channels // found.group, *found.kernel)
    return [weight, (found.num_output,)] if found.bias else [weight]


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


def _pooling_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [(*bottoms[0][:2], *pooling(layer, bottoms[0]).output)]


def _batch_norm_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
    return [(channels,), (channels,), (1,)]


def scale_shape(layer: Layer, bottom: Shape) -> Shape:
    """Return the shape of a Scale layer's own scale: `num_axes` axes of its bottom from `axis` on."""
    message = layer.message.scale_param
    axis = canonical_axis(message.axis, len(bottom))
    end = len(bottom) if message.num_axes == -1 else axis + message.num_axes
    if end > len(bottom):
        raise LayerError(f"scale covers {message.num_axes} axes from axis {axis} of an input with {len(bottom)}")
    return bottom[axis:end]


def _scale_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    own = [] if len(bottoms) == 2 else [scale_shape(layer, bottoms[0])]
    factor = bottoms[1] if len(bottoms) == 2 else own[0]
    return [*own, factor] if layer.message.scale_param.bias_term else own


def _eltwise_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if len(set(bottoms)) > 1:
        raise LayerError(f"element-wise inputs differ in shape: {', '.join(map(str, bottoms))}")
    coefficients = layer.message.eltwise_param.coeff
    if coefficients and len(coefficients) != len(bottoms):
        raise LayerError(f"has {len(coefficients)} coefficients for {len(bottoms)} bottoms")
    return bottoms[:1]


def concat_axis(layer: Layer, bottom: Shape) -> int:
    """Return the axis along which Concat joins; `concat_dim` is its older name."""
    message = layer.message.concat_param
    return canonical_axis(message.concat_dim if message.HasField("concat_dim") else message.axis, len(bottom))


def _concat_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    axis = concat_axis(layer, bottoms[0])
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in bottoms}) > 1:
        raise LayerError(f"inputs to join along axis {axis} differ elsewhere: {', '.join(map(str, bottoms))}")
    return [(*bottoms[0][:axis], sum(shape[axis] for shape in bottoms), *bottoms[0][axis + 1 :])]


def _softmax_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    canonical_axis(layer.message.softmax_param.axis, len(bottoms[0]))
    return bottoms


def _no_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return []


def _dequant_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Scale, shift and weight offset; a deploy model packs the three into one uint64 blob (see `passes`)."""
    channels = bottoms[0][1] if layer.message.dequant_param.channel_wise and len(bottoms[0]) == 4 else 1
    return [(channels,)] * 3


_define(["Input"], _input_tops, bottoms=range(1))
_define(["Convolution", "Deconvolution"], _convolution_tops, _convolution_blobs, _ANY)
_define(["InnerProduct"], _inner_product_tops, _inner_product_blobs)
_define(["Pooling"], _pooling_tops)
_define(["BatchNorm"], _same, _batch_norm_blobs)
_define(["Scale"], _same, _scale_blobs, range(1, 3))
_define(["Eltwise"], _eltwise_tops, bottoms=range(2, 2**31))
_define(["Concat"], _concat_tops, bottoms=_ANY)
_define(["Softmax"], _softmax_tops)
_define(["ReLU", "Dropout", "Quant", "AntiQuant"], _same)
_define(["DeQuant"], _same, _dequant_blobs)
_define(["IFMR", "HFMG"], _no_tops, bottoms=_ANY)


def infer_shapes(graph: Graph, inputs: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Compute the shape of every blob.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to tuple of int, optional
        Shapes of inputs that differ from the prototxt's.

    Returns
    -------
    dict of str to tuple of int
        The last shape of each blob name (layers that work in place may change it).

    Raises
    ------
    ModelError
        A layer type is unknown, or a layer does not fit its bottoms.
    """
    shapes: dict[str, Shape] = {}
    for layer in graph.layers:
        bottoms = [shapes[bottom] for bottom in layer.bottoms]
        tops = _checked(graph, layer, bottoms, layer_type(graph, layer).tops)
        for top, shape in zip(layer.tops, tops, strict=False):
            shapes[top] = shape if not inputs or layer.type != "Input" else tuple(inputs.get(top, shape))
            if math.prod(shapes[top]) > MAX_ELEMENTS:
                raise graph.error(layer, f"blob '{top}' of shape {shapes[top]} exceeds {MAX_ELEMENTS} values")
    return shapes


def blob_shapes(graph: Graph, layer: Layer, shapes: Mapping[str, Shape]) -> list[Shape]:
    """Return the shapes that a layer's own blobs must have; `shapes` as from `infer_shapes`."""
    bottoms = [shapes[bottom] for bottom in layer.bottoms]
    return _checked(graph, layer, bottoms, layer_type(graph, layer).blobs)


def layer_type(graph: Graph, layer: Layer) -> LayerType:
    """Return the definition of a layer's type, or refuse it by name."""
    found = LAYER_TYPES.get(layer.type)
    if found is None:
        near = get_close_matches(layer.type, LAYER_TYPES, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise graph.error(
            layer, f"type '{layer.type}' is not supported{hint} (supported: {', '.join(sorted(LAYER_TYPES))})"
        )
    return found


def _checked(graph: Graph, layer: Layer, bottoms: list[Shape], function: Tops) -> list[Shape]:
    wanted = LAYER_TYPES[layer.type].bottoms
    if len(bottoms) not in wanted:
        raise graph.error(layer, f"type '{layer.type}' takes {_range_text(wanted)} bottoms, got {len(bottoms)}")
    try:
        shapes = function(layer, bottoms)
    except LayerError as error:
        raise ModelError(str(error), path=graph.path, layer=layer.name) from error
    if any(min(shape, default=1) < 1 for shape in shapes):
        raise graph.error(layer, f"gives shapes {shapes}; every dimension must be positive")
    return shapes


def _range_text(wanted: range) -> str:
    if len(wanted) == 1:
        return str(wanted[0])
    return f"at least {wanted[0]}" if wanted[-1] > 1000 else f"{wanted[0]} to {wanted[-1]}"
