"""Layers that bring values in or move them around without computing."""

from __future__ import annotations

import math
from itertools import pairwise

from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import ANY, TWO, LayerError, canonical_axis, define


def _input_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    shapes = [tuple(shape.dim) for shape in layer.message.input_param.shape]
    return shapes * len(layer.tops) if len(shapes) == 1 else shapes


def _memory_data_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Items, then their labels."""
    message = layer.message.memory_data_param
    shape = (message.batch_size, message.channels, message.height, message.width)
    if min(shape) < 1:
        raise LayerError(f"batch_size, channels, height and width must be positive, got {shape}")
    if len(layer.tops) != 2:
        raise LayerError(f"makes 2 tops, data and labels; {len(layer.tops)} are named")
    return [shape, shape[:1]]


def _dummy_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.dummy_data_param
    shapes = [tuple(shape.dim) for shape in message.shape]
    if not shapes:
        legacy = (message.num, message.channels, message.height, message.width)
        count = len(layer.tops) if any(len(values) > 1 for values in legacy) else 1
        if any(len(values) not in (1, count) for values in legacy):
            raise LayerError("needs 'shape', or num, channels, height and width once or once a top")
        shapes = list(zip(*(list(values) * (count if len(values) == 1 else 1) for values in legacy), strict=True))
    if len(shapes) not in (1, len(layer.tops)):
        raise LayerError(f"has {len(layer.tops)} tops but {len(shapes)} shapes")
    return shapes * len(layer.tops) if len(shapes) == 1 else shapes


def dummy_values(layer: Layer) -> list[float]:
    """Return the constant of every DummyData top."""
    fillers = list(layer.message.dummy_data_param.data_filler)
    if len(fillers) not in (0, 1, len(layer.tops)):
        raise LayerError(f"has {len(layer.tops)} tops but {len(fillers)} fillers")
    for filler in fillers:
        if filler.type != "constant":
            raise LayerError(f"fills with '{filler.type}'; only constant data are the same in every run")
    values = [filler.value for filler in fillers] or [0.0]
    return values * len(layer.tops) if len(values) == 1 else values


def _parameter_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [tuple(layer.message.parameter_param.shape.dim)]


def _split_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return bottoms * len(layer.tops)


def _no_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return []


def concat_axis(layer: Layer, bottom: Shape) -> int:
    """Return the axis along which Concat joins; `concat_dim` is its older name."""
    message = layer.message.concat_param
    if message.HasField("concat_dim") and message.HasField("axis"):
        raise LayerError("has both axis and concat_dim; only one of them may be given")
    return canonical_axis(message.concat_dim if message.HasField("concat_dim") else message.axis, len(bottom))


def _concat_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    axis = concat_axis(layer, bottoms[0])
    if len({(*shape[:axis], 0, *shape[axis + 1 :]) if axis < len(shape) else shape for shape in bottoms}) > 1:
        raise LayerError(f"inputs to join along axis {axis} differ elsewhere: {', '.join(map(str, bottoms))}")
    return [(*bottoms[0][:axis], sum(shape[axis] for shape in bottoms), *bottoms[0][axis + 1 :])]


def slice_axis(layer: Layer, bottom: Shape) -> int:
    """Return the axis along which Slice cuts; `slice_dim` is its older name."""
    message = layer.message.slice_param
    if message.HasField("slice_dim") and message.HasField("axis"):
        raise LayerError("has both axis and slice_dim; only one of them may be given")
    return canonical_axis(message.slice_dim if message.HasField("slice_dim") else message.axis, len(bottom))


def _slice_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    bottom, count = bottoms[0], len(layer.tops)
    axis, points = slice_axis(layer, bottom), list(layer.message.slice_param.slice_point)
    if not points and bottom[axis] % max(count, 1):
        raise LayerError(f"axis {axis} of size {bottom[axis]} cannot be cut into {count} equal parts")
    if points and len(points) != count - 1:
        raise LayerError(f"has {count} tops, so it needs {count - 1} slice points, not {len(points)}")
    borders = [0, *points, bottom[axis]] if points else range(0, bottom[axis] + 1, bottom[axis] // max(count, 1) or 1)
    if any(end <= start for start, end in pairwise(borders)):
        raise LayerError(f"slice points {points} must rise and stay inside axis {axis} of size {bottom[axis]}")
    return [(*bottom[:axis], end - start, *bottom[axis + 1 :]) for start, end in pairwise(borders)]


def crop_offsets(layer: Layer, bottoms: list[Shape]) -> list[int]:
    """Return where Crop starts along every axis of its first bottom."""
    message = layer.message.crop_param
    axes = len(bottoms[0])
    axis = canonical_axis(message.axis, axes)
    given = list(message.offset) or [0]
    if len(given) > 1 and len(given) != axes - axis:
        raise LayerError(f"needs one offset or {axes - axis} (from axis {axis} on), got {len(given)}")
    return [0] * axis + (given if len(given) > 1 else given * (axes - axis))


def _crop_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    axis = canonical_axis(layer.message.crop_param.axis, len(bottoms[0]))
    if len(bottoms[1]) < len(bottoms[0]):
        raise LayerError(f"the reference {bottoms[1]} has fewer axes than the input {bottoms[0]}")
    offsets = crop_offsets(layer, bottoms)
    result = (*bottoms[0][:axis], *bottoms[1][axis : len(bottoms[0])])
    for index, (size, offset, wanted) in enumerate(zip(bottoms[0], offsets, result, strict=True)):
        if size - offset < wanted:
            raise LayerError(f"axis {index}: {wanted} values from {offset} on do not fit into {size}")
    return [result]


def _reshape_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """0 copies the axis of the bottom at the same place, -1 takes what is left."""
    message, bottom = layer.message.reshape_param, bottoms[0]
    axes = len(bottom)
    start = message.axis if message.axis >= 0 else axes + message.axis + 1
    end = axes if message.num_axes == -1 else start + message.num_axes
    if not 0 <= start <= end <= axes or message.num_axes < -1:
        raise LayerError(f"axis {message.axis} and num_axes {message.num_axes} lie outside an input of {axes} axes")
    wanted = list(message.shape.dim)
    if wanted.count(-1) > 1 or any(dim < -1 for dim in wanted):
        raise LayerError(f"shape {wanted} must be positive, 0 (copy) or once -1 (what is left)")
    for index, dim in enumerate(wanted):
        if dim == 0:
            if start + index >= axes:
                raise LayerError(f"dim {index} is 0, but the input {bottom} has no axis {start + index}")
            wanted[index] = bottom[start + index]
    if -1 in wanted:
        fixed = math.prod(dim for dim in wanted if dim != -1) * math.prod(bottom[:start]) * math.prod(bottom[end:])
        if math.prod(bottom) % fixed:
            raise LayerError(f"{math.prod(bottom)} values of {bottom} cannot be divided by {fixed}")
        wanted[wanted.index(-1)] = math.prod(bottom) // fixed
    result = (*bottom[:start], *wanted, *bottom[end:])
    if math.prod(result) != math.prod(bottom):
        raise LayerError(f"{bottom} and {result} hold different numbers of values")
    return [result]


def _flatten_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message, bottom = layer.message.flatten_param, bottoms[0]
    start, end = (canonical_axis(axis, len(bottom)) for axis in (message.axis, message.end_axis))
    if end < start:
        raise LayerError(f"end_axis {message.end_axis} lies before axis {message.axis}")
    return [(*bottom[:start], math.prod(bottom[start : end + 1]), *bottom[end + 1 :])]


def _tile_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message, bottom = layer.message.tile_param, bottoms[0]
    axis = canonical_axis(message.axis, len(bottom))
    if message.tiles < 1:
        raise LayerError(f"tiles must be positive, got {message.tiles}")
    return [(*bottom[:axis], bottom[axis] * message.tiles, *bottom[axis + 1 :])]


def _reindex_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if len(bottoms[1]) != 1 or not bottoms[0]:
        raise LayerError(f"needs a batch and indices of one axis, got {bottoms[0]} and {bottoms[1]}")
    return [(*bottoms[1], *bottoms[0][1:])]


def _filter_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """How many items pass depends on the data; the shape is the one for all of them, as Caffe's first one."""
    *items, selector = bottoms
    if not selector or any(dim != 1 for dim in selector[1:]) or any(shape[:1] != selector[:1] for shape in items):
        raise LayerError(f"the selector {selector} must have one value for each item of {', '.join(map(str, items))}")
    return items


define(["Input"], _input_tops, bottoms=range(1))
define(["MemoryData"], _memory_data_tops, bottoms=range(1))
define(["DummyData"], _dummy_tops, bottoms=range(1))
define(["Parameter"], _parameter_tops, _parameter_tops, bottoms=range(1))
define(["Split"], _split_tops)
define(["Silence"], _no_tops, bottoms=ANY)
define(["Concat"], _concat_tops, bottoms=ANY)
define(["Slice"], _slice_tops)
define(["Crop"], _crop_tops, bottoms=TWO)
define(["Reshape"], _reshape_tops)
define(["Flatten"], _flatten_tops)
define(["Tile"], _tile_tops)
define(["BatchReindex"], _reindex_tops, bottoms=TWO)
define(["Filter"], _filter_tops, bottoms=range(2, 2**31))
