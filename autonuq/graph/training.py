"""Training prototxts given in the place of deploy ones: what shows them, and saying so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.model import DATA_LAYERS, TRAIN, Graph, Layer

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
        if (reason := _reason(graph, error.layer, left_out)) is None:
            raise
        raise ModelError(f"{error.message}; {reason}", path=error.path, layer=error.layer) from error


def _reason(graph: Graph, name: str | None, left_out: Sequence[caffe_pb2.LayerParameter]) -> str | None:
    """Say why a layer of this name lacks a blob or reads data, or, without a name, why there is no input."""
    missing, refused = _missing(graph), graph.by_name.get(name or "")
    if refused is not None and refused.type in DATA_LAYERS:
        makers = [layer for layer in left_out if layer.type == "Input"]
    elif missing is not None and missing[0] is refused:
        makers = [layer for layer in left_out if missing[1] in layer.top]
    elif missing is None and name is None:
        makers = [layer for layer in left_out if not layer.bottom]
    else:
        return None  # something else is wrong
    for layer in makers:
        if any(rule.HasField("phase") and rule.phase == TRAIN for rule in layer.include):
            return f"layer '{layer.name}' makes it in phase TRAIN only: {_ADVICE}"
        stages = "".join(f", such as '{stage}'" for rule in layer.include for stage in rule.stage)
        return f"layer '{layer.name}' is left out by its include and exclude rules: set level or stage{stages}"
    if refused is not None and (refused.type.endswith("Loss") or refused.type == "Accuracy"):
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
