"""What detectors put out, read as boxes: SSD's rows, boxes and scores apart, YOLO's maps and rows.

Notation: N pictures of a batch, P boxes of a picture, C classes without background, A anchors, H x W a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.boxes import Detections, DetectionSettings, Sides, join_detections
from autonuq.evaluate.builtin.images import find_items, images_first
from autonuq.graph import caffe_pb2
from autonuq.graph.hosted.detection import decode_boxes
from autonuq.graph.model import Array, Graph, Layer, Shape

_NMS = 0.45  # SSD's and YOLO's
_SSD_ROW = 7  # image, label, score, x1, y1, x2, y2
_YOLO_ROW = 5  # centre, size, objectness; then classes
_OFFSETS = caffe_pb2.DetectionOutputParameter(code_type=caffe_pb2.PriorBoxParameter.CENTER_SIZE)
_TABLE = "[evaluator.detections]"


Items = tuple[int | None, ...]
"""Axis of the pictures in each of some blobs; None: the only picture has all of it."""


class Layout(Protocol):
    """How detections are read from a network's outputs.

    Its `repr` is digested, so that arrays are not in it: NumPy's versions write them differently, and they are made of
    settings and shapes that are digested, too.
    """

    @property
    def blobs(self) -> tuple[str, ...]:
        """Blobs that are read."""

    @property
    def classes(self) -> int | None:
        """How many there are without background; None where nothing says it."""

    @property
    def nms(self) -> float | None:
        """Overlap above which a box is suppressed, unless the settings say another."""

    def read(self, blobs: Mapping[str, Array], min_score: float) -> Detections:
        """Return what has this score at least, in any order; images are places in the batch."""


def find_layout(settings: DetectionSettings, graph: Graph, shapes: Mapping[str, Shape], source: str) -> Layout:
    """Find how a network's outputs are to be read.

    Parameters
    ----------
    settings : DetectionSettings
    graph : Graph
    shapes : mapping of str to tuple of int
        Of all blobs.
    source : str
        Blob of the pictures.

    Raises
    ------
    EvaluatorError
        There are no such blobs, or they have not the shapes of the layout; or it cannot be told.
    """
    layout = settings.layout or _told_layout(settings, graph, shapes)
    network = _Network(graph, shapes, source)
    if layout == "ssd":
        return _ssd(settings, network)
    return _pairs(settings, network) if layout == "pairs" else _yolo(settings, network)


@dataclass(frozen=True)
class _Network:
    """A graph, the shapes of its blobs, and the blob of the pictures."""

    graph: Graph
    shapes: Mapping[str, Shape]
    source: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.shapes[self.source][2], self.shapes[self.source][3]

    def items(self, names: tuple[str, ...]) -> Items:
        """Say along which axis of each blob the pictures lie."""
        batch = self.shapes[self.source][0]
        return tuple(find_items(self.graph, name, self.shapes[name], batch) for name in names)

    def of_pictures(self, names: tuple[str, ...]) -> list[Shape]:
        """Return the shapes of blobs when the pictures lie along their first axis."""
        return [
            (1, *shape) if axis is None else (shape[axis], *shape[:axis], *shape[axis + 1 :])
            for shape, axis in zip((self.shapes[name] for name in names), self.items(names), strict=True)
        ]


def _told_layout(settings: DetectionSettings, graph: Graph, shapes: Mapping[str, Shape]) -> str:
    if settings.boxes or settings.scores or settings.sides or settings.priors:
        return "pairs"
    if settings.anchors or settings.version == "rows":
        return "yolo"
    if _detection_layers(graph) or any(_is_ssd(shapes[name]) for name in graph.outputs):
        return "ssd"
    priors = _prior_blob(graph, shapes)
    others = tuple(name for name in graph.outputs if name != priors)
    if len(others) == 2 and _boxes_among(others, shapes, priors) is not None:
        return "pairs"
    outputs = ", ".join(f"{name} {shapes[name]}" for name in graph.outputs)
    raise EvaluatorError(
        f"what the outputs mean cannot be told from their shapes ({outputs}); say 'layout' in {_TABLE}"
    )


def _checked(names: tuple[str, ...], shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    missing = next((name for name in names if name not in shapes), None)
    if missing is not None:
        raise EvaluatorError(f"the network has no blob '{missing}' (it has: {', '.join(shapes)})")
    return names


@dataclass(frozen=True)
class SsdRows:
    """Rows of a DetectionOutput; a row without a picture or with a negative label is none."""

    blobs: tuple[str, ...]
    classes: int | None
    first: int
    """Label of the first class."""
    unit: Array = field(repr=False)
    """What a share of the picture is in the rows, shape (4,)."""
    nms: float | None = None

    def read(self, blobs: Mapping[str, Array], min_score: float) -> Detections:
        """See `Layout`."""
        rows = blobs[self.blobs[0]].reshape(-1, _SSD_ROW)
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 1] >= self.first) & (rows[:, 2] >= min_score)]
        labels = rows[:, 1].astype(np.int64) - self.first
        return Detections(rows[:, 0].astype(np.int64), labels, rows[:, 2], rows[:, 3:] / self.unit)


def _detection_layers(graph: Graph) -> list[Layer]:
    return [layer for layer in graph.layers if layer.type == "DetectionOutput"]


def _is_ssd(shape: Shape) -> bool:
    return len(shape) == 4 and shape[-1] == _SSD_ROW and shape[:2] == (1, 1)


def _ssd(settings: DetectionSettings, network: _Network) -> SsdRows:
    graph, shapes = network.graph, network.shapes
    makers = {layer.tops[0]: layer for layer in _detection_layers(graph)}
    names = _checked(settings.outputs, shapes) or tuple(makers)
    names = names or tuple(name for name in graph.outputs if _is_ssd(shapes[name]))
    if len(names) != 1 or shapes[names[0]][-1] != _SSD_ROW:
        have = ", ".join(f"{name} {shapes[name]}" for name in names or graph.outputs)
        raise EvaluatorError(
            f"layout 'ssd' needs one blob of rows of {_SSD_ROW} numbers ({have}); say it in {_TABLE}.outputs"
        )
    first, classes = int(settings.background != "none"), len(settings.classes) or None
    if names[0] in makers:
        message = makers[names[0]].message.detection_output_param
        first = first if settings.background else int(message.background_label_id == 0)
        classes = message.num_classes - first
    return SsdRows(names, classes, first, _unit(settings.box_unit == "pixels", network.size))


def _unit(is_pixels: bool, size: tuple[int, int]) -> Array:
    """Return what one share of a picture is: in pixels its width and height, twice."""
    return np.array((size[1], size[0]) * 2 if is_pixels else (1,) * 4, np.float32)


@dataclass(frozen=True)
class Pairs:
    """Blobs of boxes and blobs of their scores.

    Attributes
    ----------
    boxes, scores : tuple of str
        Each box blob has its own score blob.
    items : tuple of Items
        Of either.
    first : int
        Column of the first class.
    box_format : str
    unit : ndarray of float32, shape (4,)
    priors : str or tuple of two ndarrays
        Blob of a PriorBox; or corners, shape (P, 4), and variances, shape (4,). Of no meaning but for offsets.
    """

    boxes: tuple[str, ...]
    scores: tuple[str, ...]
    items: tuple[Items, Items]
    classes: int
    first: int
    box_format: str
    unit: Array = field(repr=False)
    priors: str | tuple[Array, Array] | None = field(repr=False)
    nms: float | None = _NMS

    @property
    def blobs(self) -> tuple[str, ...]:
        """See `Layout`."""
        return self.boxes + self.scores + ((self.priors,) if isinstance(self.priors, str) else ())

    def read(self, blobs: Mapping[str, Array], min_score: float) -> Detections:
        """See `Layout`; only boxes that have such a score are decoded."""
        boxes = [
            _rows_of(images_first(blobs[name], axis), 4) for name, axis in zip(self.boxes, self.items[0], strict=True)
        ]
        scores = [
            _scores_of(images_first(blobs[name], axis), own.shape[1])
            for name, axis, own in zip(self.scores, self.items[1], boxes, strict=True)
        ]
        return self._found(np.concatenate(boxes, axis=1), np.concatenate(scores, axis=1), min_score, blobs)

    def _found(self, boxes: Array, scores: Array, min_score: float, blobs: Mapping[str, Array]) -> Detections:
        scores = scores[..., self.first :]
        images, places, classes = np.nonzero(scores >= min_score)
        kept = boxes[images, places] / self.unit
        return Detections(images, classes, scores[images, places, classes], self._corners(kept, places, blobs))

    def _corners(self, boxes: Array, places: NDArray[np.int64], blobs: Mapping[str, Array]) -> Array:
        if self.box_format == "corners" or self.priors is None:
            return boxes if self.box_format == "corners" else centred(boxes)
        if isinstance(self.priors, str):
            priors, variances = blobs[self.priors].reshape(2, -1, 4)
            priors, variances = priors[places], variances[places]
        else:
            priors, variances = self.priors[0][places], self.priors[1]
        with np.errstate(over="ignore", invalid="ignore"):
            return decode_boxes((boxes * variances)[:, None], priors[:, None], _OFFSETS)[:, 0]


def centred(boxes: Array) -> Array:
    """Turn (centre x, centre y, width, height) into corners, shape (..., 4)."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def _rows_of(values: Array, width: int) -> Array:
    """Return (N, P, width) from (N, P, width), (N, P * width) or a map (N, A * width, H, W)."""
    return _unfolded(values).reshape(len(values), -1, width)


