"""Fake-quantized layers in integers: what their arithmetic is on the chip, and a third of a float layer's time here.

A value that only Quant layers of one grid read need not exist in float: the layer that makes it puts out the codes of
that grid at once. So uint8 codes (AMCT's int8 ones plus 128) run from a Quant layer through Convolution, ReLU, MAX
pooling and Concat to the next Quant layer. They lie channels last, as onnxruntime's integer kernels want them; a value
in float lies as Caffe's blobs do.

What such a chain computes is what the chip does: sums of products in int32, the bias rounded to one of their units. A
layer whose output is wanted in float adds its float bias to the same sums.

Every layer is lowered in float as well, on what its inputs' codes stand for; what nobody reads drops out
(`Builder.needed`). So a blob that was skipped can still be asked for, and which layers run in integers depends on the
network alone, never on which blobs somebody wants to see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autonuq.graph import caffe_pb2
from autonuq.graph.model import MAX_ELEMENTS, Array, Graph, Layer, Shape, Value
from autonuq.graph.operators.builder import LOWERINGS, MAX_TABLES_BYTES, Builder, Lowering
from autonuq.graph.operators.quantizers import quant_factors
from autonuq.graph.operators.windows import max_pool_attributes
from autonuq.graph.shapes.layout import concat_axis
from autonuq.graph.shapes.registry import LayerError
from autonuq.graph.shapes.windows import DEPTHWISE_TYPES, channel_axis, convolution
from autonuq.graph.strips import Strip, strip_of

ENGINE_DOMAIN = "com.microsoft"  # onnxruntime's own operators
_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_MULTIPLYING = frozenset({"Convolution", "InnerProduct", *DEPTHWISE_TYPES})
_LARGEST_PRODUCT = 255 * 128  # of a code and a weight
_AWAY = np.float32(1 - 2**-22)  # see `ActivationGrid.rounding_step`
_OFF_GRID = 1e-3  # how far a float32 product of code and scale, divided by the scale, may be from the code
_FEW_PRODUCTS = 64  # for each output: the float convolution is faster
_ROWS_AT_ONCE = 1 << 16  # weights that stay in a processor's cache


@dataclass(frozen=True)
class ActivationGrid:
    """The int8 grid of a Quant layer.

    Attributes
    ----------
    factor : float
        Reciprocal of the step.
    offset : int
        The code of 0.
    """

    factor: float
    offset: int

    @property
    def step(self) -> np.float32:
        """Distance of two values."""
        return np.float32(1 / self.factor)

    @property
    def rounding_step(self) -> np.float32:
        """The step that values are divided by to find their codes.

        onnxruntime rounds halves to even, AMCT away from zero: a step that is smaller by a few units in the last place
        puts every half beyond the middle.
        """
        return np.float32(self.step * _AWAY)

    @property
    def zero(self) -> np.uint8:
        """The code of 0, counted from 0."""
        return np.uint8(self.offset + 128)

    def code(self, value: float) -> np.uint8:
        """Return the code of a value."""
        steps = float(value) / float(self.rounding_step)
        return np.uint8(np.clip(np.rint(steps) + float(self.zero), 0, 255))


@dataclass(frozen=True)
class Kernel:
    """A layer's weights as the chip has them.

    Attributes
    ----------
    codes : ndarray of int8
        Shaped as Caffe's weights.
    step : ndarray of float32, shape (outputs,) or (1,)
        What one unit of a sum of products stands for: the input's step times the weights' scale.
    bias : ndarray of int32, shape (outputs,)
        In those units.
    """

    codes: Array
    step: Array
    bias: Array


class IntegerPlan:
    """Which values and which layers of a network run in integers.

    Parameters
    ----------
    graph : Graph
        Fake-quantized, with blobs. A network without Quant layers has nothing in integers.
    signed : bool
        Whether the weights are given to the engine as int8; otherwise as uint8 with a zero point of 128.
    """

    def __init__(self, graph: Graph, *, signed: bool = True) -> None:
        self.signed = signed
        self._dequantizers = _dequantizers(graph)
        self._kernels: dict[str, Kernel | None] = {}
        self.grids = _grids(graph)
        self.quantizers = _quantizers(graph, self._dequantizers)

    def kernel(self, layer: Layer, grid: ActivationGrid) -> Kernel | None:
        """Return a layer's integer weights for inputs of a grid; None if its weights are no codes times scale."""
        if layer.name not in self._kernels:
            dequantizer = self._dequantizers.get(layer.name)
            self._kernels[layer.name] = None if dequantizer is None else _kernel(layer, dequantizer, grid)
        return self._kernels[layer.name]


