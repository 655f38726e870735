"""Layers that slide a window: convolutions, pooling, local response normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import ANY, LayerError, canonical_axis, define

# Forks' names for a Convolution with as many groups as channels; ConvolutionDepthwise ignores `group`, the others
# need it for more than one output a channel.
DEPTHWISE_TYPES = ("DepthwiseConvolution", "ConvolutionDepthwise", "DepthwiseConv")


@dataclass(frozen=True)
class ConvolutionWindow:
    """Parameters of Convolution, Deconvolution and Im2col, one entry a spatial axis.

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


@dataclass(frozen=True)
class InputWindow:
    """What one output's weights of a Convolution or Deconvolution meet: a window over its input, (rows, columns).

    Attributes
    ----------
    groups : int
    kernel, stride, dilation : tuple of int
    pad : tuple of int
        Zeros at each side; of a Deconvolution negative where its own padding cuts off more than a kernel.
    stretch : tuple of int or None
        Of a Deconvolution: its stride. The window goes over the inputs spread so far, zeros between them, and the
        weights are met in reverse order.
    """

    groups: int
    kernel: Shape
    stride: Shape
    dilation: Shape
    pad: Shape
    stretch: Shape | None


def input_window(layer: Layer) -> InputWindow:
    """Read what the weights of a layer with two spatial axes meet."""
    found = convolution(layer, 2)
    if layer.type != "Deconvolution":
        return InputWindow(found.group, found.kernel, found.stride, found.dilation, found.pad, None)
    reach = ((size - 1) * step for size, step in zip(found.kernel, found.dilation, strict=True))
    pad = tuple(behind - cut for behind, cut in zip(reach, found.pad, strict=True))
    return InputWindow(found.group, found.kernel, (1, 1), found.dilation, pad, found.stride)


def convolution(layer: Layer, spatial_axes: int) -> ConvolutionWindow:
    """Read a layer's convolution_param for inputs with so many spatial axes."""
    found = _window(layer, spatial_axes)
    if found.num_output < 1 or found.group < 1 or found.num_output % found.group:
        raise LayerError(f"num_output {found.num_output} must be positive and a multiple of group {found.group}")
    return found


def channel_axis(layer: Layer, bottom: Shape) -> int:
    """Return the axis of the channels; those before it are batches, those behind it are spatial."""
    return canonical_axis(layer.message.convolution_param.axis, len(bottom))


def _window(layer: Layer, spatial_axes: int) -> ConvolutionWindow:
    message = layer.message.convolution_param
    found = ConvolutionWindow(
        num_output=message.num_output,
        group=message.num_output if _one_output_a_channel(layer) else message.group,
        kernel=_spatial(message, "kernel_size", ("kernel_h", "kernel_w"), spatial_axes, None),
        stride=_spatial(message, "stride", ("stride_h", "stride_w"), spatial_axes, 1),
        pad=_spatial(message, "pad", ("pad_h", "pad_w"), spatial_axes, 0),
        dilation=_spatial(message, "dilation", None, spatial_axes, 1),
        bias=message.bias_term,
    )
    if min((1, *found.kernel, *found.stride, *found.dilation)) < 1:
        raise LayerError("kernel, stride and dilation must be positive")
    return found


def _one_output_a_channel(layer: Layer) -> bool:
    if layer.type not in DEPTHWISE_TYPES:
        return False
    return layer.type == "ConvolutionDepthwise" or not layer.message.convolution_param.HasField("group")


def _spatial(
    message: caffe_pb2.ConvolutionParameter,
    name: str,
    pair: tuple[str, str] | None,
    axes: int,
    default: int | None,
) -> Shape:
    """Read a repeated spatial parameter, or its _h and _w spelling for two axes."""
    values = tuple(getattr(message, name))
    if pair and (message.HasField(pair[0]) or message.HasField(pair[1])):
        if axes != 2 or values:
            raise LayerError(f"{pair[0]} and {pair[1]} need two spatial axes and no {name}")
        return (getattr(message, pair[0]), getattr(message, pair[1]))
    if not values and default is not None:
        values = (default,)
    if len(values) not in (1, axes):
        raise LayerError(f"{name} has {len(values)} values for {axes} spatial axes")
    return values * axes if len(values) == 1 else values


def _convolution_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    bottom = bottoms[0]
    if set(bottoms) != {bottom}:
        raise LayerError(f"inputs differ in shape: {', '.join(map(str, bottoms))}")
    axis = channel_axis(layer, bottom)
    found = convolution(layer, len(bottom) - axis - 1)
    if layer.type in DEPTHWISE_TYPES and bottom[axis] != found.group:
        raise LayerError(f"group (or num_output without it) must be the number of channels, {bottom[axis]}")
    if bottom[axis] % found.group:
        raise LayerError(f"{bottom[axis]} input channels are no multiple of group {found.group}")
    spatial = _transposed if layer.type == "Deconvolution" else _slid
    sizes = spatial(found, bottom[axis + 1 :])
    return [(*bottom[:axis], found.num_output, *sizes)] * len(bottoms)


