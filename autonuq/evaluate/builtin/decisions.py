"""Where a network's output says which class: of a picture, of each pixel, of each step of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.images import check_fixed, choose_output, find_entrance, find_items, images_first
from autonuq.evaluate.builtin.settings import BuiltinSettings
from autonuq.graph.model import Array, Graph, Layer, Shape

Decisions = NDArray[np.int16 | np.int32]
"""Numbers of classes; those of many pictures' pixels are kept."""
_FEW = np.iinfo(np.int16).max
FEWEST_ALIKE = 8
"""Pictures of which it is strange if all get the same class."""


def doubt_decisions(decisions: NDArray[np.integer]) -> str:
    """Say that pictures are all alike to a network, where they are.

    Parameters
    ----------
    decisions : ndarray of int64, shape (images, ...)
    """
    if len(decisions) < FEWEST_ALIKE or (decisions != decisions.flat[0]).any():
        return ""
    where = "" if decisions[0].size == 1 else ", all over"
    return f"the original network sees class {decisions.flat[0]} in each of {len(decisions)} pictures{where}"


@dataclass(frozen=True)
class ScoreEnds:
    """Where images go into a network and scores of classes come out.

    Attributes
    ----------
    input, output : str
        Blobs.
    shape : tuple of int
        (batch, channels, height, width) of the input.
    items : int or None
        Axis of the images in the output; None: all of it is one image's.
    axis : int or None
        Axis of the classes; None: it holds the numbers of the classes themselves, as ArgMax writes them.
    classes : int or None
    pixels : tuple of int
        The other axes' lengths: none of a picture's class, (height, width) of each pixel's, (steps,) of a sequence's.
    """

    input: str
    output: str
    shape: tuple[int, int, int, int]
    items: int | None
    axis: int | None
    classes: int | None
    pixels: tuple[int, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blob that is looked at."""
        return (self.output,)

    def scores(self, blob: Array, count: int) -> Array:
        """Return the scores of a batch, shape (images, classes, ...), without classes where they have no axis."""
        images = images_first(blob, self.items)
        if self.axis is not None:
            images = np.moveaxis(images, self._behind(self.axis), 1)
        return images[:count]

    def _behind(self, axis: int) -> int:
        """Return where an axis is once the images have come first."""
        return axis + 1 if self.items is None or axis < self.items else axis

    def decide(self, scores: Array) -> Decisions:
        """Return the class with the largest score, the first of several; -1 where one is not a number.

        Parameters
        ----------
        scores : ndarray, shape (images, classes, ...), or without classes where there is no axis of them
        """
        numbers = scores if self.axis is None else scores.argmax(axis=1)
        holes = np.isnan(scores if self.axis is None else scores.max(axis=1))
        return np.where(holes, -1, numbers).astype(
            np.int32 if self.classes is None or self.classes > _FEW else np.int16
        )


def find_scores(graph: Graph, settings: BuiltinSettings) -> ScoreEnds:
    """Find the output that scores classes, and the axis of them.

    Raises
    ------
    EvaluatorError
        There is none, or it knows one class.
    """
    entrance = find_entrance(graph, settings)
    output = choose_output(graph, settings, entrance.shapes)
    check_fixed(graph, output)
    shape = entrance.shapes[output]
    items = find_items(graph, output, shape, entrance.shape[0])
    maker = next((layer for layer in reversed(graph.layers) if output in layer.tops), None)
    axis = _class_axis(settings.axis, maker, shape, items, output)
    if axis is not None and shape[axis] < 2:
        raise EvaluatorError(
            f"blob '{output}' of shape {shape} has one number where there should be a score for each class (axis "
            f"{axis}); name another with 'output' or 'axis', or take kind 'outputs'"
        )
    classes = None if axis is None else shape[axis]
    pixels = tuple(length for number, length in enumerate(shape) if number not in (items, axis))
    if axis is None:
        pixels = tuple(length for length in pixels if length > 1)  # ArgMax leaves an axis of one class
    return ScoreEnds(entrance.input, output, entrance.shape, items, axis, classes, pixels)


def _class_axis(given: int | None, maker: Layer | None, shape: Shape, items: int | None, output: str) -> int | None:
    """Return the axis of the classes: the given one, a softmax's, or that which blobs of so many axes have."""
    others = [axis for axis in range(len(shape)) if axis != items]
    if not others:
        raise EvaluatorError(f"blob '{output}' of shape {shape} holds no scores of classes; take kind 'outputs'")
    if given is not None:
        if given % len(shape) not in others or not -len(shape) <= given < len(shape):
            raise EvaluatorError(f"'axis' must be one of {others} for blob '{output}' of shape {shape}. Got {given}.")
        return given % len(shape)
    if maker is not None and maker.type == "ArgMax" and not maker.message.argmax_param.out_max_val:
        return None
    if maker is not None and maker.type == "Softmax" and maker.message.softmax_param.axis % len(shape) in others:
        return int(maker.message.softmax_param.axis % len(shape))
    if len(shape) == 3:
        return _of_sequence(others, shape)
    return others[0]


def _of_sequence(others: Sequence[int], shape: Shape) -> int:
    """Return the last axis of (images, steps, classes), unless that alone has a single entry."""
    first, last = others[0], others[-1]
    return first if shape[last] == 1 else last