def _dequantizers(graph: Graph) -> dict[str, Layer]:
    """Return the DeQuant layer behind each layer that has one without a shift."""
    found = {}
    for index, layer in enumerate(graph.layers):
        if _is_plain_dequantizer(layer):
            producer = graph.layers[graph.sources[index][0][0]]
            if producer.type in _MULTIPLYING:
                found[producer.name] = layer
    return found


def _is_plain_dequantizer(layer: Layer) -> bool:
    """Say whether a layer is a DeQuant layer without a shift, which leaves its values as they are."""
    return layer.type == "DeQuant" and bool(layer.blobs) and not layer.blobs[1].any()


def _quantizers(graph: Graph, dequantizers: Mapping[str, Layer]) -> frozenset[str]:
    """Return the Quant layers whose codes some layer multiplies; others are calculated in float, as Caffe does."""
    multiplied: set[Value] = set()
    found = set()
    for index in reversed(range(len(graph.layers))):
        layer = graph.layers[index]
        if layer.type == "Quant" and (index, 0) in multiplied:
            found.add(layer.name)
        if layer.name in dequantizers or _keeps_order(layer) and (index, 0) in multiplied:
            multiplied.update(graph.sources[index])
    return frozenset(found)


def _grids(graph: Graph) -> dict[tuple[str, int], ActivationGrid]:
    """Return the grid of every value that only Quant layers of this grid read, maybe through layers that keep order.

    A value is named by the layer that makes it and the number of its top.
    """
    demands: dict[Value, set[ActivationGrid | None]] = {}
    for index in reversed(range(len(graph.layers))):
        layer = graph.layers[index]
        demand: set[ActivationGrid | None]
        if layer.type == "Quant":
            demand = {grid_of(layer)}
        elif _keeps_order(layer):
            tops = range(len(layer.tops))
            demand = {grid for top in tops for grid in demands.get((index, top), (None,))}
        else:
            demand = {None}
        for value in graph.sources[index]:
            demands.setdefault(value, set()).update(demand)
    grids = {}
    for (index, top), found in demands.items():
        grid = next(iter(found), None)  # a layer without tops wants nothing of what it reads
        if len(found) == 1 and grid is not None:
            grids[graph.layers[index].name, top] = grid
    return grids


def grid_of(layer: Layer) -> ActivationGrid | None:
    """Return a Quant layer's grid; None if it has none, which its lowering says."""
    try:
        return ActivationGrid(*quant_factors(layer))
    except LayerError:
        return None


def _keeps_order(layer: Layer) -> bool:
    """Say whether a layer may as well work on codes: it picks values, or moves them to a limit."""
    if layer.type in ("ReLU", "ReLU6"):
        return not layer.message.relu_param.negative_slope
    if layer.type == "Pooling":
        return layer.message.pooling_param.pool == caffe_pb2.PoolingParameter.MAX and len(layer.tops) == 1
    if layer.type == "Dropout":
        return layer.message.dropout_param.scale_train
    return _is_plain_dequantizer(layer) or layer.type in ("Concat", "Split", "Clip")


def _kernel(layer: Layer, dequantizer: Layer, grid: ActivationGrid) -> Kernel | None:
    weights, *bias = layer.blobs
    step = np.asarray(dequantizer.blobs[0], np.float32).reshape(-1)
    rows = weights.reshape(len(weights), -1)
    if len(step) not in (1, len(rows)) or not (np.isfinite(step) & (step > 0)).all():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        codes = _codes(rows, step * np.float32(grid.factor))
        sums = np.rint(bias[0].astype(np.float64) / step) if bias else np.zeros(len(rows))
    room = 2**31 - 1 - _LARGEST_PRODUCT * rows.shape[1]
    if codes is None or not (np.abs(sums) <= room).all():
        return None
    return Kernel(codes.reshape(weights.shape), step, sums.astype(np.int32))


