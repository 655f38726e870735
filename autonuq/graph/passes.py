"""Passes: each takes a graph and returns a new one, for which `Graph.validate` holds.

Source: AMCT's fusion and quantization pages; names of inserted layers as in ATC's public ResNet-50 model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from autonuq.errors import QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.capability import CHANNEL_WISE_TYPES, Capability
from autonuq.graph.layers import DEPTHWISE_TYPES, blob_shapes, convolution, infer_shapes
from autonuq.graph.lowering import batch_norm_rescaling
from autonuq.graph.model import Array, Graph, Layer, Shape, Value
from autonuq.graph.record import Factors
from autonuq.graph.shapes.channels import uses_stored_statistics

FUSIBLE_TYPES = frozenset({"Convolution", "Deconvolution", *DEPTHWISE_TYPES})


def fold_batch_norm(graph: Graph, skip: Iterable[str] = ()) -> Graph:
    """Fold BatchNorm and Scale into the Convolution or Deconvolution before them.

    Parameters
    ----------
    graph : Graph
        With blobs.
    skip : iterable of str
        Layers that are left as they are.

    Notes
    -----
    w' = w * gamma / sqrt(variance + eps) and b' = (b - mean) * gamma / sqrt(variance + eps) + beta per output
    channel, computed in float64. BatchNorm alone and Scale alone fold too; a layer folds only if nobody else reads
    what it makes.
    """
    folded = dict(enumerate(graph.layers))
    for index, chain in foldable_chains(graph, skip).items():
        layer = graph.layers[index]
        for position in chain:
            layer = _absorb(layer, folded.pop(position))
        folded[index] = layer
    return graph.with_layers(folded.values()).validate()


def foldable_chains(graph: Graph, skip: Iterable[str] = ()) -> dict[int, list[int]]:
    """Return, for every layer that can absorb others, the indices of those, in order."""
    skipped = set(skip)
    chains: dict[int, list[int]] = {}
    for index, layer in enumerate(graph.layers):
        if _can_absorb(layer) and layer.name not in skipped:
            chain: list[int] = []
            while (following := _absorbable(graph, chain[-1] if chain else index)) is not None:
                chain.append(following)
            if chain:
                chains[index] = chain
    return chains


def _can_absorb(layer: Layer) -> bool:
    """One top, and channels along axis 1 as BatchNorm and Scale have them."""
    return layer.type in FUSIBLE_TYPES and len(layer.tops) == 1 and layer.message.convolution_param.axis == 1


def _absorbable(graph: Graph, index: int) -> int | None:
    """Return the only reader of a layer if it is a BatchNorm or a Scale per channel."""
    readers = graph.readers.get((index, 0), ())
    if len(readers) != 1:
        return None
    layer = graph.layers[readers[0]]
    if layer.type == "BatchNorm" and uses_stored_statistics(layer):
        return readers[0]
    scale = layer.message.scale_param
    per_channel = layer.type == "Scale" and len(layer.bottoms) == 1 and (scale.axis, scale.num_axes) == (1, 1)
    return readers[0] if per_channel else None


def _absorb(layer: Layer, follower: Layer) -> Layer:
    if follower.type == "BatchNorm":
        factor, shift = batch_norm_rescaling(follower)
    else:
        factor = follower.blobs[0].astype(np.float64)
        shift = follower.blobs[1].astype(np.float64) if len(follower.blobs) > 1 else np.zeros_like(factor)
    weights = layer.blobs[0] * _along_outputs(layer, factor)
    bias = (layer.blobs[1] if len(layer.blobs) > 1 else 0.0) * factor + shift
    blobs = (weights.astype(np.float32), bias.astype(np.float32))
    return layer.with_(tops=follower.tops, blobs=blobs, bias_term=True)


def _along_outputs(layer: Layer, factor: Array) -> Array:
    """Shape one factor per output channel so that it multiplies the weights."""
    shape = layer.blobs[0].shape
    if layer.type != "Deconvolution":
        return factor.reshape(-1, *(1,) * (len(shape) - 1))
    group = layer.message.convolution_param.group
    rows = np.repeat(factor.reshape(group, -1), shape[0] // group, axis=0)  # (inputs, outputs of their group)
    return rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))


def capabilities(graph: Graph, *, skip_fusion: Iterable[str] = (), do_fusion: bool = True) -> tuple[Capability, ...]:
    """Say of every layer what quantization can do with it; the graph may be folded or not, with or without blobs."""
    shapes = infer_shapes(graph)
    chains = foldable_chains(graph, skip_fusion) if do_fusion else {}
    absorbed = {position: graph.layers[index].name for index, chain in chains.items() for position in chain}
    found = []
    for index, layer in enumerate(graph.layers):
        blobs = blob_shapes(graph, layer, shapes)
        weight = blobs[0] if blobs and layer.type in WEIGHT_TYPES else ()
        if index in absorbed:
            quantizable, nuq, reason = False, False, f"is folded into '{absorbed[index]}'"
        else:
            quantizable, nuq, reason = _capability(layer, weight)
        fusible = _can_absorb(layer) and bool(_absorbable(graph, index))
        weights = int(np.prod(weight, dtype=np.int64)) if weight else 0
        found.append(Capability(layer.name, layer.type, weights, weight, quantizable, nuq, fusible, reason))
    return tuple(found)


WEIGHT_TYPES = frozenset({*CHANNEL_WISE_TYPES, "InnerProduct"})


def _capability(layer: Layer, weight: Shape) -> tuple[bool, bool, str]:
    """Return (quantizable, NUQ-capable, reason); rules of AMCT's tables of supported layers."""
    if layer.type == "Pooling":
        message = layer.message.pooling_param
        if message.pool != caffe_pb2.PoolingParameter.AVE:
            return False, False, "only AVE pooling is quantized"
        if message.global_pooling:
            return False, False, "global pooling is not quantized"
        return True, False, "has no weights, only its input is quantized"
    if layer.type not in WEIGHT_TYPES:
        return False, False, f"type '{layer.type}' is not quantized"
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return False, False, "has several inputs"
    if layer.type == "InnerProduct":
        parameters = layer.message.inner_product_param
        if parameters.transpose or parameters.axis != 1:
            return False, False, "needs transpose false and axis 1"
        return True, True, ""
    return _convolution_capability(layer, weight)


