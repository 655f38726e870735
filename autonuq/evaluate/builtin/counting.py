"""Average precisions of detections: by our own matching, or as pycocotools counts."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.boxes import Detections, Objects, match
from autonuq.evaluate.builtin.precision import Precision, rank_precision

COCO_OVERLAPS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's metric is the mean over these."""


def class_precisions(found: Detections, wanted: Objects, count: int, iou: float) -> list[Precision]:
    """Return the average precision of every class that has an object.

    Parameters
    ----------
    found : Detections
    wanted : Objects
    count : int
        Pictures; those without objects or detections count, too.
    iou : float
        See `match`.
    """
    matches = match(found, wanted, iou)
    kept, right = found[~matches.ignored], matches.right[~matches.ignored]
    counted = ~wanted.ignored
    precisions = []
    for each in np.unique(wanted.classes[counted]):
        own = kept.classes == each
        objects = np.bincount(wanted.images[counted & (wanted.classes == each)], minlength=count)
        precisions.append(rank_precision(kept.scores[own], right[own], kept.images[own], objects))
    return precisions


def coco_precisions(
    found: Detections, wanted: Objects, count: int, overlaps: Sequence[float] = COCO_OVERLAPS
) -> list[Precision]:
    """Return the average precision of every overlap and class that has an object, as pycocotools matches them.

    Raises
    ------
    EvaluatorError
        pycocotools is not installed.

    Notes
    -----
    Overlaps are shares, which are the same in the network's picture as in the original one. The precisions are made of
    `COCOeval.evalImgs` as `COCOeval.accumulate` makes them; that knows nothing of single pictures.
    """
    evaluation = _evaluated(found, wanted, count, overlaps)
    numbers = np.unique(wanted.classes)
    rows = [evaluation.evalImgs[start : start + count] for start in range(0, len(numbers) * count, count)]
    return [precision for own in rows for precision in _class_precisions(own, len(overlaps))]


def _evaluated(found: Detections, wanted: Objects, count: int, overlaps: Sequence[float]) -> Any:
    require_pycocotools()
    coco = importlib.import_module("pycocotools.coco")
    evaluation = importlib.import_module("pycocotools.cocoeval")
    numbers = np.unique(wanted.classes).tolist()
    own = found[np.isin(found.classes, numbers)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        truth = _dataset(coco.COCO(), wanted, numbers, count, iscrowd=wanted.ignored.astype(int).tolist())
        results = _dataset(coco.COCO(), own, numbers, count, score=own.scores.tolist())
        made = evaluation.COCOeval(truth, results, "bbox")
        made.params.iouThrs = np.array(overlaps)
        made.params.areaRng, made.params.areaRngLbl = [[0, 1e10]], ["all"]
        made.params.maxDets = [max(1, len(own))]  # how many of a picture count is settled already
        made.evaluate()
    return made


def _dataset(empty: Any, boxes: Detections | Objects, numbers: list[int], count: int, **more: list[Any]) -> Any:
    """Fill a `COCO`; its objects are numbered from 1, as 0 means no match in there."""
    corners = boxes.boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    rows = zip(
        boxes.images.tolist(),
        boxes.classes.tolist(),
        np.hstack([corners[:, :2], sides]).tolist(),
        sides.prod(axis=1).tolist(),
        *more.values(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", *more)
    empty.dataset = {
        "images": [{"id": image} for image in range(count)],
        "categories": [{"id": number} for number in numbers],
        "annotations": [{"id": place, **dict(zip(keys, row, strict=True))} for place, row in enumerate(rows, 1)],
    }
    empty.createIndex()
    return empty


def _class_precisions(pictures: Sequence[Any], overlaps: int) -> list[Precision]:
    """Return the precision of a class at each overlap; none where it has no object that counts."""
    objects = np.array([0 if own is None else int(np.sum(own["gtIgnore"] == 0)) for own in pictures])
    if not objects.sum():
        return []
    filled = [(place, own) for place, own in enumerate(pictures) if own is not None]
    scores = np.concatenate([np.array(own["dtScores"], np.float64) for _, own in filled])
    images = np.concatenate([np.full(len(own["dtScores"]), place) for place, own in filled])
    matched: NDArray[Any] = np.concatenate([own["dtMatches"] for _, own in filled], axis=1) > 0
    counts: NDArray[Any] = np.concatenate([own["dtIgnore"] for _, own in filled], axis=1) == 0
    return [
        rank_precision(scores[counts[row]], matched[row][counts[row]], images[counts[row]], objects)
        for row in range(overlaps)
    ]


def require_pycocotools() -> None:
    """Refuse to go on without pycocotools.

    Raises
    ------
    EvaluatorError
        It is not installed.
    """
    try:
        importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise EvaluatorError("counting as COCO does needs a package: pip install 'autonuq[coco]'") from error
