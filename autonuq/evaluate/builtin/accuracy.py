"""Top-1 and top-5 accuracy over labelled images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.decisions import doubt_decisions
from autonuq.evaluate.builtin.images import ImageEvaluator, choose_output, find_entrance
from autonuq.evaluate.builtin.settings import BuiltinSettings
from autonuq.evaluate.builtin.sources import Images, Part
from autonuq.evaluate.samples import Score
from autonuq.graph.model import Array, Graph

TOPS: Mapping[str, int] = MappingProxyType({"top1": 1, "top5": 5})
"""Names of the kinds, and how many of the largest scores may hold the label."""


@dataclass(frozen=True)
class Ends:
    """Where images go into a network and class scores come out; studies that exist know a digest of its `repr`.

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

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blob that is looked at."""
        return (self.output,)


class Accuracy(ImageEvaluator):
    """Share of the images whose label is among the largest scores."""

    labelled = True
    keys = ("drop", "output", "labels")
    ends: Ends

    @classmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> Ends:
        """See `ImageEvaluator`."""
        entrance = find_entrance(graph, settings)
        output = choose_output(graph, settings, entrance.shapes)
        batch, shape = entrance.shape[0], entrance.shapes[output]
        if len(shape) < 2 or math.prod(shape[2:]) != 1 or shape[0] != batch:
            raise EvaluatorError(
                f"blob '{output}' of shape {shape} holds no scores of classes for {batch} images; name another "
                "with 'output', or write an evaluator of your own ('autonuq new' makes one)"
            )
        return Ends(entrance.input, output, entrance.shape, shape[1])

    @classmethod
    def open_scored(cls, settings: BuiltinSettings, part: Part) -> Images:
        """See `ImageEvaluator`."""
        if settings.data.kind == "folder" and not Path(settings.data.labels).exists():
            words = "label file cannot be read: No such file; pictures without labels are for kind 'agreement'"
            raise EvaluatorError(words, path=settings.data.labels)
        return super().open_scored(settings, part)

    def check_data(self) -> None:
        """Check the labels."""
        labels, classes = self.scored.labels, self.ends.classes
        if labels.max() >= classes or labels.min() < 0:
            raise EvaluatorError(
                f"labels must lie in 0..{classes - 1}, the classes of blob '{self.ends.output}'. Got "
                f"{max(labels, key=abs)} instead.",
                path=self.settings.data.path,
            )

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        largest = "score" if self.settings.kind == "top1" else "five scores"
        return f"share of the images whose label has the largest {largest}; {self.drop.say()}"

    def keep(self, outputs: Mapping[str, Array], count: int) -> Array:
        """See `ImageEvaluator`: the scores, shape (images, classes)."""
        scores = outputs[self.ends.output]
        return scores.reshape(len(scores), -1)[:count]

    def compare(self, found: Array, original: Any, start: int) -> NDArray[np.bool_]:
        """See `ImageEvaluator`: whether each is right."""
        labels = self.scored.labels[start : start + len(found)]
        return are_correct(found, labels, TOPS[self.settings.kind])

    def doubt(self, found: Sequence[Array]) -> str:
        """See `ImageEvaluator`: one class for everything, unless the labels say so, too."""
        decisions = np.concatenate(found).argmax(axis=1)
        same = (self.scored.labels[: len(decisions)] == self.scored.labels[0]).all()
        return "" if same else doubt_decisions(decisions)

    def score(self, things: Sequence[np.bool_]) -> Score:
        """See `ImageEvaluator`."""
        correct = np.array(things)
        return Score(float(correct.mean()), samples=correct)


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
