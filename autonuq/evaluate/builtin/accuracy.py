"""Top-1 and top-5 accuracy over labelled images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.sources import DataSettings, LabelledImages, Part, open_images
from autonuq.evaluate.builtin.transform import Transform, TransformSettings
from autonuq.evaluate.evaluator import Evaluator, changed_data
from autonuq.evaluate.samples import Score
from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.graph.model import TEST, Array, Graph, Shape
from autonuq.runtime.net import Net

KINDS: Mapping[str, int] = MappingProxyType({"top1": 1, "top5": 5})
"""Names of the evaluators, and how many of the largest scores may hold the label."""

_KEPT_BYTES = 1 << 29  # transformed images that are kept between trials


@dataclass(frozen=True)
class Drop:
    """How much of the metric may be lost.

    Attributes
    ----------
    limit : float
        Exclusive: less may be lost; of 0 nothing may.
    unit : {"points", "%"}
        Percentage points of the metric, or per cent of the original metric.
    """

    limit: float = 1.0
    unit: Literal["points", "%"] = "points"

    def allows(self, original: float, new: float) -> bool:
        """Say whether a fall from `original` to `new` is within the limit; counts are compared, not their rounding."""
        lost = 100 * (original - new)
        if self.unit == "%":
            lost /= original or 1.0
        lost = round(lost, 9)
        return lost < self.limit or lost <= 0

    def __str__(self) -> str:
        return f"{self.limit:g} {self.unit}"


def parse_drop(value: float | str) -> Drop:
    """Read `1.5` (points) or `"1.5 %"` (of the original metric).

    Raises
    ------
    ValueError
        It is neither.
    """
    text, unit = (value.strip(), "%") if isinstance(value, str) else (str(value), "points")
    if isinstance(value, str):
        if not text.endswith("%"):
            raise ValueError(value)
        text = text.removesuffix("%")
    limit = float(text)
    if not 0 <= limit < math.inf:
        raise ValueError(value)
    return Drop(limit, "%" if unit == "%" else "points")


@dataclass(frozen=True)
class AccuracySettings:
    """What a study file says about a built-in evaluator.

    Attributes
    ----------
    kind : str
        Key of `KINDS`.
    data : DataSettings
        Images that are scored.
    calibration : DataSettings
        Images that calibrate.
    transform : TransformSettings
    drop : Drop
    evaluate_batch_num : int or None
        Batches of a scoring pass; None: all images.
    batch_size : int or None
        Images of a batch; None: as the prototxt has it.
    input, output : str or None
        Blobs; None: the only one.
    part : {"all", "search", "held back"}
        Of the images in `data`; see `sources.part_of`.
    """

    kind: str
    data: DataSettings
    calibration: DataSettings
    transform: TransformSettings = TransformSettings()
    drop: Drop = Drop()
    evaluate_batch_num: int | None = None
    batch_size: int | None = None
    input: str | None = None
    output: str | None = None
    part: Part = "all"


@dataclass(frozen=True)
class Ends:
    """Where images go into a network and class scores come out.

    Attributes
    ----------
    input, output : str
        Blobs.
    shape : tuple of int
        (batch, channels, height, width) of the input.
    classes : int
    """

    input: str
    output: str
    shape: tuple[int, int, int, int]
    classes: int


def make_accuracy(settings: AccuracySettings, model_file: str | Path) -> Accuracy | None:
    """Make the evaluator for a network; None of a held-back part that would have too few images.

    Raises
    ------
    EvaluatorError
        The data cannot be read or do not fit the network.
    ModelError
        The prototxt cannot be read.
    """
    ends = find_ends(load_graph(model_file), settings)
    if settings.part == "held back" and not len(open_images(settings.data, settings.part).labels):
        return None
    return Accuracy(settings, ends)


def find_ends(graph: Graph, settings: AccuracySettings) -> Ends:
    """Find the blobs that an accuracy is measured at.

    Raises
    ------
    EvaluatorError
        There is no such blob, several ones, or one of another shape.
    """
    shapes = infer_shapes(graph)
    source = _chosen("input", settings.input, {name: shapes[name] for name in graph.inputs})
    if len(shapes[source]) != 4:
        raise EvaluatorError(f"blob '{source}' of shape {shapes[source]} takes no images: it must have four dimensions")
    size, *image = shapes[source]
    shape = (settings.batch_size or size, *image)
    inputs = {**graph.inputs, source: shape}
    shapes = infer_shapes(graph, inputs)
    outputs = shapes if settings.output else {name: shapes[name] for name in graph.outputs}
    output = _chosen("output", settings.output, outputs)
    if len(shapes[output]) < 2 or math.prod(shapes[output][2:]) != 1 or shapes[output][0] != shape[0]:
        raise EvaluatorError(
            f"blob '{output}' of shape {shapes[output]} holds no scores of classes for {shape[0]} images; name another "
            "with 'output', or write an evaluator of your own ('autonuq new' makes one)"
        )
    return Ends(source, output, (shape[0], shape[1], shape[2], shape[3]), shapes[output][1])


def _chosen(key: str, name: str | None, blobs: Mapping[str, Shape]) -> str:
    if name is not None and name in blobs:
        return name
    known = ", ".join(blobs)
    if name is not None:
        raise EvaluatorError(f"the network has no {key} blob '{name}' (it has: {known})")
    if not blobs:
        hint = "; give it an Input layer in place of its MemoryData" if key == "input" else ""
        raise EvaluatorError(f"the network has no {key}{hint}")
    if len(blobs) != 1:
        raise EvaluatorError(f"the network has {len(blobs)} {key}s, {known}; say which with '{key}' in [evaluator]")
    return next(iter(blobs))


class Accuracy(Evaluator):
    """Share of the images whose label is among the largest scores.

    Parameters
    ----------
    settings : AccuracySettings
    ends : Ends

    Raises
    ------
    EvaluatorError
        The data cannot be read or do not fit the network.
    """

    def __init__(self, settings: AccuracySettings, ends: Ends) -> None:
        self._settings, self._ends = settings, ends
        self._transform = Transform(settings.transform, ends.shape[1:])
        self._scored = open_images(settings.data, settings.part)
        same = settings.calibration == settings.data
        self._calibrating = self._scored if same else open_images(settings.calibration)
        size, count = ends.shape[0], len(self._scored.labels)
        wrong = self._scored.labels[self._scored.labels >= ends.classes]
        if len(wrong) or self._scored.labels.min() < 0:
            raise EvaluatorError(
                f"labels must lie in 0..{ends.classes - 1}, the classes of blob '{ends.output}'. Got "
                f"{max(self._scored.labels, key=abs)} instead.",
                path=settings.data.path,
            )
        batches = math.ceil(count / size)
        held = settings.part == "held back"
        super().__init__(evaluate_batch_num=batches if held else settings.evaluate_batch_num or batches)
        if self.evaluate_batch_num > batches:
            raise EvaluatorError(
                f"evaluate_batch_num {self.evaluate_batch_num} asks for {self.evaluate_batch_num * size} images in "
                f"batches of {size}; there are {count}",
                path=settings.data.path,
            )
        self._kept: dict[tuple[int, int], Array] = {}
        self._batch(self._scored, 0, 1)

    @property
    def name(self) -> str:
        """What the report calls this evaluator."""
        part = {"all": "", "search": "", "held back": " (held back)"}[self._settings.part]
        return f"{self._settings.kind} over {self._settings.data.path.name}{part}"

    unit = ("points", 100, "images")

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how it is made again in another process, which reads the data itself."""
        return _same_accuracy, (self._settings, self._ends, self.fingerprint(), self.data_digests())

    def fingerprint(self) -> str:
        """Return a digest of the settings and of the data, wherever they lie."""
        settings = self._settings
        transform = repr(replace(settings.transform, mean_file=None)).encode() + self._transform.mean.tobytes()
        part = "" if settings.part == "all" else f" {settings.part} {len(self._scored.labels)}"
        rest = f"{settings.kind} {settings.drop} {self.evaluate_batch_num} {self._ends}{part}".encode()
        digest = hashlib.sha256(transform + rest)
        for source in (self._scored, self._calibrating):
            digest.update(source.digest().encode())
        return digest.hexdigest()

    def data_digests(self) -> dict[str, str]:
        """Return a digest of each file that is read; of many pictures or records of a sample."""
        return dict(self._data_digests)

    @cached_property
    def _data_digests(self) -> dict[str, str]:
        sources = {"": self._scored} | (
            {} if self._calibrating is self._scored else {" (calibration)": self._calibrating}
        )
        found = {f"{name}{role}": digest for role, source in sources.items() for name, digest in source.parts().items()}
        if self._settings.transform.mean_file is not None:
            name = f"{Path(self._settings.transform.mean_file).name} (mean)"
            found[name] = hashlib.sha256(self._transform.mean.tobytes()).hexdigest()
        return found

    def eval_model(self, model_file: str, weights_file: str, batch_num: int) -> float:
        """Score the first `batch_num` batches; a last batch that is not full counts the images it has."""
        net, size = self._net(model_file, weights_file), self._ends.shape[0]
        count = min(batch_num * size, len(self._scored.labels))
        correct = np.empty(count, dtype=bool)
        for start in range(0, count, size):
            stop = min(start + size, count)
            scores = self._forward(net, self._kept_batch(start, stop))[: stop - start]
            correct[start:stop] = are_correct(scores, self._scored.labels[start:stop], KINDS[self._settings.kind])
        return Score(float(correct.mean()), samples=correct)

    def calibrate_model(self, model_file: str, weights_file: str, batch_num: int) -> None:
        """Run `batch_num` full batches of the calibration images."""
        net, size = self._net(model_file, weights_file), self._ends.shape[0]
        if batch_num * size > len(self._calibrating.labels):
            raise EvaluatorError(
                f"calibration takes {batch_num} batches of {size} images; there are {len(self._calibrating.labels)}: "
                "lower quantization.batch_num or evaluator.batch_size",
                path=self._settings.calibration.path,
            )
        for start in range(0, batch_num * size, size):
            self._forward(net, self._batch(self._calibrating, start, start + size))

    def is_satisfied(self, original_metric: float, new_metric: float) -> bool:
        """Accept a drop below the limit."""
        return self._settings.drop.allows(original_metric, new_metric)

    def _net(self, model_file: str, weights_file: str) -> Net:
        net = Net(model_file, weights_file, TEST)
        net.blobs[self._ends.input].reshape(*self._ends.shape)
        net.reshape()
        return net

    def _forward(self, net: Net, images: Array) -> Array:
        blob = net.blobs[self._ends.input].data
        blob[: len(images)], blob[len(images) :] = images, 0
        scores = net.forward([self._ends.output])[self._ends.output]
        return scores.reshape(len(scores), -1)

    def _batch(self, source: LabelledImages, start: int, stop: int) -> Array:
        images = source.read(start, stop, self._ends.shape[1])
        return self._transform.apply(images, source.order, source.wanted)

    def _kept_batch(self, start: int, stop: int) -> Array:
        """Return images to score; they are kept for the next trial while there is room."""
        if (start, stop) in self._kept:
            return self._kept[start, stop]
        batch = self._batch(self._scored, start, stop)
        if sum(kept.nbytes for kept in self._kept.values()) + batch.nbytes <= _KEPT_BYTES:
            self._kept[start, stop] = batch
        return batch


def _same_accuracy(
    settings: AccuracySettings, ends: Ends, fingerprint: str, digests: Mapping[str, str] | None = None
) -> Accuracy:
    """Make an evaluator again, of the same data."""
    made = Accuracy(settings, ends)
    changed = changed_data(digests or {}, made.data_digests() if digests else {})
    if changed or made.fingerprint() != fingerprint:
        what = f": {', '.join(changed)}" if changed else ""
        raise EvaluatorError(f"these are not the data that the study was started with{what}", path=settings.data.path)
    return made


def are_correct(scores: Array, labels: NDArray[np.int64], top: int) -> NDArray[np.bool_]:
    """Say of each row whether its label is among the `top` largest scores, shape (images,).

    Parameters
    ----------
    scores : ndarray, shape (images, classes)
    labels : ndarray of int64, shape (images,)
    top : int

    Notes
    -----
    **Source**: Caffe's `accuracy_layer.cpp`: another class with the same score counts as better. A score that is not a
    number is never correct.
    """
    own = scores[np.arange(len(labels)), labels][:, np.newaxis]
    rank = (scores >= own).sum(axis=1) - 1
    return np.asarray((rank >= 0) & (rank < top))