def _convolution_capability(layer: Layer, weight: Shape) -> tuple[bool, bool, str]:
    if len(weight) != 4:
        return False, False, f"its filter has {len(weight)} dimensions instead of 4"
    window = convolution(layer, 2)
    dilated = any(dilation != 1 for dilation in window.dilation)
    if layer.type == "Deconvolution":
        if dilated or window.group != 1:
            return False, False, "a Deconvolution needs dilation 1 and group 1"
        return True, False, "a codebook needs a Convolution or InnerProduct"
    if dilated:
        return True, False, f"a codebook needs dilation 1, not {'x'.join(map(str, window.dilation))}"
    if window.group != 1:
        return True, False, f"a codebook needs group 1, not {window.group}"
    return True, True, ""


@dataclass(frozen=True)
class QuantizedBlobs:
    """What a quantized layer holds in one of the written models.

    Attributes
    ----------
    blobs : tuple of ndarray
        Weights and bias: float32 in a fake-quant model, int8 and int32 in a deploy model; () for Pooling.
    factors : Factors
        With scale_d.
    """

    blobs: tuple[Array, ...]
    factors: Factors


def insert_quantizers(graph: Graph, quantized: Mapping[str, QuantizedBlobs], *, deploy: bool = False) -> Graph:
    """Put a Quant layer before and a DeQuant layer behind every quantized layer.

    Parameters
    ----------
    graph : Graph
        Folded.
    quantized : mapping of str to QuantizedBlobs
        By layer name.
    deploy : bool
        DeQuant carries one uint64 blob for the device instead of three float32 ones.

    Notes
    -----
    Layers that read the same value with the same factors share the Quant layer of the first one.
    """
    result: list[Layer] = []
    shared: dict[tuple[Value, float | None, int], str] = {}
    for index, layer in enumerate(graph.layers):
        if layer.name not in quantized:
            result.append(layer)
            continue
        found = quantized[layer.name]
        key = (graph.sources[index][0], found.factors.scale_d, found.factors.offset_d)
        if key not in shared:
            quant = _quant_layer(layer, found.factors)
            shared[key] = quant.tops[0]
            result.append(quant)
        result.append(layer.with_(bottoms=[shared[key]], blobs=found.blobs))
        result.append(_dequant_layer(layer, found.factors, deploy))
    return graph.with_layers(result).validate()