def _scores_of(values: Array, count: int) -> Array:
    return _unfolded(values).reshape(len(values), count, -1)


def _unfolded(values: Array) -> Array:
    """Put the channels of a map behind its pixels."""
    return values.transpose(0, 2, 3, 1) if _is_map(values.shape) else values


def _is_map(shape: Shape) -> bool:
    return len(shape) == 4 and shape[1] > 1 and math.prod(shape[2:]) > 1


def _prior_blob(graph: Graph, shapes: Mapping[str, Shape]) -> str | None:
    """Return the last blob of prior boxes."""
    if not any(layer.type == "PriorBox" for layer in graph.layers):
        return None
    found = [name for name, shape in shapes.items() if len(shape) == 3 and shape[:2] == (1, 2) and shape[2] % 4 == 0]
    return found[-1] if found else None


def _boxes_among(names: tuple[str, ...], shapes: Mapping[str, Shape], priors: str | None) -> str | None:
    """Return the blob that must be the boxes, if only one can be."""
    fit = [name for name in names if len(shapes[name]) >= 3 and shapes[name][-1] == 4 and not _is_map(shapes[name])]
    if not fit and priors is not None:
        fit = [name for name in names if math.prod(shapes[name][1:]) == shapes[priors][2] and name != priors]
    return fit[0] if len(fit) == 1 else None


