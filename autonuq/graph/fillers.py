"""What a layer's blobs hold before anybody gives them values: Caffe's fillers.

Source: `filler.hpp` of BVLC Caffe for the formulas, the layers' `LayerSetUp` for the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from google.protobuf.message import Message

from autonuq.graph.caffe_pb2 import FillerParameter
from autonuq.graph.model import Array, Graph, Layer, Shape
from autonuq.graph.shapes.channels import stores_sums
from autonuq.graph.shapes.windows import DEPTHWISE_TYPES

Draw = Callable[[FillerParameter, Shape, np.random.Generator], Array]


@dataclass(frozen=True)
class Filling:
    """How one blob is filled.

    Attributes
    ----------
    word : str
        The filler's name in the prototxt; empty where a type has none.
    filler : FillerParameter
        What the prototxt says, or the type's default.
    is_given : bool
        The prototxt says it, or the default is of use: a convolution of zeros, Caffe's default, is none.
    """

    word: str
    filler: FillerParameter
    is_given: bool = True

    @property
    def is_fixed(self) -> bool:
        """Whether the filler gives the same values every time."""
        return self.filler.type in _FIXED


def fillings(layer: Layer, shapes: Sequence[Shape]) -> list[Filling]:
    """Return how each blob of a layer is filled; `shapes` are those of the blobs."""
    message = layer.message
    if layer.type in _WEIGHTED:
        parameters = getattr(message, _WEIGHTED[layer.type])
        weight, bias = (_filling(parameters, word) for word in ("weight_filler", "bias_filler"))
        return [replace(bias, is_given=bias.is_given or weight.is_given) if len(it) == 1 else weight for it in shapes]
    if layer.type == "Scale":
        both = [_filling(message.scale_param, "filler", 1), _filling(message.scale_param, "bias_filler", 0)]
        return both[len(layer.bottoms) - 1 :][: len(shapes)]
    if layer.type == "BatchNorm":
        parameters = message.batch_norm_param
        scale_word = "filler" if parameters.use_weight_bias else "scale_filler"
        own = [_filling(parameters, scale_word, 1), _filling(parameters, "bias_filler", 0)]
        count = _constant(0 if stores_sums(layer) else 1)
        return [_constant(0), _constant(0), count, *own][: len(shapes)]
    if layer.type in _SINGLE:
        place, word, value = _SINGLE[layer.type]
        return [_filling(getattr(message, place), word, value)] * len(shapes)
    return [_constant(0, is_given=layer.type == "Parameter")] * len(shapes)


def fill(graph: Graph, layer: Layer, filling: Filling, shape: Shape, generator: np.random.Generator) -> Array:
    """Make the values of one blob of a layer, ndarray of float32.

    Raises
    ------
    ModelError
        Caffe has no such filler, or it does not fit the shape.
    """
    draw = (_FIXED | _RANDOM).get(filling.filler.type)
    if draw is None:
        known = ", ".join(sorted(_FIXED | _RANDOM))
        raise graph.error(layer, f"its {filling.word} is of type '{filling.filler.type}'; Caffe's are {known}")
    if filling.filler.type == "bilinear" and (len(shape) != 4 or shape[2] != shape[3]):
        raise graph.error(layer, f"its {filling.word} 'bilinear' needs square filters, but its shape is {shape}")
    return draw(filling.filler, shape, generator).astype(np.float32, copy=False)


def _filling(parameters: Message, word: str, default: float | None = None) -> Filling:
    """Return what `parameters` say, or the default; without one it is 0 and counts as not given."""
    if parameters.HasField(word):
        return Filling(word, getattr(parameters, word))
    return Filling(word, FillerParameter(value=default or 0), default is not None)


def _constant(value: float, *, is_given: bool = True) -> Filling:
    return Filling("", FillerParameter(value=value), is_given)


_WEIGHTED = {
    **dict.fromkeys(("Convolution", "Deconvolution", *DEPTHWISE_TYPES), "convolution_param"),
    "InnerProduct": "inner_product_param",
    "Embed": "embed_param",
    **dict.fromkeys(("RNN", "LSTM"), "recurrent_param"),
}
_SINGLE = {
    "Bias": ("bias_param", "filler", 0),
    "PReLU": ("prelu_param", "filler", 0.25),
    "Normalize": ("norm_param", "scale_filler", 1),
}


def _constant_values(filler: FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """Return one value everywhere; zeros, the usual default, cost no memory until somebody writes them."""
    return np.full(shape, filler.value, np.float32) if filler.value else np.zeros(shape, np.float32)


def _bilinear(filler: FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """Weights of an interpolation: 1 - |x / f - c| along both axes, f = ceil(width / 2), c the filter's middle."""
    half = math.ceil(shape[-1] / 2)
    along: Array = 1 - np.abs(np.arange(shape[-1]) / half - (shape[-1] - 1) / (2 * half))
    return np.tile(along[:, None] * along, (*shape[:2], 1, 1))


def _normal(mean: float, deviation: float, shape: Shape, generator: np.random.Generator) -> Array:
    """Draw in float32: the blobs of a network are large."""
    values: Array = generator.standard_normal(shape, np.float32)
    values *= np.float32(deviation)
    values += np.float32(mean)
    return values


def _uniform(lowest: float, highest: float, shape: Shape, generator: np.random.Generator) -> Array:
    values: Array = generator.random(shape, np.float32)
    values *= np.float32(highest - lowest)
    values += np.float32(lowest)
    return values


def _gaussian(filler: FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """Draw from a normal distribution; `sparse` says how many inputs of an output are not 0, on average."""
    values = _normal(filler.mean, filler.std, shape, generator)
    if filler.sparse >= 0:
        values *= generator.random(shape, np.float32) < filler.sparse / _outputs(shape)
    return values


def _unit_ball(filler: FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """Positive; the weights of each output sum up to 1."""
    values: Array = generator.random((_outputs(shape), math.prod(shape[1:])), np.float32)
    values /= values.sum(axis=1, keepdims=True)
    return values.reshape(shape)


def _outputs(shape: Shape) -> int:
    """Return how many outputs a blob is for; a single value is for one."""
    return shape[0] if shape else 1


def _variance_count(filler: FillerParameter, shape: Shape) -> float:
    """Return the n of variance 1 / n: inputs, outputs or their mean."""
    count = math.prod(shape)
    fan_in, fan_out = count / _outputs(shape), count / (shape[1] if len(shape) > 1 else 1)
    return {
        FillerParameter.FAN_IN: fan_in,
        FillerParameter.FAN_OUT: fan_out,
        FillerParameter.AVERAGE: (fan_in + fan_out) / 2,
    }[filler.variance_norm]


def _xavier(filler: FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    limit = math.sqrt(3 / _variance_count(filler, shape))
    return _uniform(-limit, limit, shape, generator)


def _msra(filler: FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    return _normal(0, math.sqrt(2 / _variance_count(filler, shape)), shape, generator)


_FIXED: dict[str, Draw] = {
    "constant": _constant_values,
    "bilinear": _bilinear,
}
_RANDOM: dict[str, Draw] = {
    "gaussian": _gaussian,
    "msra": _msra,
    "positive_unitball": _unit_ball,
    "uniform": lambda filler, shape, generator: _uniform(filler.min, filler.max, shape, generator),
    "xavier": _xavier,
}
