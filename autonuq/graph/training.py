"""Training prototxts given in the place of deploy ones: what shows them, and saying so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.model import TRAIN, Graph, Layer

_ADVICE = "this is a training prototxt; use the deploy one"


def refuse_training(graph: Graph) -> None:
    """Refuse a network that loads data or trains by layers of forks.

    Raises
    ------
    ModelError
        It has such a layer, of a type that is not supported.
    """
    for layer in graph.layers:
        if layer.type in LAYER_TYPES:
            continue
        if "Data" in layer.type and not layer.bottoms:
            raise graph.error(layer, f"type '{layer.type}' reads a data set: {_ADVICE}, which has an Input layer")
        if layer.type.endswith("Loss"):
            raise graph.error(layer, f"type '{layer.type}' is not supported; only training needs it: {_ADVICE}")


@contextmanager
def explained(graph: Graph, left_out: Sequence[caffe_pb2.LayerParameter]) -> Iterator[None]:
    """Say of a network that is not whole where the missing blob could come from.

    Parameters
    ----------
    left_out : sequence of LayerParameter
        The layers that the network's state does not keep.
    """
    try:
        yield
    except ModelError as error:
        missing = _missing(graph)
        if error.layer != (None if missing is None else missing[0].name):
            raise  # something else is wrong
        if (reason := _reason(missing, left_out)) is None:
            raise
        what = error.message if missing is None else f"reads blob '{missing[1]}', which no layer before it makes"
        raise ModelError(f"{what}; {reason}", path=error.path, layer=error.layer) from error


def _reason(missing: tuple[Layer, str] | None, left_out: Sequence[caffe_pb2.LayerParameter]) -> str | None:
    """Say why a blob that a layer reads is not there, or, if all are, why there is no input."""
    for layer in left_out:
        if (not layer.bottom) if missing is None else (missing[1] in layer.top):
            if any(rule.HasField("phase") and rule.phase == TRAIN for rule in layer.include):
                return f"layer '{layer.name}' makes it in phase TRAIN only: {_ADVICE}"
            return f"layer '{layer.name}' makes it, but its include and exclude rules leave it out: set level or stage"
    if missing is not None and (missing[0].type.endswith("Loss") or missing[0].type == "Accuracy"):
        return _ADVICE
    return None


def _missing(graph: Graph) -> tuple[Layer, str] | None:
    """Return the first layer that reads what no layer before it makes, and that blob."""
    made: set[str] = set()
    for layer in graph.layers:
        for bottom in layer.bottoms:
            if bottom not in made:
                return layer, bottom
        made.update(layer.tops)
    return None
