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
from autonuq.graph.hosted.permission import check_permission, is_refused
from autonuq.graph.model import FED_LAYERS, MAX_AXES, MAX_ELEMENTS, Graph, Layer, Shape
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
    "infer_known_shapes",
    "infer_shapes",
    "input_window",
    "layer_type",
    "pooling",
    "scale_shape",
]

# Caffe's own words where a layer's weights are made for another input
_MISFITS = dict.fromkeys(
    ["Convolution", "Deconvolution", *DEPTHWISE_TYPES], "Input size incompatible with convolution kernel"
) | {"InnerProduct": "Input size incompatible with inner product parameters"}


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
        A layer type is unknown, or a layer, or the weights that it has, do not fit its bottoms; or a `Python` layer,
        which alone knows its shapes, may not run.
    """
    check_permission(graph)
    given = tuple(sorted((inputs or {}).items()))
    if given not in graph.known_shapes:
        graph.known_shapes[given] = _inferred(graph, inputs, {})
    return dict(graph.known_shapes[given])


def infer_known_shapes(graph: Graph, told: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Compute the shapes that can be known without running `Python` layers that may not run.

    Parameters
    ----------
    graph : Graph
    told : mapping of str to tuple of int, optional
        Shapes of such layers' tops, where somebody else has run them.

    Returns
    -------
    dict of str to tuple of int
        As from `infer_shapes`, without the blobs of those layers and those behind them.
    """
    return _inferred(graph, None, told or {})


def _inferred(graph: Graph, inputs: Mapping[str, Shape] | None, told: Mapping[str, Shape]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer in graph.layers:
        if is_refused(layer) or not all(bottom in shapes for bottom in layer.bottoms):
            layer_type(graph, layer)
            for top in layer.tops:  # one that is made in place was known so far
                shapes.pop(top, None)
            shapes.update({top: told[top] for top in layer.tops if is_refused(layer) and top in told})
            continue
        bottoms = [shapes[bottom] for bottom in layer.bottoms]
        tops = _checked(graph, layer, bottoms, layer_type(graph, layer).tops, "top")
        _check_own_blobs(graph, layer, bottoms)
        if len(layer.tops) > len(tops):
            raise graph.error(layer, f"type '{layer.type}' makes {len(tops)} tops, but {len(layer.tops)} are named")
        for top, shape in zip(layer.tops, tops, strict=False):
            shapes[top] = shape if not inputs or layer.type not in FED_LAYERS else tuple(inputs.get(top, shape))
            _check_size(graph, layer, f"blob '{top}'", shapes[top])
    return shapes


def blob_shapes(graph: Graph, layer: Layer, shapes: Mapping[str, Shape]) -> list[Shape]:
    """Return the shapes that a layer's own blobs must have; `shapes` as from `infer_shapes`."""
    return _own_shapes(graph, layer, [shapes[bottom] for bottom in layer.bottoms])


def _own_shapes(graph: Graph, layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return _checked(graph, layer, bottoms, layer_type(graph, layer).blobs, "blob of weights")


def _check_size(graph: Graph, layer: Layer, what: str, shape: Shape) -> None:
    if len(shape) > MAX_AXES:
        raise graph.error(layer, f"{what} has {len(shape)} axes; {MAX_AXES} is Caffe's limit")
    if math.prod(shape) > MAX_ELEMENTS:
        raise graph.error(layer, f"{what} of shape {shape} exceeds {MAX_ELEMENTS} values, Caffe's limit")


def _check_own_blobs(graph: Graph, layer: Layer, bottoms: list[Shape]) -> None:
    """Refuse an input that the layer's weights are not made for."""
    if not layer.blobs:
        return
    for index, (blob, shape) in enumerate(zip(layer.blobs, _own_shapes(graph, layer, bottoms), strict=False)):
        if blob.shape != shape:
            raise graph.error(layer, _misfit_text(layer, index, blob.shape, shape, bottoms))


def _misfit_text(layer: Layer, index: int, own: Shape, wanted: Shape, bottoms: list[Shape]) -> str:
    """Say what a blob of weights is made for and what came, as numbers where one axis tells."""
    what = _MISFITS.get(layer.type, "Input size incompatible with the weights")
    where = f"{what}: blob {index} has shape {own}"
    differing = [pair for pair in zip(own, wanted, strict=False) if pair[0] != pair[1]]
    if len(own) != len(wanted) or len(differing) != 1:
        return f"{where}, but for an input of shape {bottoms[0]} it must be {wanted}"
    groups = layer.message.convolution_param.group if layer.type == "Convolution" else 1
    made_for, got = (size * groups for size in differing[0])
    return f"{where}, so it takes {made_for}, not the {got} of an input of shape {bottoms[0]}"


def layer_type(graph: Graph, layer: Layer) -> LayerType:
    """Return the definition of a layer's type, or refuse it by name."""
    found = LAYER_TYPES.get(layer.type)
    if found is None:
        known = {name.lower(): name for name in LAYER_TYPES}
        near = get_close_matches(layer.type.lower(), known, 1, cutoff=0.75)
        hint = f"; did you mean '{known[near[0]]}'?" if near else ""
        raise graph.error(layer, f"type '{layer.type}' is not supported; register_layer can add it{hint}")
    return found


def _checked(graph: Graph, layer: Layer, bottoms: list[Shape], function: Tops, what: str) -> list[Shape]:
    """Return the shapes that a rule gives a layer's tops or its blobs of weights, if they can be."""
    wanted = LAYER_TYPES[layer.type].bottoms
    if len(bottoms) not in wanted:
        raise graph.error(layer, f"type '{layer.type}' takes {_range_text(wanted)} bottoms, got {len(bottoms)}")
    try:
        shapes = function(layer, bottoms)
    except LayerError as error:
        raise ModelError(str(error), path=graph.path, layer=layer.name) from error
    if any(min(shape, default=1) < 1 for shape in shapes):
        raise graph.error(layer, f"gives shapes {shapes}; every dimension must be positive")
    for index, shape in enumerate(shapes):
        _check_size(graph, layer, f"{what} {index}", shape)
    return shapes


def _range_text(wanted: range) -> str:
    if len(wanted) == 1:
        return str(wanted[0])
    return f"at least {wanted[0]}" if wanted[-1] > 1000 else f"{wanted[0]} to {wanted[-1]}"
