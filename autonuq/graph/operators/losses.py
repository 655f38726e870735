"""Lowering of layers that compare predictions with labels; a top holds the loss before `loss_weight`."""

from __future__ import annotations

import math

import numpy as np

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Layer, Shape
from autonuq.graph.operators.arithmetic import softmax
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.losses import label_axis
from autonuq.graph.shapes.registry import legacy_shape

_FLT_MIN = float(np.finfo(np.float32).tiny)
_LOG_THRESHOLD = 1e-20


class _Labels:
    """Integer labels of predictions (outer, classes, inner), and which of them count.

    Attributes
    ----------
    indices : str
        int64 tensor, shape (outer, 1, inner); 0 where the label is ignored.
    counted : str or None
        float32 tensor of the same shape, 1 or 0; None if every label counts.
    valid : str or None
        Number of labels that count, a scalar.
    """

    def __init__(self, builder: Builder, tensor: str, shape: list[int], ignored: int | None) -> None:
        self.indices = builder.indices(builder.reshape(tensor, shape))
        self.counted: str | None = None
        self.valid: str | None = None
        if ignored is not None:
            same = builder.add("Equal", self.indices, builder.constant("ignored", ignored))
            self.counted = builder.floats(builder.add("Not", same))
            self.indices = builder.add("Where", same, builder.constant("any", 0), self.indices)
            self.valid = _total(builder, self.counted)

    def only_counted(self, builder: Builder, values: str) -> str:
        """Zero the values of labels that are ignored."""
        return values if self.counted is None else builder.add("Mul", values, self.counted)


def _total(builder: Builder, tensor: str, label: str | None = None) -> str:
    return builder.add("ReduceSum", tensor, label=label, keepdims=0)


def _normalization(layer: Layer, default: int | None) -> int:
    """Return the mode; the older `normalize` says VALID or BATCH_SIZE, and `default` None means VALID."""
    message = layer.message.loss_param
    if message.HasField("normalization"):
        return message.normalization
    if message.HasField("normalize"):
        return caffe_pb2.LossParameter.VALID if message.normalize else caffe_pb2.LossParameter.BATCH_SIZE
    return message.normalization if default is None else default


def _normalized(builder: Builder, loss: str, mode: int, outer: int, inner: int, valid: str | None, label: str) -> str:
    """Divide by the number of labels that the mode counts, at least 1."""
    if mode == caffe_pb2.LossParameter.VALID and valid is not None:
        return builder.add("Div", loss, builder.scalar("Max", valid, 1.0), label=label)
    if mode == caffe_pb2.LossParameter.BATCH_SIZE:
        count = outer
    else:
        count = 1 if mode == caffe_pb2.LossParameter.NONE else outer * inner
    return builder.scalar("Div", loss, max(1, count), label=label)


def _rows(builder: Builder, layer: Layer, tensor: str, shape: Shape) -> tuple[str, int, int, int]:
    """Return the predictions as (outer, classes, inner), and the three sizes."""
    axis = label_axis(layer, shape)
    outer, classes, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    return builder.reshape(tensor, [outer, classes, inner]), outer, classes, inner


