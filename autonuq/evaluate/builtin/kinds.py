"""Which built-in evaluators there are, and how one is made for a network."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autonuq.evaluate.builtin.accuracy import TOPS, Accuracy
from autonuq.evaluate.builtin.agreement import Agreement
from autonuq.evaluate.builtin.detections import DetectionAgreement, LabelledPrecision
from autonuq.evaluate.builtin.images import ImageEvaluator, check_inputs
from autonuq.evaluate.builtin.outputs import Outputs
from autonuq.evaluate.builtin.segmentation import Segmentation
from autonuq.evaluate.builtin.settings import BuiltinSettings
from autonuq.graph.files import ModelPair, load_graph

KINDS: Mapping[str, type[ImageEvaluator]] = MappingProxyType(
    {
        **dict.fromkeys(TOPS, Accuracy),
        "agreement": Agreement,
        "outputs": Outputs,
        "detections": DetectionAgreement,
        "map": LabelledPrecision,
        "miou": Segmentation,
    }
)
"""By their names in study files."""


def make_builtin(settings: BuiltinSettings, original: ModelPair) -> ImageEvaluator | None:
    """Make the evaluator for a network; None of a held-back part that would have too few images.

    Raises
    ------
    EvaluatorError
        The data cannot be read or do not fit the network.
    ModelError
        The prototxt cannot be read.
    """
    kind, graph = KINDS[settings.kind], load_graph(original.model)
    ends = kind.find_ends(graph, settings)
    check_inputs(graph, ends)
    if settings.part == "held back" and not kind.open_scored(settings, settings.part).names:
        return None
    return kind(settings, ends, original)
