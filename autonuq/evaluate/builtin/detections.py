"""Detectors: mean average precision against the original network's own detections, or against labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.annotations import Annotations, load_objects, open_annotations, place_objects
from autonuq.evaluate.builtin.boxes import Detections, DetectionSettings, Objects, have_area, select_detections
from autonuq.evaluate.builtin.counting import COCO_OVERLAPS, class_precisions, coco_precisions, require_pycocotools
from autonuq.evaluate.builtin.images import ImageEvaluator, find_entrance
from autonuq.evaluate.builtin.layouts import Layout, find_layout
from autonuq.evaluate.builtin.precision import MeanPrecision, mean_precision
from autonuq.evaluate.builtin.settings import BuiltinSettings, Drop
from autonuq.evaluate.builtin.sources import Images, Part, open_images
from autonuq.evaluate.builtin.transform import place
from autonuq.evaluate.samples import Score
from autonuq.graph.model import Array, Graph

_IOU = 0.5
_MIN_SCORE = 0.05  # with labels; where the original network's detections are the labels, half of their threshold
_LARGEST_SCORE = 1.001  # of a probability in float32


@dataclass(frozen=True)
class DetectionEnds:
    """Where pictures go into a detector, and how its outputs are read."""

    input: str
    shape: tuple[int, int, int, int]
    layout: Layout

    @property
    def outputs(self) -> tuple[str, ...]:
        """Blobs that are looked at."""
        return self.layout.blobs


class Seen(NamedTuple):
    """Detections of one picture, or of the pictures between `starts`, best first; see `Detections`."""

    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: Array
    boxes: Array

    def pictures(self) -> Iterator[Seen]:
        """Yield the detections of each picture."""
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            own = slice(start, stop)
            yield Seen(self.starts[:0], self.classes[own], self.scores[own], self.boxes[own])


def join_pictures(pictures: Sequence[Seen]) -> Detections:
    """Return the detections of pictures, numbered from 0."""
    images = np.repeat(np.arange(len(pictures)), [len(own.scores) for own in pictures])
    return Detections(images, *(np.concatenate([own[field] for own in pictures]) for field in (1, 2, 3)))


class DetectionEvaluator(ImageEvaluator):
    """What both kinds have in common: they read detections."""

    keys: ClassVar[tuple[str, ...]] = ("drop", "detections")
    ends: DetectionEnds

    @classmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> DetectionEnds:
        """See `ImageEvaluator`."""
        entrance = find_entrance(graph, settings)
        layout = find_layout(settings.detections, graph, entrance.shapes, entrance.input)
        return DetectionEnds(entrance.input, entrance.shape, layout)

    @property
    def how(self) -> DetectionSettings:
        """How detections are read and counted."""
        return self.settings.detections

    @property
    def least_score(self) -> float:
        """Detections below it are not looked at."""
        return _MIN_SCORE if self.how.min_score is None else self.how.min_score

    def count_objects(self, batch_num: int) -> int:
        """Return how many objects there are to be found in the first batches, before anything is scored."""
        raise NotImplementedError

    def doubt(self, found: Sequence[Seen]) -> str:
        """See `ImageEvaluator`: nothing detected, or as much as there may be everywhere."""
        self.truth(found)
        count = sum(len(batch.starts) - 1 for batch in found)
        objects = [int((picture.scores >= self.how.threshold).sum()) for batch in found for picture in batch.pictures()]
        if not any(objects):
            return f"the original network detects nothing in {count} pictures (score from {self.how.threshold:g} on)"
        if min(objects) >= self.how.max_boxes:
            return f"the original network detects {self.how.max_boxes} objects or more in each of {count} pictures"
        return ""

    @property
    def limit(self) -> str:
        """See `ImageEvaluator`; with how detections are read and counted."""
        return f"{self.drop} {replace(self.how, annotations=None)}"

    def truth(self, seen: Sequence[Seen]) -> Detections:
        """Return the original network's detections that are objects.

        Raises
        ------
        EvaluatorError
            They can be no detections: scores above 1, or boxes most of which are inside out or elsewhere.
        """
        found, blobs = join_pictures(seen), ", ".join(self.ends.outputs)
        found = found[found.scores >= np.float32(self.how.threshold)]
        if len(found) and found.scores.max() > _LARGEST_SCORE:
            raise EvaluatorError(
                f"scores in {blobs} reach {found.scores.max():g}: they are no probabilities. Take the blob behind the "
                "softmax or sigmoid, or say in [evaluator.detections] how they are to be read"
            )
        own = found[have_area(found.boxes)]
        if 2 * len(own) < len(found):
            raise EvaluatorError(
                f"{len(found) - len(own):,} of {len(found):,} boxes that the original network finds have no area in "
                f"the picture: say in [evaluator.detections] how {blobs} are to be read (box_format, box_unit, priors)"
            )
        return own

    def keep(self, outputs: Mapping[str, Array], count: int) -> Seen:
        """See `ImageEvaluator`."""
        found = select_detections(
            self.ends.layout.read(outputs, self.least_score),
            min_score=self.least_score,
            nms=self.ends.layout.nms if self.how.nms is None else self.how.nms,
            max_boxes=self.how.max_boxes,
            count=count,
        )
        return Seen(np.searchsorted(found.images, np.arange(count + 1)), found.classes, found.scores, found.boxes)


class DetectionAgreement(DetectionEvaluator):
    """Mean average precision of a network's detections, with those of the original network as the truth."""

    compares = True
    drop_unsaid = Drop(5.0)

    @property
    def least_score(self) -> float:
        """See `DetectionEvaluator`."""
        return self.how.threshold / 2 if self.how.min_score is None else self.how.min_score

    def count_objects(self, batch_num: int) -> int:
        """See `DetectionEvaluator`."""
        size, count = self.ends.shape[0], len(self.scored.names)
        batches = [(start, min(start + size, count)) for start in range(0, min(batch_num * size, count), size)]
        return len(self.truth([Seen(*self.of_original(*batch)) for batch in batches]))

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        return (
            f"mean average precision (IoU {self.how.iou or _IOU:g}) against the original network's own detections of a "
            f"score from {self.how.threshold:g} on, no labels; {self.drop.say()}"
        )

    def compare(self, found: Seen, original: Seen, start: int) -> list[tuple[Seen, Seen]]:
        """See `ImageEvaluator`: what either network sees in each picture."""
        return list(zip(Seen(*found).pictures(), Seen(*original).pictures(), strict=True))

    def score(self, things: Sequence[tuple[Seen, Seen]]) -> Score:
        """See `ImageEvaluator`."""
        found, truth = join_pictures([own for own, _ in things]), self.truth([own for _, own in things])
        found = found[have_area(found.boxes)]
        is_all = len(things) == min(self.evaluate_batch_num * self.ends.shape[0], len(self.scored.names))
        if not len(truth):
            if is_all:
                raise EvaluatorError(
                    f"the original network detects nothing in {len(things)} pictures with a score from "
                    f"{self.how.threshold:g} on: see whether [evaluator.transform] is what the network was trained "
                    "with, take pictures of what it detects, or lower 'threshold' in [evaluator.detections]",
                    path=self.settings.data.path,
                )
            return Score(1.0, samples=np.ones(len(things)))  # a part of the pictures, in which there is nothing to lose
        wanted = Objects(truth.images, truth.classes, truth.boxes, np.zeros(len(truth), bool))
        return as_score(mean_precision(class_precisions(found, wanted, len(things), self.how.iou or _IOU)))