def _slid(found: ConvolutionWindow, sizes: Shape) -> Shape:
    result = []
    for size, kernel, stride, pad, dilation in zip(
        sizes, found.kernel, found.stride, found.pad, found.dilation, strict=True
    ):
        extent = dilation * (kernel - 1) + 1
        if size + 2 * pad < extent:
            raise LayerError(f"kernel of extent {extent} is larger than the padded input {size + 2 * pad}")
        result.append((size + 2 * pad - extent) // stride + 1)
    return tuple(result)


def _transposed(found: ConvolutionWindow, sizes: Shape) -> Shape:
    return tuple(
        stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad
        for size, kernel, stride, pad, dilation in zip(
            sizes, found.kernel, found.stride, found.pad, found.dilation, strict=True
        )
    )


def _convolution_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    axis = channel_axis(layer, bottoms[0])
    found = convolution(layer, len(bottoms[0]) - axis - 1)
    channels = bottoms[0][axis]
    if layer.type == "Deconvolution":
        weight = (channels, found.num_output // found.group, *found.kernel)
    else:
        weight = (found.num_output, channels // found.group, *found.kernel)
    return [weight, (found.num_output,)] if found.bias else [weight]


def im2col(layer: Layer, bottom: Shape) -> tuple[int, ConvolutionWindow]:
    """Return channel axis and window of an Im2col layer."""
    axis = channel_axis(layer, bottom)
    if axis == len(bottom) - 1:
        raise LayerError(f"Im2col needs spatial axes behind axis {axis} of an input of shape {bottom}")
    return axis, _window(layer, len(bottom) - axis - 1)


def _im2col_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    axis, found = im2col(layer, bottoms[0])
    channels = bottoms[0][axis] * math.prod(found.kernel)
    return [(*bottoms[0][:axis], channels, *_slid(found, bottoms[0][axis + 1 :]))]


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
    method = caffe_pb2.PoolingParameter.PoolMethod.Name(message.pool)
    if message.global_pooling:
        return PoolingWindow(_pooling_method(method, bottom), True, bottom[2:], (1, 1), (0, 0), (1, 1))
    kernel = _pair(message, "kernel_size", "kernel_h", "kernel_w")
    stride = _pair(message, "stride", "stride_h", "stride_w")
    pad = _pair(message, "pad", "pad_h", "pad_w")
    floor = message.round_mode == caffe_pb2.PoolingParameter.FLOOR or not message.ceil_mode
    return pooling_window(method, bottom, kernel, stride, pad, floor=floor)


def _pair(message: caffe_pb2.PoolingParameter, both: str, height: str, width: str) -> Shape:
    if message.HasField(height) and message.HasField(width):
        return (getattr(message, height), getattr(message, width))
    return (getattr(message, both),) * 2


def _pooling_method(method: str, bottom: Shape) -> str:
    if len(bottom) != 4:
        raise LayerError(f"pooling needs an input of 4 axes, got {bottom}")
    if method not in ("MAX", "AVE"):
        raise LayerError(f"pooling method {method} is not supported (nor by Caffe's CPU code); MAX and AVE are")
    return method


def pooling_window(
    method: str, bottom: Shape, kernel: Shape, stride: Shape, pad: Shape, *, floor: bool = False
) -> PoolingWindow:
    """Place pooling windows over an input (N, C, H, W).

    Notes
    -----
    **Shapes**: H = 14, kernel 2, stride 3, pad 1: ceil((14 + 2 - 2) / 3) + 1 = 6 windows; the last would start at
    15 - 1 = 14, outside the image, so with padding it is dropped.
    """
    _pooling_method(method, bottom)
    if min(*kernel, *stride) < 1:
        raise LayerError("pooling needs a positive kernel and stride, or global_pooling")
    if any(pad) and any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise LayerError(f"pad {pad} must be smaller than kernel {kernel}")
    output = []
    for size, k, s, p in zip(bottom[2:], kernel, stride, pad, strict=True):
        span = size + 2 * p - k
        count = (span // s if floor else -(-span // s)) + 1
        if any(pad) and (count - 1) * s >= size + p:
            count -= 1
        if count < 1 or span < 0 and floor:
            raise LayerError(f"kernel {k} is larger than the padded input {size + 2 * p}")
        output.append(count)
    return PoolingWindow(method, False, kernel, stride, pad, tuple(output))


def _pooling_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    found = pooling(layer, bottoms[0])
    return [(*bottoms[0][:2], *found.output)] * (2 if found.method == "MAX" else 1)


def spp_windows(layer: Layer, bottom: Shape) -> list[PoolingWindow]:
    """Return one pooling window a level of spatial pyramid pooling: 1, 2, 4, ... bins along each axis."""
    message = layer.message.spp_param
    if not 1 <= message.pyramid_height <= 31:
        raise LayerError(f"pyramid_height must be in 1..31, got {message.pyramid_height}")
    method = caffe_pb2.SPPParameter.PoolMethod.Name(message.pool)
    _pooling_method(method, bottom)
    windows = []
    for level in range(message.pyramid_height):
        bins = 2**level
        kernel = tuple(-(-size // bins) for size in bottom[2:])
        pad = tuple((k * bins - size + 1) // 2 for k, size in zip(kernel, bottom[2:], strict=True))
        windows.append(pooling_window(method, bottom, kernel, kernel, pad))
    return windows


def _spp_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    windows = spp_windows(layer, bottoms[0])
    number, channels = bottoms[0][:2]
    if len(windows) == 1:
        return [(number, channels, *windows[0].output)]
    return [(number, sum(channels * math.prod(window.output) for window in windows))]


def _lrn_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    size = layer.message.lrn_param.local_size
    if size % 2 == 0:
        raise LayerError(f"local_size must be odd, got {size}")
    if len(bottoms[0]) != 4:
        raise LayerError(f"LRN needs an input of 4 axes, got {bottoms[0]}")
    return bottoms


define(["Convolution", "Deconvolution", *DEPTHWISE_TYPES], _convolution_tops, _convolution_blobs, ANY)
define(["Im2col"], _im2col_tops)
define(["Pooling"], _pooling_tops)
define(["SPP"], _spp_tops)
define(["LRN"], _lrn_tops)