def _pairs(settings: DetectionSettings, network: _Network) -> Pairs:
    graph, shapes, size = network.graph, network.shapes, network.size
    _checked((*settings.boxes, *settings.scores, *filter(None, [settings.priors])), shapes)
    prior_blob = settings.priors or (None if settings.sides else _prior_blob(graph, shapes))
    boxes, scores = _pair_blobs(settings, graph, shapes, prior_blob)
    counts = [_boxes_in(name, shape) for name, shape in zip(boxes, network.of_pictures(boxes), strict=True)]
    own = zip(scores, network.of_pictures(scores), counts, strict=True)
    columns = {_columns_of(name, shape, count) for name, shape, count in own}
    if len(columns) != 1:
        raise EvaluatorError(f"blobs {', '.join(scores)} have different numbers of scores a box: {sorted(columns)}")
    width = columns.pop()
    first = int(settings.background == "first" or (settings.background is None and width > 1))
    if width <= first:
        raise EvaluatorError(f"blob '{scores[0]}' has {width} score a box, which cannot be the background")
    box_format = settings.box_format or ("offsets" if settings.sides or prior_blob else "corners")
    priors: str | tuple[Array, Array] | None = None
    if box_format == "offsets":
        priors = _priors(settings, shapes, size, prior_blob, sum(counts))
    unit = _unit(settings.box_unit == "pixels" and box_format != "offsets", size)
    items = (network.items(boxes), network.items(scores))
    return Pairs(boxes, scores, items, width - first, first, box_format, unit, priors)


