"""Whether a network is shown what it was trained with: what speaks against it, before a study measures nonsense."""

from __future__ import annotations

import warnings

import numpy as np

from autonuq.evaluate.builtin.guess import MOST_PICTURES, doubt_preparation, sized
from autonuq.evaluate.builtin.images import ImageEvaluator
from autonuq.graph.files import load_graph


def warn_of_doubts(evaluator: ImageEvaluator) -> str:
    """Warn of what is implausible in how the original network takes its images, and in what it makes of them.

    Returns
    -------
    str
        What was looked at, in words.

    Raises
    ------
    EvaluatorError
        An image cannot be read.
    """
    count, size = min(MOST_PICTURES, len(evaluator.scored.names)), evaluator.ends.shape[0]
    found = [evaluator.of_original(start, min(start + size, count)) for start in range(0, count, size)]
    for what in (evaluator.doubt(found), _doubt_images(evaluator, count)):
        if what:
            warnings.warn(f"{what}. Is [evaluator.transform] what the network was trained with?", stacklevel=2)
    return f"what the original network makes of {count} images"


def _doubt_images(evaluator: ImageEvaluator, count: int) -> str:
    """Say what speaks against the transform; nothing of arrays that were prepared elsewhere."""
    source, settings, channels = evaluator.scored, evaluator.settings.transform, evaluator.ends.shape[1]
    pictures = source.read(0, count, channels)
    if channels not in (1, 3) or any(picture.dtype != np.uint8 for picture in pictures):
        return ""
    graph = load_graph(evaluator.original.model, evaluator.original.weights)
    if graph.inputs[evaluator.ends.input][1:] != evaluator.ends.shape[1:]:
        return ""
    values = evaluator.transform.apply(pictures, source.order, source.wanted)
    plain = sized(graph, evaluator.ends.input, pictures, source.order, settings)
    return doubt_preparation(graph, evaluator.ends.input, np.resize(values, plain.shape), plain)