def _codes(rows: Array, scale: Array) -> Array | None:
    """Return int8 codes so that codes times scale, one for each row or one, are the weights; None if there are none."""
    codes = np.empty(rows.shape, np.int8)
    factor = (1 / scale.astype(np.float64)).astype(np.float32)
    factor = np.broadcast_to(factor, len(rows))[:, None]
    count = max(1, _ROWS_AT_ONCE // rows.shape[1])
    for begin in range(0, len(rows), count):
        part = slice(begin, begin + count)
        steps = rows[part] * factor[part]
        rounded = np.rint(steps)
        steps -= rounded
        if not max(steps.max(), -steps.min()) <= _OFF_GRID or rounded.min() < -128 or rounded.max() > 127:
            return None
        codes[part] = rounded
    return codes


@dataclass(frozen=True)
class _Codes:
    """A tensor of uint8 codes, channels last if it has four axes."""

    tensor: str
    grid: ActivationGrid


class IntegerLowering:
    """Lowers layers in float, and in integers where a plan says so, into one builder."""

    def __init__(self, builder: Builder, plan: IntegerPlan) -> None:
        self._builder, self._plan = builder, plan
        self._codes: dict[str, _Codes] = {}  # float tensor -> codes of its values
        self._quantized: dict[tuple[str, ActivationGrid], _Codes] = {}
        self._last: dict[str, str] = {}  # float tensor -> the same values, channels last

    @cached_property
    def lowerings(self) -> Mapping[str, Lowering]:
        """What becomes of each layer type."""
        return LOWERINGS | {
            "Quant": self._quant,
            **dict.fromkeys(("Convolution", *DEPTHWISE_TYPES), self._convolution),
            "InnerProduct": self._inner_product,
            "Eltwise": self._elementwise,
            "ReLU": self._limit,
            "ReLU6": self._limit,
            "Clip": self._limit,
            "Pooling": self._pooling,
            "Concat": self._concat,
        }

    def _channels_last(self, tensor: str, shape: Shape) -> str:
        """Return a float tensor with its channels last; one without an image as it is."""
        if len(shape) != 4:
            return tensor
        if tensor not in self._last:
            self._last[tensor] = self._builder.add("Transpose", tensor, perm=_CHANNELS_LAST)
        return self._last[tensor]

    def _channels_first(self, tensor: str, shape: Shape, label: str) -> str:
        """Return as Caffe has it what lies channels last."""
        if len(shape) != 4:
            return tensor
        top = self._builder.add("Transpose", tensor, label=label, perm=_CHANNELS_FIRST)
        self._last[top] = tensor
        return top

    def _elementwise(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        """Work on images as they lie: none is turned if one of them lies channels last anyway."""
        if not any(tensor in self._last for tensor in tensors):
            return LOWERINGS[layer.type](builder, layer, tensors, shapes)
        turned = [self._channels_last(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]
        (top,) = LOWERINGS[layer.type](builder, layer, turned, shapes)
        return [self._channels_first(top, shapes[0], layer.name)]

    def _quant(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        grid = ActivationGrid(*quant_factors(layer))
        if tensors[0] not in self._codes and layer.name not in self._plan.quantizers:
            return LOWERINGS[layer.type](builder, layer, tensors, shapes)
        codes = self._coded(tensors[0], grid, shapes[0])
        steps = builder.add("DequantizeLinear", codes.tensor, self._scalar(np.float32(1)), self._scalar(grid.zero))
        values = builder.scalar("Div", steps, grid.factor)
        top = self._channels_first(values, shapes[0], layer.name)
        self._codes[top] = codes
        return [top]

    def _coded(self, tensor: str, grid: ActivationGrid, shape: Shape) -> _Codes:
        """Return codes of a tensor on a grid: those that are there, or quantize it."""
        found = self._codes.get(tensor)
        if found is not None and found.grid == grid:
            return found
        if (tensor, grid) not in self._quantized:
            values = self._channels_last(tensor, shape)
            scale, zero = self._scalar(grid.rounding_step), self._scalar(grid.zero)
            self._quantized[tensor, grid] = _Codes(self._builder.add("QuantizeLinear", values, scale, zero), grid)
        return self._quantized[tensor, grid]

    def _scalar(self, value: np.generic) -> str:
        return self._builder.stored("grid", np.asarray(value))

    def _convolution(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        codes, kernel = self._codes.get(tensors[0]), None
        if codes is not None and len(shapes) == 1 and len(shapes[0]) == 4 and channel_axis(layer, shapes[0]) == 1:
            kernel = self._plan.kernel(layer, codes.grid)
        if codes is None or kernel is None:
            return LOWERINGS[layer.type](builder, layer, tensors, shapes)
        window, grid = convolution(layer, 2), self._plan.grids.get((layer.name, 0))
        few_products = window.group == 1 and window.kernel != (1, 1) and kernel.codes[0].size < _FEW_PRODUCTS
        if few_products or window.group != 1 and grid is None:
            return LOWERINGS[layer.type](builder, layer, tensors, shapes)
        if grid is not None:
            (top,) = LOWERINGS[layer.type](builder, layer, tensors, shapes)
            self._codes[top] = _Codes(self._sums(layer, codes, kernel, grid), grid)
            return [top]
        if window.kernel == (1, 1) and not any(window.pad):
            pixels = self._every(codes.tensor, window.stride)
            values = self._product(layer, pixels, codes.grid, kernel, _matrix(kernel.codes))
        else:
            strip = strip_of(window, shapes[0], builder.shapes_of_tops[0])
            if strip.bytes > MAX_TABLES_BYTES:  # few weights, far apart
                return LOWERINGS[layer.type](builder, layer, tensors, shapes)
            values = self._strips(layer, codes, kernel, strip)
        return [self._channels_first(values, builder.shapes_of_tops[0], layer.name)]

    def _sums(self, layer: Layer, codes: _Codes, kernel: Kernel, grid: ActivationGrid) -> str:
        """Convolve codes into codes of another grid, with the bias in int32 as on the chip."""
        window, stored = convolution(layer, 2), self._builder.stored
        weights, zero = self._weights(layer, kernel.codes)
        scale = np.broadcast_to(kernel.step / codes.grid.step, len(kernel.codes)).astype(np.float32)
        return self._builder.add(
            "QLinearConv",
            codes.tensor,
            self._scalar(codes.grid.step),
            self._scalar(codes.grid.zero),
            weights,
            stored(f"{layer.name}:scale", scale),
            zero,
            self._scalar(grid.rounding_step),
            self._scalar(grid.zero),
            stored(f"{layer.name}:bias", kernel.bias),
            domain=ENGINE_DOMAIN,
            channels_last=1,
            kernel_shape=window.kernel,
            strides=window.stride,
            pads=window.pad * 2,
            dilations=window.dilation,
            group=window.group,
        )

    def _weights(self, layer: Layer, codes: Array) -> tuple[str, str]:
        """Store integer weights and their zero point."""
        signed = self._plan.signed
        values = codes if signed else (codes.view(np.uint8) ^ np.uint8(128))
        return (
            self._builder.stored(f"{layer.name}:codes", values),
            self._scalar(np.int8(0) if signed else np.uint8(128)),
        )

    def _every(self, tensor: str, stride: Shape) -> str:
        """Return the pixels that a window of one pixel visits."""
        if stride == (1, 1):
            return tensor
        return self._cut(tensor, (0, 0), (MAX_ELEMENTS, MAX_ELEMENTS), (1, 2), stride)

    def _cut(self, tensor: str, *limits: Shape) -> str:
        """Return a part: first, end, axes and perhaps steps, as ONNX's Slice has them."""
        numbers = (self._builder.constant("part", np.array(values, np.int64)) for values in limits)
        return self._builder.add("Slice", tensor, *numbers)

    def _strips(self, layer: Layer, codes: _Codes, kernel: Kernel, strip: Strip) -> str:
        """Convolve into float: one product of matrices, whose rows are what lies under a few neighbouring windows."""
        builder = self._builder
        pads = builder.constant("pads", np.array([0, *strip.before, 0, 0, *strip.behind, 0], np.int64))
        padded = builder.add("Pad", codes.tensor, pads, self._scalar(codes.grid.zero))
        blocks = builder.reshape(padded, (strip.batch, strip.blocks, strip.block * strip.channels))
        found = builder.add("Gather", blocks, builder.stored("strips", strip.index()), axis=1)
        matrix = strip.matrix(kernel.codes)
        rows = builder.reshape(found, (strip.batch, strip.output[0], strip.across, len(matrix)))
        values = self._product(layer, rows, codes.grid, kernel, matrix)
        if strip.count == 1:
            return values
        height, width = strip.output
        made = strip.across * strip.count
        values = builder.reshape(values, (strip.batch, height, made, len(kernel.codes)))
        return values if made == width else self._cut(values, (0,), (width,), (2,))

    def _product(self, layer: Layer, tensor: str, grid: ActivationGrid, kernel: Kernel, matrix: Array) -> str:
        """Multiply rows of codes by a matrix of weights, (inputs, times x outputs), into float, with the float bias."""
        weights, zero = self._weights(layer, matrix)
        outputs = len(kernel.codes)
        times = matrix.shape[1] // outputs
        scale = np.broadcast_to(kernel.step / grid.step, outputs).astype(np.float32)
        operands = [self._builder.stored(f"{layer.name}:scale", np.tile(scale, times)), self._scalar(grid.zero), zero]
        operands += [self._builder.stored(f"{layer.name}:bias", np.tile(bias, times)) for bias in layer.blobs[1:]]
        return self._builder.add(
            "MatMulIntegerToFloat",
            tensor,
            weights,
            self._scalar(grid.step),
            *operands,
            label=layer.name,
            domain=ENGINE_DOMAIN,
        )

    def _inner_product(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        codes, message = self._codes.get(tensors[0]), layer.message.inner_product_param
        if codes is None or message.transpose or message.axis != 1:
            return LOWERINGS[layer.type](builder, layer, tensors, shapes)
        kernel = self._plan.kernel(layer, codes.grid)
        if kernel is None:
            return LOWERINGS[layer.type](builder, layer, tensors, shapes)
        tensor = codes.tensor
        if len(shapes[0]) == 4:
            tensor = builder.add("Transpose", tensor, perm=_CHANNELS_FIRST)
        if len(shapes[0]) != 2:
            tensor = builder.reshape(tensor, (shapes[0][0], kernel.codes.shape[1]))
        return [self._product(layer, tensor, codes.grid, kernel, _matrix(kernel.codes))]

    def _limit(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        tops = self._elementwise(builder, layer, tensors, shapes)
        codes = self._codes.get(tensors[0])
        if codes is not None and (layer.name, 0) in self._plan.grids:
            low, high = (codes.grid.code(limit) for limit in _limits(layer))
            tensor = codes.tensor
            if low > 0 or high < 255:
                tensor = builder.add("Clip", tensor, self._scalar(low), self._scalar(high))
            self._codes[tops[0]] = _Codes(tensor, codes.grid)
        return tops

    def _pooling(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        tops = LOWERINGS[layer.type](builder, layer, tensors, shapes)
        codes = self._codes.get(tensors[0])
        if codes is not None and (layer.name, 0) in self._plan.grids:
            attributes = max_pool_attributes(layer, shapes[0])
            if attributes is not None:
                pooled = builder.add("NhwcMaxPool", codes.tensor, domain=ENGINE_DOMAIN, **attributes)
                self._codes[tops[0]] = _Codes(pooled, codes.grid)
        return tops

    def _concat(self, builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
        tops = LOWERINGS[layer.type](builder, layer, tensors, shapes)
        grid = self._plan.grids.get((layer.name, 0))
        if grid is None or len(shapes[0]) != 4 or concat_axis(layer, shapes[0]) != 1:
            return tops
        if any(tensor in self._codes for tensor in tensors):
            parts = [self._coded(tensor, grid, shape).tensor for tensor, shape in zip(tensors, shapes, strict=True)]
            self._codes[tops[0]] = _Codes(builder.add("Concat", *parts, axis=3), grid)
        return tops


def _matrix(codes: Array) -> Array:
    """Return weights as a matrix (inputs, outputs)."""
    return np.ascontiguousarray(codes.reshape(len(codes), -1).T)


def _limits(layer: Layer) -> tuple[float, float]:
    """Return the smallest and the largest value that a layer lets through."""
    if layer.type == "Clip":
        return layer.message.clip_param.min, layer.message.clip_param.max
    return 0.0, 6.0 if layer.type == "ReLU6" else float(np.finfo(np.float32).max)
