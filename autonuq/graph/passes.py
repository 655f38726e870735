"""Passes: each takes a graph and returns a new one, for which `Graph.validate` holds.

Source: AMCT's fusion and quantization pages; names of inserted layers as in ATC's public ResNet-50 model.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from autonuq.errors import QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.capability import CHANNEL_WISE_TYPES, Capability
from autonuq.graph.layers import DEPTHWISE_TYPES, blob_shapes, convolution, infer_known_shapes
from autonuq.graph.lowering import batch_norm_rescaling
from autonuq.graph.model import Array, Graph, Layer, Shape, Value, weight_parameters
from autonuq.graph.record import Factors
from autonuq.graph.shapes.channels import uses_stored_statistics

FUSIBLE_TYPES = frozenset({"Convolution", "Deconvolution", "InnerProduct", *DEPTHWISE_TYPES})


def fold_batch_norm(graph: Graph, skip: Iterable[str] = ()) -> Graph:
    """Fold BatchNorm and Scale into the layer with weights before or behind them.

    Parameters
    ----------
    graph : Graph
        With blobs.
    skip : iterable of str
        Layers that are left as they are.

    Notes
    -----
    Both compute y = x * f + g per channel: f = 1 / sqrt(variance + eps) and g = -mean * f, or f = gamma and g = beta.
    Behind the weights w' = w * f and b' = b * f + g per output channel; before them w' = w * f per input channel and
    b' = b + sum(w * g) over an output's inputs. All is computed in float64.
    """
    folded = dict(enumerate(graph.layers))
    for index, chain in foldable_chains(graph, skip).items():
        layer = graph.layers[index]
        for position in [each for each in reversed(chain) if each < index]:
            layer = _absorb_preceding(layer, folded.pop(position))
        for position in [each for each in chain if each > index]:
            layer = _absorb_following(layer, folded.pop(position))
        folded[index] = layer
    return graph.with_layers(folded.values()).validate()


def foldable_chains(graph: Graph, skip: Iterable[str] = ()) -> dict[int, list[int]]:
    """Return, for every layer that can absorb others, the indices of those, in order.

    Notes
    -----
    BatchNorm with stored statistics and Scale per channel, each alone or both, fold where nobody else reads what
    disappears: into the layer before them; where none there can take them, skipped or not, into the layer behind them.
    There a padded Convolution keeps what it reads if that shifts, because the padding is not shifted; so does a
    Deconvolution, whose windows overlap differently at the edge. The graph may lack its blobs: whether a layer shifts
    is read from its parameters.
    """
    skipped = set(skip)
    behind = {index: _chain_behind(graph, index) for index, layer in enumerate(graph.layers) if _can_absorb(layer)}
    taken = {position for chain in behind.values() for position in chain}
    chains = {index: _chain_before(graph, index, taken) + chain for index, chain in behind.items()}
    return {index: chain for index, chain in chains.items() if chain and graph.layers[index].name not in skipped}


def _can_absorb(layer: Layer) -> bool:
    """One bottom and one top, and channels along axis 1 as BatchNorm and Scale have them."""
    if layer.type not in FUSIBLE_TYPES or len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return False
    return weight_parameters(layer.message).axis == 1


def _chain_behind(graph: Graph, index: int) -> list[int]:
    """Return what only a layer's foldable readers read of it, one after the other."""
    chain: list[int] = []
    while len(readers := graph.readers.get((chain[-1] if chain else index, 0), ())) == 1:
        if not _is_foldable(graph.layers[readers[0]]):
            break
        chain.append(readers[0])
    return chain


def _chain_before(graph: Graph, index: int, taken: Container[int]) -> list[int]:
    """Return the foldable layers through which a layer alone reads, as far as it can do without them."""
    chain: list[int] = []
    while True:
        reader = chain[0] if chain else index
        (position, top) = graph.sources[reader][0]
        layer = graph.layers[position]
        if position in taken or not _is_foldable(layer) or graph.readers[position, top] != (reader,):
            return chain
        if _shifts(layer) and not _takes_shifts(graph.layers[index]):
            return chain
        between = (graph.layers[other] for other in range(position + 1, index) if other not in chain)
        if any(layer.bottoms[0] in other.tops for other in between):  # what it reads is overwritten in place by then
            return chain
        chain.insert(0, position)


def _is_foldable(layer: Layer) -> bool:
    """Say whether a layer computes x * f + g per channel with f and g that do not depend on x."""
    if layer.type == "BatchNorm":
        return uses_stored_statistics(layer)
    scale = layer.message.scale_param
    return layer.type == "Scale" and len(layer.bottoms) == 1 and (scale.axis, scale.num_axes) == (1, 1)