@lowers("Accuracy")
def _accuracy(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Count a prediction if fewer than top_k classes score at least as much as the label's own, itself not counted."""
    message = layer.message.accuracy_param
    scores, outer, classes, inner = _rows(builder, layer, tensors[0], shapes[0])
    ignored = message.ignore_label if message.HasField("ignore_label") else None
    labels = _Labels(builder, tensors[1], [outer, 1, inner], ignored)
    own = builder.add("GatherElements", scores, labels.indices, axis=1)
    above = builder.floats(builder.add("GreaterOrEqual", scores, own))
    above = builder.add("ReduceSum", above, builder.constant("classes", np.array([1])))  # the label's own included
    right = builder.floats(builder.scalar("Less", above, message.top_k + 0.5))
    right = labels.only_counted(builder, right)
    if labels.valid is None:
        total = builder.scalar("Div", _total(builder, right), outer * inner, label=layer.name)
    else:
        total = builder.add("Div", _total(builder, right), builder.scalar("Max", labels.valid, 1.0), label=layer.name)
    if len(layer.tops) < 2:
        return [total]
    each = builder.reshape(builder.counted(classes), [1, classes, 1])
    member = labels.only_counted(builder, builder.floats(builder.add("Equal", labels.indices, each)))
    others = builder.constant("others", np.array([0, 2]))
    members = builder.add("ReduceSum", member, others, keepdims=0)
    hits = builder.add("ReduceSum", builder.add("Mul", member, right), others, keepdims=0)
    return [total, builder.add("Div", hits, builder.scalar("Max", members, 1.0), label=layer.name)]


@lowers("SoftmaxWithLoss", "InfogainLoss")
def _softmax_loss(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    message = layer.message.loss_param
    probabilities = softmax(builder, tensors[0], shapes[0], label_axis(layer, shapes[0]), layer.name)
    rows, outer, classes, inner = _rows(builder, layer, probabilities, shapes[0])
    ignored = message.ignore_label if message.HasField("ignore_label") else None
    labels = _Labels(builder, tensors[1], [outer, 1, inner], ignored)
    if layer.type == "SoftmaxWithLoss":
        own = builder.add("GatherElements", rows, labels.indices, axis=1)
        logs = builder.add("Log", builder.scalar("Max", own, _FLT_MIN))
    else:
        gain = builder.add("Gather", builder.reshape(tensors[2], [classes, classes]), labels.indices, axis=0)
        gain = builder.add("Transpose", builder.reshape(gain, [outer, inner, classes]), perm=[0, 2, 1])
        logs = builder.add("Mul", gain, builder.add("Log", builder.scalar("Max", rows, _LOG_THRESHOLD)))
    loss = builder.add("Neg", _total(builder, labels.only_counted(builder, logs)))
    mode = _normalization(layer, None)
    return [_normalized(builder, loss, mode, outer, inner, labels.valid, layer.name), probabilities]


@lowers("SigmoidCrossEntropyLoss")
def _sigmoid_loss(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """-sum(t log s(x) + (1 - t) log(1 - s(x))) = sum(softplus(x) - t x)."""
    message = layer.message.loss_param
    scores = tensors[0]
    targets = tensors[1] if shapes[0] == shapes[1] else builder.reshape(tensors[1], shapes[0])
    losses = builder.add("Sub", builder.add("Softplus", scores), builder.add("Mul", targets, scores))
    outer, inner = shapes[0][0], math.prod(shapes[0][1:])
    ignored = message.ignore_label if message.HasField("ignore_label") else None
    labels = _Labels(builder, targets, list(shapes[0]), ignored)
    loss = _total(builder, labels.only_counted(builder, losses))
    mode = _normalization(layer, caffe_pb2.LossParameter.BATCH_SIZE)
    return [_normalized(builder, loss, mode, outer, inner, labels.valid, layer.name)]


@lowers("EuclideanLoss")
def _euclidean_loss(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    other = tensors[1] if shapes[0] == shapes[1] else builder.reshape(tensors[1], shapes[0])
    difference = builder.add("Sub", tensors[0], other)
    total = _total(builder, builder.add("Mul", difference, difference))
    return [builder.scalar("Div", total, 2 * (shapes[0][:1] or (1,))[0], label=layer.name)]


@lowers("HingeLoss")
def _hinge_loss(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """max(0, 1 + x), x negated for the label's class; summed or squared and summed, per item."""
    number, classes = shapes[0][0], math.prod(shapes[0][1:])
    scores = builder.reshape(tensors[0], [number, classes])
    labels = _Labels(builder, tensors[1], [number, 1], None)
    member = builder.floats(builder.add("Equal", labels.indices, builder.counted(classes)))
    signs = builder.scalar("Add", builder.scalar("Mul", member, -2.0), 1.0)
    margins = builder.add("Relu", builder.scalar("Add", builder.add("Mul", scores, signs), 1.0))
    if layer.message.hinge_loss_param.norm == caffe_pb2.HingeLossParameter.L2:
        margins = builder.add("Mul", margins, margins)
    return [builder.scalar("Div", _total(builder, margins), number, label=layer.name)]


@lowers("MultinomialLogisticLoss")
def _multinomial_loss(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    number = shapes[0][0]
    rows = builder.reshape(tensors[0], [number, math.prod(shapes[0][1:])])
    labels = _Labels(builder, tensors[1], [number, 1], None)
    own = builder.add("GatherElements", rows, labels.indices, axis=1)
    logs = builder.add("Log", builder.scalar("Max", own, _LOG_THRESHOLD))
    return [builder.scalar("Div", builder.add("Neg", _total(builder, logs)), number, label=layer.name)]


@lowers("ContrastiveLoss")
def _contrastive_loss(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """Squared distance of pairs that belong together; of others what the margin lacks, squared."""
    message = layer.message.contrastive_loss_param
    number = legacy_shape(shapes[0])[0]
    pair = [builder.reshape(tensor, [number, math.prod(shapes[0][1:])]) for tensor in tensors[:2]]
    squares = builder.add("ReduceSumSquare", builder.add("Sub", *pair), axes=[1], keepdims=0)
    distance = squares if message.legacy_version else builder.add("Sqrt", squares)
    lacking = builder.add("Relu", builder.add("Sub", builder.constant("margin", float(message.margin)), distance))
    if not message.legacy_version:
        lacking = builder.add("Mul", lacking, lacking)
    together = builder.add("Equal", builder.indices(builder.reshape(tensors[2], [number])), builder.constant("0", 0))
    total = _total(builder, builder.add("Where", together, lacking, squares))
    return [builder.scalar("Div", total, 2 * number, label=layer.name)]