def _pair_blobs(
    settings: DetectionSettings, graph: Graph, shapes: Mapping[str, Shape], priors: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    boxes, scores = settings.boxes, settings.scores
    others = tuple(name for name in graph.outputs if name not in (*boxes, *scores, priors))
    if not boxes:
        found = others[0] if scores and len(others) == 1 else _boxes_among(others, shapes, priors)
        boxes = () if found is None else (found,)
        others = tuple(name for name in others if name not in boxes)
    if not scores and len(others) == 1:
        scores = others
    if not boxes or len(boxes) != len(scores):
        have = ", ".join(f"{name} {shapes[name]}" for name in graph.outputs)
        raise EvaluatorError(
            "layout 'pairs' needs a blob of boxes and one of scores, or as many of both; "
            f"say which with 'boxes' and 'scores' in {_TABLE} (outputs: {have})"
        )
    return boxes, scores


def _boxes_in(name: str, shape: Shape) -> int:
    numbers = math.prod(shape[1:])
    if (
        numbers % 4
        or (_is_map(shape) and shape[1] % 4)
        or (len(shape) == 3 and shape[2] not in (1, 4) and shape[1] != 1)
    ):
        raise EvaluatorError(f"blob '{name}' of shape {shape} holds no boxes of 4 numbers")
    return numbers // 4


def _columns_of(name: str, shape: Shape, count: int) -> int:
    numbers = math.prod(shape[1:])
    if numbers % count or not numbers:
        raise EvaluatorError(f"blob '{name}' of shape {shape} holds no scores of {count:,} boxes")
    return numbers // count


def _priors(
    settings: DetectionSettings, shapes: Mapping[str, Shape], size: tuple[int, int], blob: str | None, count: int
) -> str | tuple[Array, Array]:
    if blob is not None:
        if math.prod(shapes[blob]) != 8 * count:
            raise EvaluatorError(
                f"blob '{blob}' of shape {shapes[blob]} holds no priors (1, 2, 4 P) of {count:,} boxes"
            )
        return blob
    if not settings.sides or len(settings.sides) != len(settings.strides):
        raise EvaluatorError(
            f"offsets need priors: name their blob with 'priors' in {_TABLE}, or state 'strides' and 'sides', "
            "one stride and one list of sides for each feature map"
        )
    corners = build_priors(settings.strides, settings.sides, size)
    if len(corners) != count:
        raise EvaluatorError(
            f"'strides' and 'sides' in {_TABLE} make {len(corners):,} priors; the network has {count:,} boxes"
        )
    return corners, np.repeat(np.array(settings.variances, np.float32), 4 // len(settings.variances))


def build_priors(strides: tuple[int, ...], sides: Sides, size: tuple[int, int]) -> Array:
    """Make prior boxes: map by map, row by row, pixel by pixel, side by side.

    Parameters
    ----------
    strides : tuple of int
        Pixels; a map has the picture's size divided by it, rounded up.
    sides : Sides
        In pixels; none is larger than the picture.
    size : tuple of int
        Height and width of the picture.

    Returns
    -------
    ndarray of float32, shape (P, 4)
        Corners, in shares of the picture.

    Notes
    -----
    **Shapes**: strides 8, 16, 32, 64 with 3, 2, 2, 3 sides in 240x320 make 4,420 priors.
    **Source**: SSD's PriorBox without a stated step, and `box_utils.py` of Ultra-Light-Fast-Generic-Face-Detector.
    """
    parts = []
    for stride, own in zip(strides, sides, strict=True):
        height, width = (-(-side // stride) for side in size)
        y, x = np.mgrid[0.5:height, 0.5:width] / np.array([height, width]).reshape(2, 1, 1)
        rows = np.empty((height, width, len(own), 4))
        rows[..., 0], rows[..., 1] = x[..., None], y[..., None]
        rows[..., 2:] = np.minimum(np.array(own) / (size[1], size[0]), 1)
        parts.append(rows.reshape(-1, 4))
    return centred(np.concatenate(parts)).astype(np.float32)


@dataclass(frozen=True)
class YoloMap:
    """A map of YOLO, (N, A * (5 + C), H, W).

    Attributes
    ----------
    anchors : ndarray of float32, shape (A, 2)
        In shares of the picture.
    step : tuple of float
        Width and height of a cell, in shares of the picture.
    """

    blob: str
    items: int | None
    anchors: Array = field(repr=False)
    step: tuple[float, float]


@dataclass(frozen=True)
class YoloMaps:
    """Maps of YOLO's versions 2, 3 and 5.

    Notes
    -----
    **Source**: darknet's `region_layer.c` and `yolo_layer.c`; `yolo.py` of ultralytics/yolov5. A score is objectness
    times the class's probability: no box with a lower objectness than `min_score` is decoded.
    """

    maps: tuple[YoloMap, ...]
    classes: int
    version: str
    activated: bool
    nms: float | None = _NMS

    @property
    def blobs(self) -> tuple[str, ...]:
        """See `Layout`."""
        return tuple(own.blob for own in self.maps)

    def read(self, blobs: Mapping[str, Array], min_score: float) -> Detections:
        """See `Layout`."""
        return join_detections(
            [self._read(own, images_first(blobs[own.blob], own.items), min_score) for own in self.maps]
        )

    def _read(self, own: YoloMap, values: Array, min_score: float) -> Detections:
        number, _, height, width = values.shape
        cells = values.reshape(number, len(own.anchors), -1, height, width)
        images, anchors, rows, columns = np.nonzero(self._shares(cells[:, :, 4]) >= min_score)
        cells = cells[images, anchors, :, rows, columns]  # (K, 5 + C)
        with np.errstate(over="ignore", invalid="ignore"):
            places, sizes = self._boxes(cells[:, :4])
            scores = self._shares(cells[:, 4:5]) * self._class_shares(cells[:, _YOLO_ROW:])
            centres = (places + np.stack([columns, rows], axis=1)) * np.array(own.step, np.float32)
            corners = centred(np.concatenate([centres, sizes * own.anchors[anchors]], axis=1))
        which, classes = np.nonzero(scores >= min_score)
        return Detections(images[which], classes, scores[which, classes], corners[which])

    def _boxes(self, values: Array) -> tuple[Array, Array]:
        """Return centres in cells from the cell's corner, and sizes in anchors, both (K, 2)."""
        if self.version == "v5":
            shares = self._shares(values)
            return 2 * shares[:, :2] - np.float32(0.5), np.square(2 * shares[:, 2:])
        return self._shares(values[:, :2]), np.exp(values[:, 2:])

    def _class_shares(self, values: Array) -> Array:
        if not values.shape[1]:
            return np.ones((len(values), 1), np.float32)
        if self.version != "v2" or self.activated:
            return self._shares(values)
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _shares(self, values: Array) -> Array:
        return values if self.activated else _sigmoid(values)


def _sigmoid(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)), np.float32)


@dataclass(frozen=True)
class YoloRows:
    """Rows (centre x, y, width, height, objectness, classes), (N, P, 5 + C), as version 5 exports them."""

    blobs: tuple[str, ...]
    items: Items
    classes: int
    unit: Array = field(repr=False)
    nms: float | None = _NMS

    def read(self, blobs: Mapping[str, Array], min_score: float) -> Detections:
        """See `Layout`."""
        width = _YOLO_ROW + self.classes
        parts = [images_first(blobs[name], axis) for name, axis in zip(self.blobs, self.items, strict=True)]
        rows = np.concatenate([part.reshape(len(part), -1, part.shape[-1]) for part in parts], axis=1)
        images, places = np.nonzero(rows[..., 4] >= min_score)
        rows = rows[images, places]
        scores = rows[:, 4:5] * rows[:, _YOLO_ROW:width] if rows.shape[1] > _YOLO_ROW else rows[:, 4:5]
        which, classes = np.nonzero(scores >= min_score)
        return Detections(images[which], classes, scores[which, classes], centred(rows[which, :4] / self.unit))


def _yolo(settings: DetectionSettings, network: _Network) -> YoloMaps | YoloRows:
    names, size = _checked(settings.outputs, network.shapes) or network.graph.outputs, network.size
    shapes = dict(zip(names, network.of_pictures(names), strict=True))
    items = network.items(names)
    if settings.version == "rows":
        widths = {shapes[name][-1] for name in names if len(shapes[name]) in (3, 4)}
        if len(widths) != 1 or min(widths) < _YOLO_ROW or any(len(shapes[name]) not in (3, 4) for name in names):
            raise _wrong_yolo("(N, boxes, 5 + classes)", names, shapes)
        return YoloRows(names, items, max(1, widths.pop() - _YOLO_ROW), _unit(settings.box_unit != "shares", size))
    if len(settings.anchors) != len(names):
        raise EvaluatorError(
            f"layout 'yolo' needs 'anchors' in {_TABLE}, a list of [width, height] for each of {len(names)} outputs "
            f"({', '.join(names)}); there are {len(settings.anchors)}"
        )
    if settings.strides and len(settings.strides) != len(names):
        raise EvaluatorError(f"'strides' in {_TABLE} must be one for each of {len(names)} outputs, or be left out")
    classes, maps = set(), []
    for number, (name, anchors) in enumerate(zip(names, settings.anchors, strict=True)):
        shape = shapes[name]
        if len(shape) != 4 or shape[1] % len(anchors) or shape[1] // len(anchors) < _YOLO_ROW:
            raise _wrong_yolo(f"(N, {len(anchors)} * (5 + classes), height, width)", (name,), shapes)
        classes.add(shape[1] // len(anchors) - _YOLO_ROW)
        steps = (settings.strides[number],) * 2 if settings.strides else (size[1] / shape[3], size[0] / shape[2])
        step = (steps[0] / size[1], steps[1] / size[0])
        maps.append(
            YoloMap(name, items[number], np.array(anchors, np.float32) / np.array((size[1], size[0]), np.float32), step)
        )
    if len(classes) != 1:
        raise EvaluatorError(f"the outputs {', '.join(names)} have different numbers of classes with these 'anchors'")
    return YoloMaps(tuple(maps), max(1, classes.pop()), settings.version, settings.activated)


def _wrong_yolo(wanted: str, names: tuple[str, ...], shapes: Mapping[str, Shape]) -> EvaluatorError:
    have = ", ".join(f"{name} {shapes[name]}" for name in names)
    return EvaluatorError(
        f"layout 'yolo' needs outputs of shape {wanted}; there are {have}. Say which with {_TABLE}.outputs"
    )
