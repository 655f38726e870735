"""Boxes that a network finds: suppression, overlap, and which of them are the objects that are there.

Notation: K detections, L objects. A box is (x1, y1, x2, y2) in shares of the network's input picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autonuq.graph.model import Array

_CANDIDATES = 1_000  # boxes of a picture that are compared with each other, the best; mmdetection's `nms_pre`

Sides = tuple[tuple[tuple[float, float], ...], ...]
"""Width and height of boxes in pixels, a row for each feature map."""


@dataclass(frozen=True)
class DetectionSettings:
    """How detections are read from a network's outputs, and when one is an object; a table of the study file.

    Attributes
    ----------
    layout : {"ssd", "pairs", "yolo"} or None
        Rows of a DetectionOutput; boxes and scores apart; YOLO's maps or rows. None: told from the network.
    outputs : tuple of str
        Blobs of ssd (one) or yolo (in the order of `anchors`); empty: the network's outputs.
    threshold : float
        Score from which on a detection of the original network is an object. Labels need none.
    min_score : float or None
        Detections with lower scores are not looked at. None: half of the threshold; with labels 0.05.
    iou : float or None
        Overlap from which on two boxes are one object. None: 0.5; with COCO's labels the mean over 0.5 to 0.95.
    nms : float or None
        Overlap above which the lower one of two boxes of a class is dropped. None: 0.45, or none where the network
        itself has done it (ssd).
    max_boxes : int
        Of a picture, the best.
    background : {"first", "none"} or None
        Whether class 0 is none. None: as the DetectionOutput says; first where pairs have several scores a box.
    classes : tuple of str
        Names of the classes in the network's order, without background.
    annotations : Path or None
        Labels: a folder of VOC's XML files, or a COCO JSON file.
    boxes, scores : tuple of str
        Blobs of pairs; empty: told from their shapes.
    box_format : {"corners", "centre", "offsets"} or None
        Of pairs. None: offsets where there are priors, else corners.
    box_unit : {"shares", "pixels"} or None
        None: pixels for YOLO's rows, else shares.
    priors : str or None
        Blob of a PriorBox; None: the network's only one that is not consumed by a DetectionOutput, or stated ones.
    strides : tuple of int
        Pixels a step of each feature map.
    sides : Sides
        Of stated priors.
    variances : tuple of float
        Two (centre, size) or four, of stated priors.
    version : {"v2", "v3", "v5", "rows"}
        Of YOLO.
    anchors : Sides
        Of YOLO's maps.
    activated : bool
        YOLO's maps have been through sigmoid (and softmax) already.
    """

    layout: Literal["ssd", "pairs", "yolo"] | None = None
    outputs: tuple[str, ...] = ()
    threshold: float = 0.5
    min_score: float | None = None
    iou: float | None = None
    nms: float | None = None
    max_boxes: int = 100
    background: Literal["first", "none"] | None = None
    classes: tuple[str, ...] = ()
    annotations: Path | None = None
    boxes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    box_format: Literal["corners", "centre", "offsets"] | None = None
    box_unit: Literal["shares", "pixels"] | None = None
    priors: str | None = None
    strides: tuple[int, ...] = ()
    sides: Sides = ()
    variances: tuple[float, ...] = (0.1, 0.2)
    version: Literal["v2", "v3", "v5", "rows"] = "v3"
    anchors: Sides = ()
    activated: bool = False


@dataclass(frozen=True)
class Detections:
    """What is found in pictures, picture by picture, best first.

    Attributes
    ----------
    images, classes : ndarray of int64, shape (K,)
        Numbers of the picture and of the class.
    scores : ndarray of float32, shape (K,)
    boxes : ndarray of float32, shape (K, 4)
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: Array
    boxes: Array

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Detections:
        return Detections(self.images[which], self.classes[which], self.scores[which], self.boxes[which])


