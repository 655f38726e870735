"""Whether a network treats the items of a batch one by one, and on which axis of every blob they lie.

Only such a network means the same at every batch size. The shapes at two sizes tell where the items lie; that a layer
does not mix them is said here, type by type. A type that is not mentioned counts as one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from autonuq.errors import ModelError
from autonuq.graph.layers import infer_shapes, layer_type
from autonuq.graph.model import FED_LAYERS, Graph, Layer, Shape
from autonuq.graph.shapes.arithmetic import UNARY_TYPES
from autonuq.graph.shapes.layout import concat_axis, slice_axis
from autonuq.graph.shapes.recurrent import recurrence
from autonuq.graph.shapes.registry import canonical_axis
from autonuq.graph.shapes.windows import DEPTHWISE_TYPES, channel_axis

# (layer, shapes of the bottoms, index of a bottom) -> the axes of it along which the layer mixes nothing
Apart = Callable[[Layer, list[Shape], int], Container[int]]
_APART: dict[str, Apart] = {}


class MixesItems(Exception):  # noqa: N818 - an answer, not an error
    """The network's results depend on the batch size, or on which items stand beside each other; says why."""


@dataclass(frozen=True)
class Batch:
    """Where the items of a network's batch are.

    Attributes
    ----------
    size : int
        That of the prototxt.
    inputs : mapping of str to tuple of int
        Shapes of the blobs that are fed, with one item more.
    axes : mapping of str to int
        Axis of the items, by blob; blobs that do not depend on the input are not in it.
    """

    size: int
    inputs: Mapping[str, Shape]
    axes: Mapping[str, int]


def find_batch(graph: Graph) -> Batch:
    """Follow the items of a batch from the inputs, where they lie along the first axis, through all layers.

    Raises
    ------
    MixesItems
        The network is one for the prototxt's batch size only.
    """
    fed = _fed_blobs(graph)
    sizes = {shape[:1] for shape in fed.values()}
    if len(sizes) != 1 or sizes == {()}:
        raise MixesItems(f"its inputs differ in their first size: {', '.join(map(str, fed.values()))}")
    size = sizes.pop()[0]
    more = {blob: (size + 1, *shape[1:]) for blob, shape in fed.items()}
    try:
        infer_shapes(graph, more)
    except ModelError as error:
        raise MixesItems(f"it does not take another one ({error})") from error
    axes: dict[str, int] = dict.fromkeys(fed, 0)
    pair: tuple[dict[str, Shape], dict[str, Shape]] = (dict(fed), dict(more))
    for layer in graph.layers:
        if layer.type not in FED_LAYERS:
            _follow(graph, layer, axes, pair, size)
    return Batch(size, more, axes)


def _fed_blobs(graph: Graph) -> dict[str, Shape]:
    return {
        top: shape
        for layer in graph.layers
        if layer.type in FED_LAYERS
        for top, shape in zip(layer.tops, layer_type(graph, layer).tops(layer, []), strict=True)
    }


def _follow(
    graph: Graph, layer: Layer, axes: dict[str, int], pair: tuple[dict[str, Shape], dict[str, Shape]], size: int
) -> None:
    """Take one layer's tops in: their shapes at both sizes, and the axes of the items."""
    bottoms, tops = [], []
    for shapes in pair:
        bottoms.append([shapes[bottom] for bottom in layer.bottoms])
        tops.append(layer_type(graph, layer).tops(layer, bottoms[-1]))
        shapes.update(zip(layer.tops, tops[-1], strict=False))
    found = [axes.get(bottom) for bottom in layer.bottoms]
    for index, axis in enumerate(found):
        if axis is not None and axis not in _APART.get(layer.type, _nowhere)(layer, bottoms[0], index):
            raise MixesItems(f"layer '{layer.name}' of type '{layer.type}' computes across the items of a batch")
    for top, one, other in zip(layer.tops, *tops, strict=False):
        axes.pop(top, None)
        if one != other:
            axes[top] = _items_axis(layer, one, other, size)
            if layer.type in ("Reshape", "Flatten") and bottoms[0][0][: axes[top]] != one[: found[0]]:
                raise MixesItems(f"layer '{layer.name}' of type '{layer.type}' moves the items to another axis")


def _items_axis(layer: Layer, one: Shape, other: Shape, size: int) -> int:
    """Find the axis that grows with the batch, at its rate."""
    growing = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
    if len(growing) != 1 or one[growing[0]] * (size + 1) != other[growing[0]] * size:
        raise MixesItems(
            f"layer '{layer.name}' of type '{layer.type}' makes {one} of {size} items, but {other} of one more"
        )
    return growing[0]


def _apart(*types: str) -> Callable[[Apart], Apart]:
    def register(function: Apart) -> Apart:
        _APART.update(dict.fromkeys(types, function))
        return function

    return register


def _nowhere(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    return ()


@_apart(
    *UNARY_TYPES, "AntiQuant", "Bias", "DeQuant", "Eltwise", "Embed", "Flatten", "PReLU", "Permute", "Quant", "Reshape",
    "Scale", "Silence", "Split",
)  # fmt: skip
def _everywhere(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    return range(len(bottoms[index]))


@_apart(
    "Axpy", "Interp", "LRN", "MVN", "Normalize", "Pooling", "PriorBox", "Reorg", "SPP", "ShuffleChannel", "Upsample"
)  # fmt: skip
def _first(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    return (0,)


@_apart("BatchNorm")
def _batch_norm(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    message = layer.message.batch_norm_param
    by_batch = message.HasField("use_global_stats") and not message.use_global_stats
    return () if by_batch else range(len(bottoms[0]))


@_apart("Convolution", "Deconvolution", "Im2col", *DEPTHWISE_TYPES)
def _before_channels(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    return range(channel_axis(layer, bottoms[index]))


@_apart("InnerProduct", "Reduction", "Crop")
def _before_axis(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    message = layer.message
    axis = {
        "InnerProduct": message.inner_product_param.axis,
        "Reduction": message.reduction_param.axis,
        "Crop": message.crop_param.axis,
    }[layer.type]
    return range(canonical_axis(axis, len(bottoms[0])))


@_apart("Concat", "Slice", "Softmax", "Tile")
def _beside_axis(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    axes = len(bottoms[0])
    mixed = {
        "Concat": lambda: concat_axis(layer, bottoms[0]),
        "Slice": lambda: slice_axis(layer, bottoms[0]),
        "Softmax": lambda: canonical_axis(layer.message.softmax_param.axis, axes),
        "Tile": lambda: canonical_axis(layer.message.tile_param.axis, axes),
    }[layer.type]()
    return set(range(axes)) - {mixed}


@_apart("ArgMax")
def _arg_max(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    message, axes = layer.message.argmax_param, len(bottoms[0])
    return set(range(axes)) - {canonical_axis(message.axis, axes)} if message.HasField("axis") else (0,)


@_apart("RNN", "LSTM")
def _streams(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    """Streams lie along axis 1, behind the time; a static input has none."""
    return (0,) if index == 2 and recurrence(layer, bottoms).static else (1,)


@_apart("LSTMUnit")
def _unit_streams(layer: Layer, bottoms: list[Shape], index: int) -> Container[int]:
    return (1,)
