"""Lowering of layers that bring values in or move them around."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from autonuq.graph.model import FED_LAYERS, Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.layout import concat_axis, crop_offsets, dummy_values, slice_axis
from autonuq.graph.shapes.registry import canonical_axis


@lowers(*FED_LAYERS)
def _input(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.read(top) for top in layer.tops]


@lowers("DummyData")
def _dummy_data(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [
        builder.add(
            "ConstantOfShape",
            builder.constant(f"{layer.name}:shape", np.array(shape, np.int64)),
            label=layer.name,
            value=helper.make_tensor("value", TensorProto.FLOAT, [1], [value]),
        )
        for shape, value in zip(builder.shapes_of_tops, dummy_values(layer), strict=True)
    ]


@lowers("Parameter")
def _parameter(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return builder.weights(layer)


@lowers("Split")
def _split(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return tensors * len(layer.tops)


@lowers("Silence")
def _silence(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return []


@lowers("Concat")
def _concat(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.add("Concat", *tensors, label=layer.name, axis=concat_axis(layer, shapes[0]))]


@lowers("Slice")
def _slice(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    if len(layer.tops) < 2:
        return tensors
    axis = slice_axis(layer, shapes[0])
    sizes = builder.constant(f"{layer.name}:sizes", np.array([shape[axis] for shape in builder.shapes_of_tops]))
    return builder.add_many("Split", tensors[0], sizes, count=len(layer.tops), label=layer.name, axis=axis)


@lowers("Crop")
def _crop(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    start = np.array(crop_offsets(layer, shapes))
    limits = [builder.constant(f"{layer.name}:limit", values) for values in (start, start + builder.shapes_of_tops[0])]
    return [builder.add("Slice", tensors[0], *limits, label=layer.name)]


@lowers("Reshape", "Flatten")
def _reshape(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.reshape(tensors[0], builder.shapes_of_tops[0], label=layer.name)]


@lowers("Tile")
def _tile(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.tile_param
    repeats = np.ones(len(shapes[0]), np.int64)
    repeats[canonical_axis(message.axis, len(shapes[0]))] = message.tiles
    return [builder.add("Tile", tensors[0], builder.constant(f"{layer.name}:repeats", repeats), label=layer.name)]


@lowers("BatchReindex")
def _batch_reindex(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    return [builder.add("Gather", tensors[0], builder.indices(tensors[1]), label=layer.name, axis=0)]


@lowers("Filter")
def _filter(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Items whose selector is not 0. Layers behind it that bake the batch size in (Reshape, axis 0) will not run."""
    *items, selector = tensors
    keep = builder.add("Cast", builder.reshape(selector, [-1]), to=TensorProto.BOOL)
    return [builder.add("Compress", item, keep, label=layer.name, axis=0) for item in items]
