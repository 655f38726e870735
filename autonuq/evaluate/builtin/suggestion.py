"""Which built-in evaluator fits a network that nobody describes: by its last layers and by what it puts out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autonuq.graph.model import FED_LAYERS, Array, Graph, Shape

_YOLO_ANCHORS = {  # YOLOv3's and YOLOv3-tiny's, by the number of maps, the coarsest map first
    3: (((116, 90), (156, 198), (373, 326)), ((30, 61), (62, 45), (59, 119)), ((10, 13), (16, 30), (33, 23))),
    2: (((81, 82), (135, 169), (344, 319)), ((10, 14), (23, 27), (37, 58))),
}
_FACE_STRIDES = (8, 16, 32, 64)  # Ultra-Light-Fast-Generic-Face-Detector's
_FACE_SIDES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
_EMBEDDINGS = frozenset(1 << power for power in range(6, 12))  # lengths that embeddings have and sets of classes do not
_MOST_ALIKE = 0.8  # of the pictures: decisions that agree more often are no decisions


@dataclass(frozen=True)
class Suggestion:
    """What a study file says of the evaluator.

    Attributes
    ----------
    kind : str
    why : str
        In a line.
    keys : mapping of str to object
        Further keys of [evaluator].
    detections : mapping of str to object
        Keys of [evaluator.detections].
    classifies : bool
        Whether each picture gets one class, so that labels would make it a top-1 accuracy.
    """

    kind: str
    why: str
    keys: Mapping[str, object] = field(default_factory=dict)
    detections: Mapping[str, object] = field(default_factory=dict)
    classifies: bool = False


def suggest_evaluator(graph: Graph, shapes: Mapping[str, Shape], found: Mapping[str, Array]) -> Suggestion:
    """Look at a network.

    Parameters
    ----------
    graph : Graph
    shapes : mapping of str to tuple of int
        Of its blobs.
    found : mapping of str to ndarray
        What it put out for some pictures, one along the first axis for each but of a DetectionOutput.
    """
    makers = {top: layer.type for layer in graph.layers for top in layer.tops}
    outputs = [blob for blob in graph.outputs if makers[blob] not in FED_LAYERS]
    sides = next((shape[2:] for shape in graph.inputs.values() if len(shape) == 4), ())
    detector = _detector(graph, outputs, makers, shapes, found, sides)
    if detector is not None:
        return detector
    if len(outputs) != 1:
        return Suggestion("outputs", f"it has {len(outputs)} outputs of different kinds")
    return _of_one(outputs[0], makers[outputs[0]], shapes[outputs[0]], found[outputs[0]])


def _of_one(blob: str, maker: str, shape: Shape, values: Array) -> Suggestion:
    """Look at a network of one output."""
    size = math.prod(shape[1:])
    if size == 1:
        return Suggestion("outputs", f"its output '{blob}' is one number")
    if maker == "Softmax":
        where = "" if shape[1] == size else " at each of several places"
        return Suggestion("agreement", f"it ends in a Softmax{where}", classifies=shape[1] == size)
    if maker in ("Sigmoid", "TanH"):
        return Suggestion("outputs", f"it ends in a {maker}")
    if shape[1] != size:
        if maker in _UPSAMPLING and shape[1] > 3:
            return Suggestion("agreement", f"it ends in a {maker} of {shape[1]} classes for each pixel")
        return Suggestion("outputs", f"its output '{blob}' is a map of {shape[1]} channels")
    if maker == "Normalize" or size in _EMBEDDINGS:
        return Suggestion("outputs", f"its output '{blob}' looks like an embedding", {"measure": "cosine"})
    decisions = np.bincount(values.reshape(len(values), -1).argmax(axis=1))
    if size > 2 and decisions.max() <= _MOST_ALIKE * decisions.sum():
        return Suggestion(
            "agreement", f"the largest of its {size} outputs differs from picture to picture", classifies=True
        )
    return Suggestion("outputs", f"its {size} outputs look like no scores of classes")


_UPSAMPLING = frozenset({"Deconvolution", "Interp", "Upsample", "Crop"})


def _detector(
    graph: Graph,
    outputs: Sequence[str],
    makers: Mapping[str, str],
    shapes: Mapping[str, Shape],
    found: Mapping[str, Array],
    sides: Shape,
) -> Suggestion | None:
    """Recognize a detector."""
    if any(makers[blob] == "DetectionOutput" for blob in outputs):
        return Suggestion("detections", "it ends in a DetectionOutput")
    if len(sides) != 2:
        return None
    if len(outputs) == 2:
        return _pair(graph, outputs, shapes, found, sides)
    return _yolo(outputs, shapes, sides)


def _pair(
    graph: Graph, outputs: Sequence[str], shapes: Mapping[str, Shape], found: Mapping[str, Array], sides: Shape
) -> Suggestion | None:
    """Recognize boxes beside their scores."""
    for boxes, scores in (tuple(outputs), tuple(reversed(outputs))):
        if len(shapes[boxes]) != 3 or shapes[boxes][2] != 4 or shapes[scores][:2] != shapes[boxes][:2]:
            continue
        count = shapes[boxes][1]
        names: dict[str, object] = {"layout": "pairs", "boxes": boxes, "scores": scores}
        why = f"'{boxes}' and '{scores}' are {count} boxes and their scores"
        priors = next((blob for blob, shape in shapes.items() if shape == (1, 2, 4 * count)), None)
        if priors is not None:
            return Suggestion("detections", why, detections=names | {"box_format": "offsets", "priors": priors})
        if count == _face_priors(sides):
            stated: dict[str, object] = {
                "box_format": "offsets",
                "strides": _FACE_STRIDES,
                "sides": _FACE_SIDES,
                "variances": (0.1, 0.2),
            }
            return Suggestion(
                "detections", f"{why}, as many as Ultra-Light-Fast-Generic-Face-Detector has", {}, names | stated
            )
        corners = found[boxes]
        if np.mean(corners[..., 2:] > corners[..., :2]) > 0.99 and np.abs(corners).max() < max(sides) * 2:
            unit = "shares" if np.abs(corners).max() <= 2 else "pixels"
            return Suggestion("detections", why, detections=names | {"box_format": "corners", "box_unit": unit})
    return None


def _face_priors(sides: Shape) -> int:
    """Return how many priors a face detector of that family has."""
    return sum(
        math.prod(-(-side // stride) for side in sides) * len(own)
        for stride, own in zip(_FACE_STRIDES, _FACE_SIDES, strict=True)
    )


def _yolo(outputs: Sequence[str], shapes: Mapping[str, Shape], sides: Shape) -> Suggestion | None:
    """Recognize the maps of a YOLOv3, or of its tiny sister."""
    maps = [shapes[blob] for blob in outputs]
    anchors = _YOLO_ANCHORS.get(len(maps))
    if anchors is None or len({shape[:2] for shape in maps}) != 1 or any(len(shape) != 4 for shape in maps):
        return None
    channels, steps = maps[0][1], [sides[0] // max(1, shape[2]) for shape in maps]
    if channels % 3 or channels // 3 <= 5 or sorted(steps, reverse=True) != [32, 16, 8][: len(maps)]:
        return None
    by_step = dict(zip((32, 16, 8), anchors, strict=False))
    keys = {
        "layout": "yolo",
        "version": "v3",
        "outputs": tuple(outputs),
        "anchors": tuple(by_step[one] for one in steps),
    }
    return Suggestion("detections", "its outputs have the shapes of YOLOv3's; anchors are that network's", {}, keys)