def join_detections(parts: Sequence[Detections]) -> Detections:
    """Return the detections of all parts, one part behind the other."""
    names = ("images", "classes", "scores", "boxes")
    return Detections(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Objects:
    """What is to be found.

    Attributes
    ----------
    images, classes : ndarray of int64, shape (L,)
    boxes : ndarray of float32, shape (L, 4)
    ignored : ndarray of bool, shape (L,)
        Counted neither way: to find it is no success, and to miss it no failure.
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: Array
    ignored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Objects:
        """Return those of the first `count` pictures."""
        own = self.images < count
        return Objects(self.images[own], self.classes[own], self.boxes[own], self.ignored[own])


def overlap(boxes: Array, others: Array) -> Array:
    """Return intersection over union.

    Parameters
    ----------
    boxes, others : ndarray of float, shape (..., 4)
        Shapes that broadcast: (K, 1, 4) and (1, L, 4) for a matrix.

    Returns
    -------
    ndarray of float, shape (...)
        A box that is inside out overlaps nothing.
    """
    corner, opposite = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    sides = np.maximum(opposite - corner, 0)
    common = sides[..., 0] * sides[..., 1]
    union = _areas(boxes) + _areas(others) - common
    return np.asarray(common / np.where(common > 0, union, 1))


def _areas(boxes: Array) -> Array:
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def have_area(boxes: Array) -> NDArray[np.bool_]:
    """Say which boxes, shape (K, 4), are no points, lines or inside out, as those outside the picture are."""
    return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))


def suppress_boxes(classes: NDArray[np.int64], boxes: Array, limit: float, most: int) -> NDArray[np.int64]:
    """Non-maximum suppression in one picture, every class for itself.

    Parameters
    ----------
    classes : ndarray of int64, shape (K,)
    boxes : ndarray of float, shape (K, 4)
        Inside the picture, best first.
    limit : float
        A box that overlaps a better one which stays by more than this goes.
    most : int
        Boxes that stay at most.

    Returns
    -------
    ndarray of int64
        Places of the boxes that stay, best first.

    Notes
    -----
    Boxes of different classes are moved apart, so that all classes are done at once.
    **Cost**: one pass over the boxes behind it for each that stays.
    """
    x1, y1, x2, y2 = boxes.T + 2.0 * classes
    areas = _areas(boxes)
    free, kept, place = np.ones(len(boxes), bool), list[int](), 0
    while place < len(boxes) and len(kept) < most:
        kept.append(place)
        rest = slice(place + 1, None)
        width = np.minimum(x2[rest], x2[place]) - np.maximum(x1[rest], x1[place])
        height = np.minimum(y2[rest], y2[place]) - np.maximum(y1[rest], y1[place])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        free[rest] &= common <= limit * (areas[rest] + areas[place] - common)
        place += 1 + int(free[rest].argmax()) if free[rest].any() else len(boxes)
    return np.array(kept, np.int64)


def select_detections(
    found: Detections, *, min_score: float, nms: float | None, max_boxes: int, count: int
) -> Detections:
    """Keep what counts of the detections of `count` pictures, whatever their order.

    Parameters
    ----------
    found : Detections
        Boxes may be infinite, which end at the picture's edge; what is no number is dropped.
    min_score : float
    nms : float or None
        See `suppress_boxes`; None: no suppression.
    max_boxes : int
        Of a picture.
    count : int
        Detections of other pictures are dropped: the rest of a batch, and rows without a picture.

    Returns
    -------
    Detections
    """
    numbers = np.isfinite(found.scores) & ~np.isnan(found.boxes).any(axis=1)
    found = found[numbers & (found.scores >= np.float32(min_score)) & (found.images >= 0) & (found.images < count)]
    found = found[np.lexsort((-found.scores, found.images))]
    found = Detections(found.images, found.classes, found.scores, found.boxes.clip(0, 1))
    if nms is not None and nms < 1:
        starts = np.searchsorted(found.images, np.arange(count + 1))
        found = join_detections(
            [
                own[suppress_boxes(own.classes, own.boxes, nms, max_boxes)]
                for start, stop in zip(starts[:-1], starts[1:], strict=True)
                for own in [found[start : min(stop, start + _CANDIDATES)]]
            ]
        )
    place = np.arange(len(found)) - np.searchsorted(found.images, found.images)
    return found[place < max_boxes]


@dataclass(frozen=True)
class Matches:
    """Which detections are objects.

    Attributes
    ----------
    right : ndarray of bool, shape (K,)
        It is an object that none before it is.
    ignored : ndarray of bool, shape (K,)
        It is one that does not count.
    """

    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


def match(found: Detections, wanted: Objects, iou: float) -> Matches:
    """Match detections with objects of the same picture and class, each object with one detection at most.

    Notes
    -----
    **Source**: PASCAL VOC's and COCO's rule: detections choose by falling score, among the objects that are free and
    overlap by `iou` at least, the one that overlaps most; as in COCO an object that counts comes before one that does
    not, and one that does not count may be taken many times. Equal scores choose by falling overlap.
    A choice is final if it is the first of all that concern its detection, and of all that concern its object; all such
    are made at once, what they settle is struck out, and so on.
    **Cost**: the pairs within a picture and class; rounds: the longest chain of objects that are wanted twice.
    """
    detection, target, shared = _pairs(found, wanted)
    close = shared >= iou
    detection, target, shared = detection[close], target[close], shared[close]
    order = np.lexsort((-shared, -found.scores[detection]))
    detection, target = detection[order], target[order]
    counts = ~wanted.ignored[target]
    right = _greedy(detection[counts], target[counts], len(found))
    ignored = np.zeros(len(found), bool)
    ignored[detection[~counts]] = True
    return Matches(right, ignored & ~right)


def _pairs(found: Detections, wanted: Objects) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return number of detection, number of object and overlap of all pairs of one picture and class."""
    classes = 1 + max(found.classes.max(initial=0), wanted.classes.max(initial=0))
    own, theirs = found.images * classes + found.classes, wanted.images * classes + wanted.classes
    order = np.argsort(theirs, kind="stable")
    start, stop = (np.searchsorted(theirs[order], own, side) for side in ("left", "right"))
    many = stop - start
    detection = np.repeat(np.arange(len(found)), many)
    place = np.arange(len(detection)) - np.repeat(np.cumsum(many) - many, many)
    target = order[np.repeat(start, many) + place]
    shared = overlap(found.boxes[detection].astype(np.float64), wanted.boxes[target].astype(np.float64))
    return detection, target, shared


def _greedy(detection: NDArray[np.int64], target: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Take pairs in their order, each detection and each object once; return which detections are taken.

    What comes first of all pairs that concern its detection, and of all that concern its object, is final.
    """
    right = np.zeros(count, bool)
    while len(detection):
        first = np.zeros(len(detection), np.int8)
        for side in (detection, target):
            first[np.unique(side, return_index=True)[1]] += 1
        final = first == 2
        right[detection[final]] = True
        open_ = ~np.isin(detection, detection[final]) & ~np.isin(target, target[final])
        detection, target = detection[open_], target[open_]
    return right