def _shifts(layer: Layer) -> bool:
    return layer.type == "BatchNorm" or layer.message.scale_param.bias_term


def _takes_shifts(layer: Layer) -> bool:
    """Say whether a shift of a layer's input shifts each output channel by the same everywhere."""
    parameters = layer.message.convolution_param
    padded = any((*parameters.pad, parameters.pad_h, parameters.pad_w))
    return layer.type == "InnerProduct" or (layer.type != "Deconvolution" and not padded)


def _absorb_following(layer: Layer, follower: Layer) -> Layer:
    factor, shift = _factor_and_shift(follower)
    weights = layer.blobs[0] * _along_outputs(layer, factor)
    bias = (layer.blobs[1] if len(layer.blobs) > 1 else 0.0) * factor + shift
    blobs = (weights.astype(np.float32), bias.astype(np.float32))
    return layer.with_(tops=follower.tops, blobs=blobs, bias_term=True)


def _absorb_preceding(layer: Layer, preceding: Layer) -> Layer:
    factor, shift = _factor_and_shift(preceding)
    weights = (layer.blobs[0] * _along_inputs(layer, factor)).astype(np.float32)
    if not _shifts(preceding):
        return layer.with_(bottoms=preceding.bottoms, blobs=(weights, *layer.blobs[1:]))
    shifted = layer.blobs[0] * _along_inputs(layer, shift)
    outputs = 1 if layer.type == "InnerProduct" and layer.message.inner_product_param.transpose else 0
    bias = np.sum(shifted, axis=tuple(axis for axis in range(shifted.ndim) if axis != outputs))
    bias += layer.blobs[1] if len(layer.blobs) > 1 else 0.0
    return layer.with_(bottoms=preceding.bottoms, blobs=(weights, bias.astype(np.float32)), bias_term=True)


def _factor_and_shift(layer: Layer) -> tuple[Array, Array]:
    """Return f and g of y = x * f + g, float64, shape (channels,)."""
    if layer.type == "BatchNorm":
        return batch_norm_rescaling(layer)
    factor = layer.blobs[0].astype(np.float64)
    return factor, layer.blobs[1].astype(np.float64) if len(layer.blobs) > 1 else np.zeros_like(factor)


def _along_outputs(layer: Layer, factor: Array) -> Array:
    """Shape one factor per output channel so that it multiplies the weights."""
    shape = layer.blobs[0].shape
    if layer.type == "InnerProduct" and layer.message.inner_product_param.transpose:
        return factor
    if layer.type != "Deconvolution":
        return factor.reshape(-1, *(1,) * (len(shape) - 1))
    return _in_groups(factor, shape)


def _along_inputs(layer: Layer, factor: Array) -> Array:
    """Shape one factor per input channel so that it multiplies the weights."""
    shape = layer.blobs[0].shape
    if layer.type == "InnerProduct":
        transposed = layer.message.inner_product_param.transpose
        rows = np.repeat(factor, shape[0 if transposed else 1] // len(factor))  # a channel's values are neighbours
        return rows[:, None] if transposed else rows
    if layer.type == "Deconvolution":
        return factor.reshape(-1, *(1,) * (len(shape) - 1))
    return _in_groups(factor, shape)


def _in_groups(factor: Array, shape: Shape) -> Array:
    """Shape factors along the axis of weights that holds one group's channels; axis 0 holds the groups' other ones."""
    groups = len(factor) // shape[1]
    rows = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))


def capabilities(graph: Graph, *, skip_fusion: Iterable[str] = (), do_fusion: bool = True) -> tuple[Capability, ...]:
    """Say of every layer what quantization can do with it; the graph may be folded or not, with or without blobs.

    Behind a `Python` layer that may not run, a layer's weights have the shape that they have in the file.
    """
    shapes = infer_known_shapes(graph)
    fusible = foldable_chains(graph)
    chains = foldable_chains(graph, skip_fusion) if do_fusion else {}
    absorbed = {position: graph.layers[index].name for index, chain in chains.items() for position in chain}
    found = []
    for index, layer in enumerate(graph.layers):
        known = all(bottom in shapes for bottom in layer.bottoms)
        blobs = blob_shapes(graph, layer, shapes) if known else [blob.shape for blob in layer.blobs]
        weight = blobs[0] if blobs and layer.type in WEIGHT_TYPES else ()
        if index in absorbed:
            quantizable, nuq, reason = False, False, f"is folded into '{absorbed[index]}'"
        else:
            quantizable, nuq, reason = _capability(layer, weight)
        weights = int(np.prod(weight, dtype=np.int64)) if weight else 0
        found.append(Capability(layer.name, layer.type, weights, weight, quantizable, nuq, index in fusible, reason))
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
