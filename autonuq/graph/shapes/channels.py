"""Layers that treat the channels of a blob separately: statistics, factors, offsets, slopes."""

from __future__ import annotations

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import LayerError, canonical_axis, define, legacy_shape


def _batch_norm_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 2:
        raise LayerError(f"BatchNorm needs a channel axis, got an input of shape {bottoms[0]}")
    return bottoms


def _batch_norm_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    channels = bottoms[0][1]
    own = int(has_own_scale(layer)) + int(has_own_shift(layer))
    return [(channels,), (channels,), (1,), *[(channels,)] * own]


def has_own_scale(layer: Layer) -> bool:
    """Say whether a BatchNorm also scales what it normalized: Intel's, and NVIDIA's, where fillers ask for it, too."""
    message = layer.message.batch_norm_param
    if message.HasField("use_weight_bias"):
        return message.use_weight_bias
    return message.scale_bias or message.HasField("scale_filler") or message.HasField("bias_filler")


def has_own_shift(layer: Layer) -> bool:
    """Say whether a BatchNorm adds an offset behind its factor; Intel's may go without."""
    message = layer.message.batch_norm_param
    return has_own_scale(layer) and (message.bias_term or not message.use_weight_bias)


def stores_sums(layer: Layer) -> bool:
    """Say whether a BatchNorm's blobs are sums to be divided by the factor; NVIDIA's with a scale are averages."""
    return not has_own_scale(layer) or layer.message.batch_norm_param.use_weight_bias


def uses_stored_statistics(layer: Layer) -> bool:
    """Say whether a BatchNorm normalizes by what it stores, not by its batch.

    It is Caffe's default in phase TEST. NVIDIA's and Intel's layers with a scale do so there whatever
    `use_global_stats` says.
    """
    message = layer.message.batch_norm_param
    return has_own_scale(layer) or not message.HasField("use_global_stats") or message.use_global_stats


def broadcast_parameters(layer: Layer) -> caffe_pb2.ScaleParameter | caffe_pb2.BiasParameter:
    """Return the part of a Scale or Bias layer that holds `axis` and `num_axes`."""
    return layer.message.bias_param if layer.type == "Bias" else layer.message.scale_param


def scale_shape(layer: Layer, bottom: Shape) -> Shape:
    """Return the shape of a Scale's or Bias's own blob: `num_axes` axes of its bottom from `axis` on."""
    message = broadcast_parameters(layer)
    axis = canonical_axis(message.axis, len(bottom))
    if message.num_axes < -1:
        raise LayerError(f"num_axes must be at least -1, got {message.num_axes}")
    end = len(bottom) if message.num_axes == -1 else axis + message.num_axes
    if end > len(bottom):
        raise LayerError(f"covers {message.num_axes} axes from axis {axis} of an input with {len(bottom)}")
    return bottom[axis:end]


def scale_axis(layer: Layer, bottom: Shape, factor: Shape) -> int:
    """Return the axis of the bottom from which on a factor lies along it; 0 for a scalar."""
    return canonical_axis(broadcast_parameters(layer).axis, len(bottom)) if factor else 0


def _broadcast_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if len(bottoms) == 2:
        axis = scale_axis(layer, *bottoms)
        if bottoms[0][axis : axis + len(bottoms[1])] != bottoms[1]:
            raise LayerError(f"the second input {bottoms[1]} does not lie along {bottoms[0]} from axis {axis} on")
    return bottoms[:1]


def _broadcast_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    own = [] if len(bottoms) == 2 else [scale_shape(layer, bottoms[0])]
    factor = bottoms[1] if len(bottoms) == 2 else own[0]
    return [*own, factor] if layer.type == "Scale" and layer.message.scale_param.bias_term else own


def _prelu_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 2:
        raise LayerError(f"PReLU needs a channel axis, got an input of shape {bottoms[0]}")
    return bottoms


def _prelu_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [() if layer.message.prelu_param.channel_shared else (bottoms[0][1],)]


def _mvn_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Caffe gives this layer's top four axes whatever its bottom has."""
    return [legacy_shape(bottoms[0])]


define(["BatchNorm"], _batch_norm_tops, _batch_norm_blobs)
define(["Scale", "Bias"], _broadcast_tops, _broadcast_blobs, range(1, 3))
define(["PReLU"], _prelu_tops, _prelu_blobs)
define(["MVN"], _mvn_tops)
