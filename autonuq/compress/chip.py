"""What a chip's compiler does with a network's layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.layers import infer_shapes
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities
from autonuq.quant.atc.chips import Judgement, Mark, judge, predict_mark


@dataclass(frozen=True)
class ChipView:
    """What ATC would do with one layer on one chip.

    Attributes
    ----------
    mark : Mark
        Whether it marks the layer for weight compression, which makes AMCT take it for NUQ.
    judgement : Judgement
        What its compressor makes of the uniform int8 weights.
    """

    mark: Mark
    judgement: Judgement


def predict_marks(graph: Graph, chip: str) -> dict[str, Mark]:
    """Predict which layers ATC marks for weight compression, out of those that can carry a codebook.

    Parameters
    ----------
    graph : Graph
        Folded or not, with or without blobs: shapes decide.
    chip : str
        Key of `quant.atc.chips.DDR_RATES`.
    """
    shapes = infer_shapes(graph)
    marks = {}
    for capability in capabilities(graph):
        if not capability.nuq:
            continue
        top = graph.by_name[capability.name].tops[0]
        is_fc = capability.type == "InnerProduct"
        outputs, channels, height, width = (*capability.shape, 1, 1)[:4]
        map_height, map_width = (1, 1) if is_fc else shapes[top][2:]
        marks[capability.name] = predict_mark(
            chip,
            kernel_height=height,
            kernel_width=width,
            channels=channels,
            outputs=outputs,
            map_height=map_height,
            map_width=map_width,
            is_fc=is_fc,
        )
    return marks


def view_on_chip(graph: Graph, chip: str) -> dict[str, ChipView]:
    """Predict what ATC does with every layer that can carry a codebook.

    Parameters
    ----------
    graph : Graph
        With blobs, not folded.
    chip : str
        Key of `quant.atc.chips.DDR_RATES`.
    """
    model = quantize(graph, default_config(graph))
    return {
        name: ChipView(mark, judge_layer(model.weights[name].codes))
        for name, mark in predict_marks(graph, chip).items()
    }


def judge_layer(codes: NDArray[np.int8]) -> Judgement:
    """Predict what ATC's compressor makes of a layer's int8 weights."""
    return judge(codes, "fc" if codes.ndim == 2 else "conv")
