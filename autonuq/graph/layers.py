"""Shapes of a whole graph: of every blob, and of every layer's own weights.

The rules are in the package `shapes`, one module a family of layer types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches

from autonuq.errors import ModelError
from autonuq.graph import hosted as _hosted  # noqa: F401 - fills LAYER_TYPES, as does the next one
from autonuq.graph import shapes as _rules  # noqa: F401
from autonuq.graph.model import Graph, Layer, Shape
from autonuq.graph.shapes.channels import scale_shape
from autonuq.graph.shapes.layout import concat_axis
from autonuq.graph.shapes.registry import LAYER_TYPES, LayerError, LayerType, Tops, canonical_axis
from autonuq.graph.shapes.windows import (
    DEPTHWISE_TYPES,
    ConvolutionWindow,
    InputWindow,
    PoolingWindow,
    convolution,
    input_window,
    pooling,
)

__all__ = [
    "DEPTHWISE_TYPES",
    "LAYER_TYPES",
    "MAX_ELEMENTS",
    "ConvolutionWindow",
    "InputWindow",
    "LayerError",
    "LayerType",
    "PoolingWindow",
    "blob_shapes",
    "canonical_axis",
    "concat_axis",
    "convolution",
    "infer_shapes",
    "input_window",
    "layer_type",
    "pooling",
    "scale_shape",
]

MAX_ELEMENTS = 2**31 - 1  # Caffe's Blob::Reshape refuses more


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
        if len(layer.tops) > len(tops):
            raise graph.error(layer, f"type '{layer.type}' makes {len(tops)} tops, but {len(layer.tops)} are named")
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
        known = {name.lower(): name for name in LAYER_TYPES}
        near = get_close_matches(layer.type.lower(), known, 1, cutoff=0.75)
        hint = f"; did you mean '{known[near[0]]}'?" if near else ""
        raise graph.error(
            layer,
            f"type '{layer.type}' is not supported; register_layer can add it{hint} "
            f"(supported: {', '.join(sorted(LAYER_TYPES))})",
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