class LabelledPrecision(DetectionEvaluator):
    """Mean average precision against labels: COCO's for a COCO file, PASCAL VOC's for XML files."""

    keys = (*DetectionEvaluator.keys, "annotations")
    _objects: Objects

    @classmethod
    def open_scored(cls, settings: BuiltinSettings, part: Part) -> Images:
        """See `ImageEvaluator`: the pictures that have labels, if only that they show nothing."""
        return open_images(settings.data, part, labelled=False, names=_annotations(settings))

    def check_data(self) -> None:
        """Read the labels."""
        if self.is_coco:
            require_pycocotools()
        annotations, classes = _annotations(self.settings), self.ends.layout.classes
        self._objects = load_objects(annotations, self.scored.names, self.how.classes, classes)

    @property
    def is_coco(self) -> bool:
        """Whether the labels are COCO's."""
        return self.how.annotations is not None and not self.how.annotations.is_dir()

    def count_objects(self, batch_num: int) -> int:
        """See `DetectionEvaluator`."""
        return int((~self._objects.first(batch_num * self.ends.shape[0]).ignored).sum())

    def label_digests(self) -> dict[str, str]:
        """See `ImageEvaluator`: of the objects that the network is to find."""
        digest, own = hashlib.sha256(), self._objects
        for array in (own.images, own.classes, own.boxes, own.ignored):
            digest.update(array.tobytes())
        return {str(self.how.annotations and self.how.annotations.name): digest.hexdigest()}

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        overlap = f"{self.how.iou or _IOU:g}" if self.how.iou or not self.is_coco else "0.5 to 0.95"
        counted = "as pycocotools counts COCO's" if self.is_coco else "PASCAL VOC's, the area under the curve"
        objects = self.count_objects(self.evaluate_batch_num)
        return (
            f"mean average precision (IoU {overlap}, {counted}) against {objects} labelled objects; {self.drop.say()}"
        )

    def compare(self, found: Seen, original: None, start: int) -> list[Seen]:
        """See `ImageEvaluator`: what is seen in each picture."""
        return list(Seen(*found).pictures())

    def score(self, things: Sequence[Seen]) -> Score:
        """See `ImageEvaluator`."""
        count, wanted = len(things), self._placed(len(things))
        if not (~wanted.ignored).any():
            if count == len(self.scored.names):
                raise EvaluatorError("no labelled object is in what the network sees of the pictures")
            return Score(1.0, samples=np.ones(count))  # a part of the pictures, in which nothing can be missed
        found = join_pictures(things)
        if self.is_coco:
            overlaps = COCO_OVERLAPS if self.how.iou is None else (self.how.iou,)
            return as_score(mean_precision(coco_precisions(found, wanted, count, overlaps), at_recalls=True))
        return as_score(mean_precision(class_precisions(found, wanted, count, self.how.iou or _IOU)))

    def _placed(self, count: int) -> Objects:
        """Return the objects of the first pictures where the network sees them."""
        places = np.empty((count, 4))
        for row, (height, width) in zip(places, self.sizes[:count].tolist(), strict=True):
            own = place(self.settings.transform, (height, width))
            row[:] = own.resized[1] / width, own.resized[0] / height, -own.start[1], -own.start[0]
        return place_objects(self._objects.first(count), places, self.ends.shape[2:])


def _annotations(settings: BuiltinSettings) -> Annotations:
    if settings.detections.annotations is None:
        raise EvaluatorError("kind 'map' needs labels; say where with 'annotations' in [evaluator.detections]")
    return open_annotations(settings.detections.annotations, settings.data.kind)


def as_score(mean: MeanPrecision) -> Score:
    """Return a metric with what each picture contributes."""
    return Score(mean.value, samples=mean.samples)
