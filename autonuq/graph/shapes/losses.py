"""Layers that compare predictions with labels; a test net has them to print its score."""

from __future__ import annotations

import math

from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import TWO, LayerError, canonical_axis, define, legacy_shape


def label_axis(layer: Layer, bottom: Shape) -> int:
    """Return the axis of the predictions along which the classes lie."""
    axis = {
        "Accuracy": layer.message.accuracy_param.axis,
        "InfogainLoss": layer.message.infogain_loss_param.axis,
        "SoftmaxWithLoss": layer.message.softmax_param.axis,
    }[layer.type]
    return canonical_axis(axis, len(bottom))


def _check_labels(layer: Layer, bottoms: list[Shape]) -> int:
    """Return the number of classes; there must be one label for every prediction."""
    axis = label_axis(layer, bottoms[0])
    predictions = math.prod(bottoms[0][:axis]) * math.prod(bottoms[0][axis + 1 :])
    if math.prod(bottoms[1]) != predictions:
        raise LayerError(f"needs {predictions} labels for predictions of shape {bottoms[0]}, got {bottoms[1]}")
    return bottoms[0][axis]


def _accuracy_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Accuracy, then that of every class."""
    classes = _check_labels(layer, bottoms)
    if layer.message.accuracy_param.top_k > classes:
        raise LayerError(f"top_k {layer.message.accuracy_param.top_k} exceeds the {classes} classes")
    return [(), (classes,)]


def _softmax_loss_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Loss, then the probabilities."""
    classes = _check_labels(layer, bottoms)
    if layer.type == "InfogainLoss":
        if len(bottoms) < 3:
            raise LayerError("needs the infogain matrix as third bottom; a 'source' file is not read")
        if math.prod(bottoms[2]) != classes**2:
            raise LayerError(f"needs an infogain matrix of {classes} x {classes}, got {bottoms[2]}")
    return [(), bottoms[0]]


def _per_item_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if not bottoms[0] or math.prod(bottoms[1]) != bottoms[0][0]:
        raise LayerError(f"needs a label for every item of {bottoms[0]}, got {bottoms[1]}")
    return [()]


def _paired_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if math.prod(bottoms[0]) != math.prod(bottoms[1]) or bottoms[0][:1] != bottoms[1][:1]:
        raise LayerError(f"inputs differ in shape: {bottoms[0]} and {bottoms[1]}")
    return [()]


def _sigmoid_loss_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if not bottoms[0]:
        raise LayerError("needs an input with axes, got a scalar")
    return _paired_tops(layer, bottoms)


def _contrastive_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    features = legacy_shape(bottoms[0])
    if legacy_shape(bottoms[1]) != features or features[2:] != (1, 1) or math.prod(bottoms[2]) != features[0]:
        raise LayerError(f"needs two inputs (N, C) and N labels, got {', '.join(map(str, bottoms))}")
    return [()]


define(["Accuracy"], _accuracy_tops, bottoms=TWO)
define(["SoftmaxWithLoss"], _softmax_loss_tops, bottoms=TWO)
define(["InfogainLoss"], _softmax_loss_tops, bottoms=range(2, 4))
define(["HingeLoss", "MultinomialLogisticLoss"], _per_item_tops, bottoms=TWO)
define(["EuclideanLoss"], _paired_tops, bottoms=TWO)
define(["SigmoidCrossEntropyLoss"], _sigmoid_loss_tops, bottoms=TWO)
define(["ContrastiveLoss"], _contrastive_tops, bottoms=range(3, 4))
