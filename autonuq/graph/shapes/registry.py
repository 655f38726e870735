"""Where the shape rule of every layer type is kept, and what the rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from autonuq.graph.model import Layer, Shape

ONE, TWO, ANY = range(1, 2), range(2, 3), range(1, 2**31)


class LayerError(ValueError):
    """A layer's parameters or bottoms are wrong; the message goes to the user with file and layer in front."""


Tops = Callable[[Layer, list[Shape]], list[Shape]]


@dataclass(frozen=True)
class LayerType:
    """Shapes of one layer type.

    Attributes
    ----------
    tops : callable
        (layer, bottom shapes) -> top shapes; a layer may leave out the last ones.
    blobs : callable
        (layer, bottom shapes) -> shapes of the layer's own blobs.
    bottoms : range
        How many bottoms it takes.
    """

    tops: Tops
    blobs: Tops
    bottoms: range


LAYER_TYPES: dict[str, LayerType] = {}


def no_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Blobs of a layer that learns nothing."""
    return []


def same(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Tops of a layer that keeps the shape of its first bottom."""
    return bottoms[:1]


def define(names: Iterable[str], tops: Tops, blobs: Tops = no_blobs, bottoms: range = ONE) -> None:
    """Register the shape rule of some layer types."""
    LAYER_TYPES.update(dict.fromkeys(names, LayerType(tops, blobs, bottoms)))


def canonical_axis(axis: int, axes: int) -> int:
    """Caffe's CanonicalAxisIndex: negative axes count from the end."""
    if not -axes <= axis < axes:
        raise LayerError(f"axis {axis} is outside an input of {axes} axes")
    return axis % axes


def legacy_shape(shape: Shape) -> Shape:
    """Caffe's num, channels, height, width: up to four axes, ones behind."""
    if len(shape) > 4:
        raise LayerError(f"an input of shape {shape} has more than 4 axes")
    return shape + (1,) * (4 - len(shape))