def _quant_layer(layer: Layer, factors: Factors) -> Layer:
    if factors.scale_d is None:
        raise QuantizationError("has no activation factors; was the calibration run?", layer=layer.name)
    name = f"{layer.name}_0_quant_layer"
    message = caffe_pb2.LayerParameter(name=name, type="Quant", bottom=layer.bottoms, top=[name])
    message.quant_param.with_offset = factors.offset_d != 0
    message.quant_param.scale = 1 / factors.scale_d
    message.quant_param.offset = factors.offset_d.to_bytes(1, "little", signed=True)
    message.quant_param.object_layer = layer.name
    return Layer(message)


def _dequant_layer(layer: Layer, factors: Factors, deploy: bool) -> Layer:
    message = caffe_pb2.LayerParameter(
        name=f"{layer.name}_dequant_layer", type="DeQuant", bottom=layer.tops, top=layer.tops
    )
    scale, shift, offset = dequantization_blobs(factors)
    message.dequant_param.channel_wise = len(scale) > 1
    message.dequant_param.object_layer = layer.name
    message.dequant_param.layer_type = layer.type
    blobs = (device_parameters(scale, shift),) if deploy else (scale, shift, offset)
    return Layer(message, blobs)


def dequantization_blobs(factors: Factors) -> tuple[Array, Array, Array]:
    """Return scale, shift N and weight offset (0) of a fake-quant model's DeQuant layer, ndarrays of float32."""
    scale = np.float32(factors.scale_d) * np.asarray(factors.scale_w, np.float32)
    shift = np.asarray(factors.shift_bit or (0,) * len(scale), np.float32)
    return scale, shift, np.zeros_like(scale)


def device_parameters(scale: Array, shift: Array) -> Array:
    """Pack dequantization parameters for the device.

    Parameters
    ----------
    scale : ndarray of float32, shape (C,)
        scale_d * scale_w.
    shift : ndarray, shape (C,)
        Shift N.

    Returns
    -------
    ndarray of uint64, shape (C,)
        Bits 0-31 the float32, 32-39 the shift, 40-47 the weight offset (0).
    """
    return scale.astype(np.float32).view(np.uint32).astype(np.uint64) | (shift.astype(np.uint64) << np.uint64(32))


class RangeSettings(Protocol):
    """What a calibration layer needs to know; `quant.config.ActivationSettings` is one."""

    @property
    def algorithm(self) -> Literal["ifmr", "hfmg"]: ...  # noqa: D102
    @property
    def max_percentile(self) -> float: ...  # noqa: D102
    @property
    def min_percentile(self) -> float: ...  # noqa: D102
    @property
    def search_start(self) -> float: ...  # noqa: D102
    @property
    def search_end(self) -> float: ...  # noqa: D102
    @property
    def search_step(self) -> float: ...  # noqa: D102
    @property
    def num_of_bins(self) -> int: ...  # noqa: D102
    @property
    def asymmetric(self) -> bool | None: ...  # noqa: D102


