"""What a chip's compiler does with a network's layers, and so what their bytes are counted with.

Its compressor takes Convolution, Deconvolution and InnerProduct of one group. Of those the compiler marks some
(`quant.atc.chips.predict_mark`), or a file of its own says which; a `Target` says whether only those are compressed or
all. A layer that is not keeps int8: searching it would gain nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate
from autonuq.compress.quantized import QuantizedModel, default_config, quantize
from autonuq.graph.layers import infer_known_shapes, input_window
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities
from autonuq.quant.atc.chips import Judgement, Mark, judge, predict_mark
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codec import Codec
from autonuq.quant.codecs import PLAIN, make_codec
from autonuq.quant.config import QuantizationConfig, Target
from autonuq.records import ChipLayer, ChipRecord

_NAMED = 5


def codecs_of(model: QuantizedModel) -> dict[str, Codec]:
    """Return what the bytes of each layer with int8 weights are counted with, by the configuration's target."""
    target, left = model.config.target, uncompressed_layers(model)
    found: dict[str, Codec] = {}
    for name, uniform in model.weights.items():
        codec = make_codec(target.codec_name, uniform.codes.shape)
        if isinstance(codec, AscendCodec):
            plain = _groups(model.graph, name) > 1
            codec = make_codec(PLAIN, codec.shape) if plain else replace(codec, is_compressed=name not in left)
        found[name] = codec
    return found


def floor_bytes(model: QuantizedModel) -> int:
    """Return the bytes of a network of zeros, below which no plan of it gets."""
    codecs = codecs_of(model)
    return sum(codecs[name].size_bytes(np.zeros_like(uniform.codes)) for name, uniform in model.weights.items())


def uncompressed_layers(model: QuantizedModel) -> dict[str, str]:
    """Return the layers whose int8 weights the target's chip holds as they are -> the reason; none without a chip."""
    return _uncompressed(model.graph, model.weights, model.config.target)


def _uncompressed(graph: Graph, names: Iterable[str], target: Target) -> dict[str, str]:
    if not target.chip:
        return {}
    names = tuple(names)
    found = {name: "the chip compresses no groups" for name in names if _groups(graph, name) > 1}
    if target.marking == "all":
        return found
    reasons = mark_reasons(graph, names, target)
    return {**{name: f"not compressed on {target.chip}: {reason}" for name, reason in reasons.items()}, **found}


def _groups(graph: Graph, name: str) -> int:
    layer = graph.by_name[name]
    return 1 if layer.type == "InnerProduct" else input_window(layer).groups


def mark_reasons(graph: Graph, names: Iterable[str], target: Target) -> dict[str, str]:
    """Return those layers out of some that a target's compiler does not mark -> why."""
    if target.marked is not None:
        return {name: "its compiler's file does not mark it" for name in names if name not in target.marked}
    marks = predict_marks(graph, target.chip)
    unmarked = {name: marks[name].reason if name in marks else "it can carry no codebook" for name in names}
    return {name: reason for name, reason in unmarked.items() if name not in marks or not marks[name].is_marked}


def say_unsearched(model: QuantizedModel) -> str:
    """Say why there is nothing to search; empty where a layer can have a codebook."""
    target, left = model.config.target, uncompressed_layers(model)
    if model.nuq_layers:
        return ""
    if not left:
        return f"no layer can carry a codebook, so there is nothing to search: {say_reasons(_without_codebook(model))}"
    if len(left) < len(model.weights):
        return f"no layer that {target.chip} compresses is to carry a codebook, so there is nothing to search"
    loads = f"{target.chip} loads every layer as int8, so there is nothing to search"
    if target.marking == "all":
        return f"{loads}: all of them have groups"
    more = 'marks = "all" counts as if it were told to compress all (--enable_compress_weight)'
    return f"{loads}: {target.say_marks()}, none; {more}"


def _without_codebook(model: QuantizedModel) -> dict[str, str]:
    """Return why each layer with int8 weights has no codebook."""
    reasons = {capability.name: capability.reason for capability in model.capabilities if not capability.nuq}
    return {name: reasons.get(name, "the configuration asks for none") for name in model.weights}


def say_reasons(reasons: Mapping[str, str]) -> str:
    """Put the reasons of some layers into words: of the first few."""
    shown = [f"'{name}' {reason}" for name, reason in islice(reasons.items(), _NAMED)]
    more = len(reasons) - len(shown)
    return "; ".join(shown) + (f"; and {more} more, see 'autonuq inspect'" if more else "")


def describe_chip(model: QuantizedModel) -> ChipRecord | None:
    """Describe what the target's chip does with each layer, for reports; None without one."""
    target, codecs = model.config.target, codecs_of(model)
    if not target.chip:
        return None
    left, marks = uncompressed_layers(model), predict_marks(model.graph, target.chip)
    layers = []
    for name, uniform in model.weights.items():
        mark, codec = marks.get(name), codecs[name]
        reason = left.get(name) or (mark.reason if mark is not None and mark.is_marked else target.say_marks())
        load = None if mark is None or math.isnan(mark.ratio) else round(mark.ratio, 3)
        plain = codec.device_bytes if isinstance(codec, AscendCodec) else uniform.codes.size
        layers.append(ChipLayer(name, name not in left, reason, plain, load))
    return ChipRecord(target.chip, target.say_marks(), tuple(layers))


def compressed_layers(candidate: Candidate) -> tuple[str, ...]:
    """Return the layers whose weights a compiler is to compress, in network order.

    Those with a codebook, as AMCT has it; for a chip all whose compressed bytes are counted, too.
    """
    model, found = candidate.model, set(candidate.nuq_layers)
    if model.config.target.chip:
        left = uncompressed_layers(model)
        found |= {name for name in model.weights if name not in left and judge_layer(candidate.codes(name)).is_kept}
    return tuple(name for name in model.weights if name in found)


def aimed(model: QuantizedModel) -> QuantizedModel:
    """Return the model without codebooks for layers that the target's chip does not compress."""
    return replace(model, config=aimed_config(model.config, model.graph))


def aimed_config(config: QuantizationConfig, graph: Graph) -> QuantizationConfig:
    """Return the configuration of a network, folded or not, without codebooks for such layers."""
    if not config.target.chip:
        return config
    able = {capability.name for capability in capabilities(graph) if capability.nuq}
    searched = [name for name, layer in config.layers.items() if layer.weights.algorithm == "nuq" and name in able]
    left = _uncompressed(graph, searched, config.target)
    layers = {
        name: replace(settings, weights=replace(settings.weights, algorithm="arq")) if name in left else settings
        for name, settings in config.layers.items()
    }
    return replace(config, layers=layers)


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
        Folded or not, with or without blobs: shapes decide, and layers whose shapes only a `Python` layer that may not
        run could tell are left out.
    chip : str
        Key of `quant.atc.chips.DDR_RATES`.
    """
    shapes = infer_known_shapes(graph)
    marks = {}
    for capability in capabilities(graph):
        if not capability.nuq:
            continue
        top = graph.by_name[capability.name].tops[0]
        is_fc = capability.type == "InnerProduct"
        if not (is_fc or top in shapes):
            continue
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
