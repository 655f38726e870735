"""Where layers that run in Python are kept; `shapes.registry` holds the shape rules of the same types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from autonuq.errors import RuntimeFailure
from autonuq.graph.model import Array, Layer, Shape
from autonuq.graph.shapes.registry import ANY, LAYER_TYPES, LayerError, define

HostLayer = Callable[..., Sequence[Array]]  # (bottom arrays) -> top arrays; lives as long as a net
HOST_LAYERS: dict[str, Callable[[Layer], HostLayer]] = {}

Computation = Callable[..., Array | Sequence[Array]]
ShapeRule = Callable[..., Sequence[Shape]]
_registered: set[str] = set()


def runs_on_host(name: str) -> Callable[[Callable[[Layer], HostLayer]], Callable[[Layer], HostLayer]]:
    """Register what makes the host layers of a type."""

    def register(maker: Callable[[Layer], HostLayer]) -> Callable[[Layer], HostLayer]:
        HOST_LAYERS[name] = maker
        return maker

    return register


def register_layer(
    name: str, function: Computation, *, shapes: ShapeRule | None = None, weights: ShapeRule | None = None
) -> None:
    """Let networks have layers of a type that autonuq does not know.

    Parameters
    ----------
    name : str
        Caffe's type name. A second registration replaces the first.
    function : callable
        `(layer, *bottoms) -> top`, or a sequence of tops: float32 arrays in, arrays out. `layer` has `name`, `blobs`
        (its weights) and `message` (its parameters; messages that autonuq does not know are in `foreign_param`, as
        text such as `mish_param { alpha: 1 }`).
    shapes : callable, optional
        `(layer, *bottom_shapes) -> [top_shape, ...]`. By default the first bottom's, for every top. What the function
        returns may differ if the data decide: the layers behind adapt.
    weights : callable, optional
        `(layer, *bottom_shapes) -> [blob_shape, ...]`; by default the layer has none.

    Raises
    ------
    ValueError
        autonuq has a layer of this type.
    TypeError
        The name is no text, or something else is not callable.

    Notes
    -----
    Runs in this process only: another one that opens the network registers it, too, for instance in the file of the
    evaluator.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"The 'name' parameter of register_layer must be a non-empty str. Got {name!r} instead.")
    for parameter, value in (("function", function), ("shapes", shapes), ("weights", weights)):
        if not callable(value) and (value is not None or parameter == "function"):
            raise TypeError(f"The '{parameter}' parameter of register_layer must be callable. Got {value!r} instead.")
    if name in LAYER_TYPES and name not in _registered:
        raise ValueError(f"The 'name' parameter of register_layer must be new. Got '{name}' instead, a built-in type.")
    _registered.add(name)
    define(
        [name],
        (lambda layer, bottoms: _first_for_every_top(layer, bottoms)) if shapes is None else partial(_ruled, shapes),
        (lambda layer, bottoms: []) if weights is None else partial(_ruled, weights),
        range(ANY.stop),
    )
    HOST_LAYERS[name] = lambda layer: partial(_computed, function, layer)


def registered_types() -> frozenset[str]:
    """Return the types that `register_layer` added."""
    return frozenset(_registered)


def _first_for_every_top(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if not bottoms:
        raise LayerError("has no bottom; register_layer needs 'shapes' for such a type")
    return bottoms[:1] * len(layer.tops)


def _ruled(rule: ShapeRule, layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    with raised_by(layer):
        return [tuple(int(dim) for dim in shape) for shape in rule(layer, *bottoms)]


def _computed(function: Computation, layer: Layer, *bottoms: Array) -> list[Array]:
    result = function(layer, *(bottom.copy() for bottom in bottoms))
    if isinstance(result, tuple | list):
        return [np.asarray(top, np.float32) for top in result]
    return [np.asarray(result, np.float32)]


class raised_by:  # noqa: N801 - a context manager reads like a function
    """Turn whatever a user's code raises into a RuntimeFailure that names the layer."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise in place of an Exception; interrupts pass."""
        if isinstance(error, Exception) and not isinstance(error, RuntimeFailure):
            message = f"type '{self._layer.type}' raised {type(error).__name__}: {error}"
            raise RuntimeFailure(message, layer=self._layer.name) from error