def insert_observers(
    graph: Graph,
    settings: Mapping[str, RangeSettings],
    *,
    batch_num: int,
    with_offset: bool,
    record_file: Path,
    joint: Iterable[tuple[str, ...]] = (),
) -> Graph:
    """Put a calibration layer before every layer whose input range is wanted.

    Parameters
    ----------
    settings : mapping of str to RangeSettings
        By layer name.
    batch_num : int
        Forward passes that are observed.
    with_offset : bool
        Asymmetric activations, unless a layer's own setting says otherwise.
    record_file : Path
        Where the layers write what they found.
    joint : iterable of tuple of str
        Groups of layers, in network order, that get one range: one calibration layer, before the last of them.

    Raises
    ------
    QuantizationError
        The layers of a group have different settings, or an input is gone before the last of them.
    """
    groups = {group[-1]: group for group in joint}
    waiting = {name for group in groups.values() for name in group[:-1]}
    result: list[Layer] = []
    for layer in graph.layers:
        if layer.name in settings and layer.name not in waiting:
            group = groups.get(layer.name, (layer.name,))
            _check_joint(graph, settings, group)
            own = settings[layer.name]
            offset = with_offset if own.asymmetric is None else own.asymmetric
            observed = [graph.by_name[name] for name in group]
            result.append(Layer(_observer(observed, own, batch_num, offset, record_file)))
        result.append(layer)
    return graph.with_layers(result).validate()


def joint_groups(graph: Graph, quantized: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of quantized layers whose outputs meet in an Eltwise layer, each in network order.

    Only what an Eltwise reads directly counts; groups that have a layer in common are one.
    """
    names = set(quantized)
    groups: list[set[str]] = []
    for index, layer in enumerate(graph.layers):
        if layer.type != "Eltwise":
            continue
        made = {graph.layers[producer].name for producer, _ in graph.sources[index]} & names
        touching = [group for group in groups if group & made]
        groups = [group for group in groups if not group & made]
        groups.append(made.union(*touching))
    ordered = (tuple(layer.name for layer in graph.layers if layer.name in group) for group in groups)
    return tuple(group for group in ordered if len(group) > 1)


def _check_joint(graph: Graph, settings: Mapping[str, RangeSettings], group: tuple[str, ...]) -> None:
    """Refuse a group whose layers cannot have one range."""
    *others, last = group
    positions = {layer.name: index for index, layer in enumerate(graph.layers)}
    together = " and ".join(group)
    for name in others:
        if settings[name] != settings[last]:
            raise QuantizationError(
                f"joint_quant gives {together} one activation range, but their activation settings differ; make them "
                "equal or set joint_quant to false",
                layer=name,
            )
        blob = graph.by_name[name].bottoms[0]
        if any(blob in layer.tops for layer in graph.layers[positions[name] : positions[last]]):
            raise QuantizationError(
                f"joint_quant gives {together} one activation range, but its input '{blob}' is overwritten in place "
                "before the last of them; set joint_quant to false",
                layer=name,
            )


def _observer(
    observed: list[Layer], settings: RangeSettings, batch_num: int, with_offset: bool, record_file: Path
) -> caffe_pb2.LayerParameter:
    name = f"{observed[0].name}_0_{settings.algorithm}_layer"
    bottoms = [layer.bottoms[0] for layer in observed]
    message = caffe_pb2.LayerParameter(name=name, type=settings.algorithm.upper(), bottom=bottoms)
    common: dict[str, Any] = {
        "batch_num": batch_num,
        "with_offset": with_offset,
        "object_layer": [layer.name for layer in observed],
        "record_file_path": str(record_file),
    }
    if settings.algorithm == "hfmg":
        message.hfmg_param.CopyFrom(caffe_pb2.HFMGParameter(num_of_bins=settings.num_of_bins, **common))
        return message
    message.ifmr_param.CopyFrom(
        caffe_pb2.IFMRParameter(
            search_range_start=settings.search_start,
            search_range_end=settings.search_end,
            search_step=settings.search_step,
            max_percentile=settings.max_percentile,
            min_percentile=settings.min_percentile,
            **common,
        )
    )
    return message
