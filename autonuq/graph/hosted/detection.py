"""SSD's DetectionOutput and R-FCN's PSROIPooling.

Source: `detection_output_layer.cpp` and `bbox_util.cpp` of weiliu89/caffe (branch ssd); `psroi_pooling_layer.cu` of
daijifeng001/caffe-rfcn. All arithmetic is float32 as there, but for sums over regions, which are float64.

Notation: N items, P priors, C classes, L boxes a prior (1 or C), K boxes that are kept; a box is (x1, y1, x2, y2).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from autonuq.graph import caffe_pb2
from autonuq.graph.hosted.registry import HostLayer, runs_on_host
from autonuq.graph.model import Array, Layer
from autonuq.graph.shapes.detectors import detection_classes

_CODES = caffe_pb2.PriorBoxParameter
_LOWEST = float(np.finfo(np.float32).min)
_FAKE = -1.0  # what SSD writes for an item without any box


@runs_on_host("DetectionOutput")
def _detection_output(layer: Layer) -> HostLayer:
    return partial(_detections, layer)


def _detections(layer: Layer, location: Array, confidence: Array, priors: Array, *_: Array) -> list[Array]:
    """Return rows (item, class, confidence, x1, y1, x2, y2), shape (1, 1, K, 7): item by item, class by class.

    Without a single box there is one row an item, of -1 behind its number.
    """
    message = layer.message.detection_output_param
    classes, kinds = detection_classes(layer)
    number, count = len(location), priors.shape[2] // 4
    prior, *variance = priors[0].reshape(-1, count, 1, 4)
    moved = location.reshape(number, count, kinds, 4)
    scores = confidence.reshape(number, count, classes)
    with np.errstate(over="ignore", invalid="ignore"):  # a box may be infinite, and overlap nothing
        if not message.variance_encoded_in_target:
            moved = moved * variance[0]
        boxes = decode_boxes(moved, prior, message)
        rows = [_rows(message, item, boxes[item], scores[item]) for item in range(number)]
    found = np.concatenate(rows)
    if not len(found):
        found = np.full((number, 7), _FAKE, np.float32)
        found[:, 0] = np.arange(number)
    return [found[None, None]]


def decode_boxes(moved: Array, prior: Array, message: caffe_pb2.DetectionOutputParameter) -> Array:
    """Turn predicted offsets into boxes.

    Parameters
    ----------
    moved : ndarray of float32, shape (N, P, L, 4)
        Variances are multiplied in.
    prior : ndarray of float32, shape (P, 1, 4)

    Returns
    -------
    ndarray of float32, shape (N, P, L, 4)
    """
    if message.code_type == _CODES.CORNER:
        return prior + moved
    size = prior[..., 2:] - prior[..., :2]
    if message.code_type == _CODES.CORNER_SIZE:
        corners: Array = prior + moved * np.concatenate([size, size], axis=-1)
        return corners
    centre = moved[..., :2] * size + (prior[..., :2] + prior[..., 2:]) / 2
    half = np.exp(moved[..., 2:]) * size / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def _rows(message: caffe_pb2.DetectionOutputParameter, item: int, boxes: Array, scores: Array) -> Array:
    """Return the rows of one item; boxes (P, L, 4), scores (P, C)."""
    threshold = message.confidence_threshold if message.HasField("confidence_threshold") else _LOWEST
    top_k = message.nms_param.top_k if message.nms_param.HasField("top_k") else -1
    labels: list[Array] = []
    indices: list[Array] = []
    for each in range(scores.shape[1]):
        if each != message.background_label_id:
            own = boxes[:, 0 if message.share_location else each]
            kept = suppress(own, scores[:, each], threshold, top_k, message.nms_param)
            labels.append(np.full_like(kept, each))
            indices.append(kept)
    if not labels:
        return np.empty((0, 7), np.float32)
    label, index = np.concatenate(labels), np.concatenate(indices)
    if -1 < message.keep_top_k < len(index):
        best = np.argsort(-scores[index, label], kind="stable")[: message.keep_top_k]
        best = best[np.argsort(label[best], kind="stable")]
        label, index = label[best], index[best]
    rows = np.empty((len(index), 7), np.float32)
    rows[:, 0], rows[:, 1], rows[:, 2] = item, label, scores[index, label]
    rows[:, 3:] = boxes[index, 0 if message.share_location else label]
    return rows


def suppress(
    boxes: Array, scores: Array, threshold: float, top_k: int, message: caffe_pb2.NonMaximumSuppressionParameter
) -> Array:
    """Non-maximum suppression of one class.

    Parameters
    ----------
    boxes : ndarray of float32, shape (P, 4)
    scores : ndarray of float32, shape (P,)
    threshold : float
        Only scores above it count.
    top_k : int
        So many of the best are looked at; -1 for all.

    Returns
    -------
    ndarray of int64, shape (K,)
        Indices of the boxes that stay, best first.

    Notes
    -----
    A box stays if it overlaps none of those that stay already by more than the limit, which falls by `eta` after each
    of them while it is above 0.5.
    **Cost**: one pass over the candidates for each box that stays.
    """
    candidates = np.flatnonzero(scores > np.float32(threshold))
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    candidates = candidates[: top_k if top_k > -1 else None]
    corners = np.ascontiguousarray(boxes[candidates].T)  # x1, y1, x2, y2
    areas = _areas(corners)
    overlap = np.zeros(len(candidates), np.float32)  # the largest one with a box that stays
    limit, kept, place = np.float32(message.nms_threshold), [], 0
    while place < len(candidates):
        kept.append(candidates[place])
        found = jaccard(corners[:, place], areas[place], corners[:, place + 1 :], areas[place + 1 :])
        place += 1
        np.maximum(overlap[place:], found, out=overlap[place:])
        if message.eta < 1 and limit > 0.5:
            limit *= np.float32(message.eta)
        free = overlap[place:] <= limit
        place += int(free.argmax()) if free.any() else len(free)
    return np.array(kept, np.int64)


def jaccard(box: Array, area: Array, others: Array, areas: Array) -> Array:
    """Return intersection over union of a box, shape (4,), with others, shape (4, K)."""
    width = np.minimum(box[2], others[2]) - np.maximum(box[0], others[0])
    height = np.minimum(box[3], others[3]) - np.maximum(box[1], others[1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = area + areas - shared
    return np.asarray(shared / np.where(shared > 0, union, 1))


def _areas(corners: Array) -> Array:
    """Boxes inside out have none."""
    width, height = corners[2:] - corners[:2]
    return np.where((width < 0) | (height < 0), np.float32(0), width * height)


@runs_on_host("PSROIPooling")
def _psroi_pooling(layer: Layer) -> HostLayer:
    return partial(_pooled_regions, layer)


def _pooled_regions(layer: Layer, image: Array, regions: Array) -> list[Array]:
    """Average each bin of each region over a channel of its own.

    Parameters
    ----------
    image : ndarray of float32, shape (N, D * G * G, H, W)
    regions : ndarray of float32, shape (R, 5)
        Item, x1, y1, x2, y2 in pixels of the network's input.

    Returns
    -------
    list of one ndarray of float32, shape (R, D, G, G)

    Notes
    -----
    **Cost**: one running sum over the image, then four look-ups for each result.
    """
    message = layer.message.psroi_pooling_param
    group, depth, scale = message.group_size, message.output_dim, np.float32(message.spatial_scale)
    number, _, height, width = image.shape
    regions = regions.reshape(-1, 5)
    items = regions[:, 0].astype(np.int64)
    if len(items) and not 0 <= items.min() <= items.max() < number:
        raise ValueError(f"a region belongs to item {items.min()} or {items.max()}, but there are {number}")
    sums = np.zeros((number, depth, group, group, height + 1, width + 1))
    planes = image.reshape(number, depth, group, group, height, width)
    np.cumsum(np.cumsum(planes, axis=-2, dtype=np.float64), axis=-1, out=sums[..., 1:, 1:])
    left, right = _bins(regions[:, 1], regions[:, 3], scale, group, width)
    upper, lower = _bins(regions[:, 2], regions[:, 4], scale, group, height)
    n, d = items[:, None, None, None], np.arange(depth)[:, None, None]
    gh, gw = np.arange(group)[:, None], np.arange(group)
    top, bottom = (rows[:, None, :, None] for rows in (upper, lower))
    start, end = (columns[:, None, None, :] for columns in (left, right))
    total = (
        sums[n, d, gh, gw, bottom, end] - sums[n, d, gh, gw, top, end]
        - sums[n, d, gh, gw, bottom, start] + sums[n, d, gh, gw, top, start]
    )  # fmt: skip
    area = (bottom - top) * (end - start)
    empty = (bottom <= top) | (end <= start)
    return [np.where(empty, 0, total / np.where(empty, 1, area)).astype(np.float32)]


def _bins(first: Array, last: Array, scale: np.float32, group: int, size: int) -> tuple[Array, Array]:
    """Return where each of the bins along one axis begins and ends, both of shape (R, G)."""
    begin, end = c_round(first) * scale, (c_round(last) + np.float32(1)) * scale
    step = np.maximum(end - begin, np.float32(0.1)) / np.float32(group)
    place = np.arange(group + 1, dtype=np.float32) * step[:, None] + begin[:, None]
    return (
        np.floor(place[:, :-1]).clip(0, size).astype(np.int64),
        np.ceil(place[:, 1:]).clip(0, size).astype(np.int64),
    )


def c_round(values: Array) -> Array:
    """C's round: halves away from zero."""
    wide = values.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(np.float32)
