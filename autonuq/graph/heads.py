"""Where a network's results are still open: what its decisions, shares and losses are made from."""

from __future__ import annotations

from dataclasses import dataclass

from autonuq.graph.model import FED_LAYERS, Graph, Layer, Value

_SOFTMAX_TYPES = frozenset({"InfogainLoss", "Softmax", "SoftmaxWithLoss"})
# Types whose outputs jump, change their size or saturate, and how many of their bottoms are a network's results; the
# others are labels or known in advance.
_HIDING = {
    "Accuracy": 1,
    "ArgMax": 1,
    "ContrastiveLoss": 2,
    "DetectionOutput": 2,
    "EuclideanLoss": 1,
    "HingeLoss": 1,
    "MultinomialLogisticLoss": 1,
    "Sigmoid": 1,
    "SigmoidCrossEntropyLoss": 1,
} | dict.fromkeys(_SOFTMAX_TYPES, 1)
_MOVING = frozenset({"Dropout", "Flatten", "Permute", "Reshape", "Split"})  # the same numbers in another order


@dataclass(frozen=True)
class Head:
    """A value that the network's results are made from.

    Attributes
    ----------
    blob : str
        Its name; a layer in place may make another value under it later.
    value : tuple of int
        Which value: (index of the layer that made it, index of its top).
    classes : int or None
        The axis that a softmax is taken along, as the layer says it (it may count from the end); None if there is none.
    """

    blob: str
    value: Value
    classes: int | None = None


def find_heads(graph: Graph) -> tuple[Head, ...]:
    """Return the outputs, or in place of a decision or a saturated share the values that it is made from.

    Values that are fed into the network are no heads.

    Notes
    -----
    Of a classifier that ends in a Softmax these are the logits; if an ArgMax follows, the logits too. Layers that only
    move numbers are looked through where a softmax, or another type that hides something, stands in front of them.
    """
    makers = {top: (index, place) for index, layer in enumerate(graph.layers) for place, top in enumerate(layer.tops)}
    found: dict[Value, Head] = {}
    seen: set[Head] = set()
    left = [Head(blob, makers[blob]) for blob in graph.outputs]
    while left:
        head = _before_moves(graph, left.pop(0))
        if head in seen:  # several ways lead there, and as many from there on
            continue
        seen.add(head)
        layer = graph.layers[head.value[0]]
        if head.classes is None and layer.type in _HIDING:
            left = [*_read(graph, head.value[0], _HIDING[layer.type]), *left]
        elif layer.type not in FED_LAYERS and (head.classes is not None or head.value not in found):
            found[head.value] = head
    return tuple(found.values())


def _read(graph: Graph, index: int, count: int) -> list[Head]:
    layer = graph.layers[index]
    values = zip(layer.bottoms, graph.sources[index], strict=True)
    return [Head(blob, value, _classes_axis(layer)) for blob, value in list(values)[:count]]


def _classes_axis(layer: Layer) -> int | None:
    return layer.message.softmax_param.axis if layer.type in _SOFTMAX_TYPES else None


def _before_moves(graph: Graph, head: Head) -> Head:
    """Follow layers that only move numbers, if what they move is hidden by the layer that made it."""
    found = head
    while head.classes is None and graph.layers[found.value[0]].type in _MOVING:
        found = _read(graph, found.value[0], 1)[0]
    return found if graph.layers[found.value[0]].type in _HIDING else head
