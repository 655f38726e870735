"""From a float network to int8 weights: by a configuration, or by a record that was made elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.graph.capability import CHANNEL_WISE_TYPES, Capability
from autonuq.graph.hosted.permission import is_own
from autonuq.graph.layers import infer_shapes
from autonuq.graph.model import Graph, Layer, Shape
from autonuq.graph.passes import WEIGHT_TYPES, capabilities, fold_batch_norm
from autonuq.graph.record import Factors
from autonuq.quant.config import LayerSettings, QuantizationConfig, WeightSettings
from autonuq.quant.steps import cluster_of, restrict_codes, snap_codes
from autonuq.quant.uniform import UniformWeights, on_grid, quantize_weights
from autonuq.runtime.calibration import OBSERVER_TYPES
from autonuq.runtime.moments import load_moments


@dataclass(frozen=True)
class QuantizedModel:
    """A network with the int8 codes of its layers.

    Attributes
    ----------
    graph : Graph
        Float32, folded.
    config : QuantizationConfig
    weights : mapping of str to UniformWeights
        By name of every quantized layer that has weights.
    factors : mapping of str to Factors
        By name of every quantized layer; scale_d is None before the calibration.
    capabilities : tuple of Capability
        Of every layer of the graph as it was before folding.
    """

    graph: Graph
    config: QuantizationConfig
    weights: Mapping[str, UniformWeights]
    factors: Mapping[str, Factors]
    capabilities: tuple[Capability, ...]

    @cached_property
    def nuq_layers(self) -> tuple[str, ...]:
        """Layers that the configuration wants a codebook for and that can carry one, in network order."""
        able = {capability.name for capability in self.capabilities if capability.nuq}
        return tuple(
            name for name in self.weights if name in able and self.config.layers[name].weights.algorithm == "nuq"
        )

    @cached_property
    def folded(self) -> dict[str, tuple[str, ...]]:
        """Layers that were folded into each layer, in network order."""
        found: dict[str, tuple[str, ...]] = {}
        for capability in self.capabilities:
            if capability.name not in self.graph.by_name:
                host = capability.reason.removeprefix("is folded into ").strip("'")
                found[host] = (*found.get(host, ()), capability.name)
        return found

    @cached_property
    def weight_counts(self) -> dict[str, int]:
        """Number of weights of every layer with int8 weights."""
        return {name: uniform.codes.size for name, uniform in self.weights.items()}

    def leaving_float(self, names: Collection[str]) -> QuantizedModel:
        """Return the same network with some layers float after all; the configuration stays that of the calibration."""
        return replace(
            self,
            weights={name: weights for name, weights in self.weights.items() if name not in names},
            factors={name: factors for name, factors in self.factors.items() if name not in names},
        )


def default_config(
    graph: Graph,
    *,
    batch_num: int = QuantizationConfig.batch_num,
    activation_offset: bool = QuantizationConfig.activation_offset,
    skip_layers: Iterable[str] = (),
) -> QuantizationConfig:
    """Quantize every layer that can be, with a codebook wherever possible.

    Raises
    ------
    QuantizationError
        A layer to skip does not exist.
    """
    skipped = set(skip_layers)
    unknown = skipped - set(graph.by_name)
    if unknown:
        raise QuantizationError(f"skip_layers names layers that do not exist: {', '.join(sorted(unknown))}")
    settings = {}
    for capability in capabilities(graph):
        if capability.quantizable and capability.name not in skipped:
            weights = WeightSettings(
                "nuq" if capability.nuq else "arq", channel_wise=capability.type in CHANNEL_WISE_TYPES
            )
            settings[capability.name] = LayerSettings(weights=weights)
    return QuantizationConfig(settings, batch_num=batch_num, activation_offset=activation_offset)


def refuse_observers(graph: Graph) -> None:
    """Refuse a network that a calibration was made of: to run it writes to whatever file it names.

    Raises
    ------
    ModelError
        Names the layer.
    """
    for layer in graph.layers:
        kind = layer.message.python_param.layer if layer.type == "Python" and is_own(layer) else layer.type
        if kind in OBSERVER_TYPES:
            raise graph.error(
                layer,
                f"type '{kind}' is a calibration's, and writes to the file that it names; take the network that was "
                "there before the calibration",
            )


def quantize(graph: Graph, config: QuantizationConfig) -> QuantizedModel:
    """Fold the graph and quantize the weights of every configured layer to int8.

    Raises
    ------
    QuantizationError
        A layer of the configuration does not exist, cannot be quantized, or its weights are not finite.
    ModelError
        See `refuse_observers`.
    """
    refuse_observers(graph)
    able = capabilities(graph, skip_fusion=config.skip_fusion_layers, do_fusion=config.do_fusion)
    _check_config(config, able)
    folded = fold_batch_norm(graph, config.skip_fusion_layers) if config.do_fusion else graph
    weights, factors = {}, {}
    for layer in folded.layers:
        if layer.name not in config.layers:
            continue
        try:
            uniform = quantize_weights(
                _kernel(layer), channel_axis=_channel_axis(layer, config.layers[layer.name].weights.channel_wise)
            )
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=layer.name) from error
        if layer.type in WEIGHT_TYPES:
            weights[layer.name] = uniform
        scale = tuple(uniform.scale.tolist())
        factors[layer.name] = Factors(scale_w=scale, offset_w=(0,) * len(scale))
    return QuantizedModel(folded, config, weights, factors, able)


def _check_config(config: QuantizationConfig, able: Iterable[Capability]) -> None:
    known = {capability.name: capability for capability in able}
    for name in config.layers:
        if name not in known:
            raise QuantizationError("is configured, but the network has no layer of this name", layer=name)
        if not known[name].quantizable:
            raise QuantizationError(f"cannot be quantized: {known[name].reason}", layer=name)


def _kernel(layer: Layer) -> NDArray[np.float32]:
    """Return a layer's weights; AVE Pooling has none, its kernel is the constant 1/area."""
    if layer.type != "Pooling":
        return layer.blobs[0]
    message = layer.message.pooling_param
    area = (message.kernel_h or message.kernel_size) * (message.kernel_w or message.kernel_size)
    return np.full((1,), 1 / area, np.float32)


def _channel_axis(layer: Layer, channel_wise: bool) -> int | None:
    """Return the axis of output channels in the weight blob, or None for one scale."""
    if not channel_wise or layer.type not in CHANNEL_WISE_TYPES:
        return None
    return 0 if layer.type == "Convolution" else 1


def restrict_levels(model: QuantizedModel, record_file: Path | None = None) -> QuantizedModel:
    """Restrict every layer that is to have a codebook to the number of levels that its settings say.

    Parameters
    ----------
    model : QuantizedModel
        With uniform codes.
    record_file : Path, optional
        Beside it the calibration left the second moments of the layers' inputs; without them weights count alone.

    Returns
    -------
    QuantizedModel
        Its weights hold levels only, its factors the `cluster`; a plan has nothing left to choose.
    """
    weights, factors = dict(model.weights), dict(model.factors)
    for name in model.nuq_layers:
        steps = model.config.layers[name].weights.num_steps
        layer = model.graph.by_name[name]
        inputs = () if record_file is None else load_moments(record_file, layer)
        try:
            weights[name] = restrict_codes(layer.blobs[0], weights[name], steps, inputs)
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=name) from error
        factors[name] = replace(factors[name], cluster=cluster_of(weights[name].codes, steps))
    return replace(model, weights=weights, factors=factors)


def recorded(graph: Graph, records: Mapping[str, Factors], path: Path) -> QuantizedModel:
    """Quantize a float network by the factors of a record file that was made elsewhere.

    Parameters
    ----------
    graph : Graph
        With blobs, not folded.
    records : mapping of str to Factors
        By layer name, complete; every other layer stays float. Weights of a layer with a `cluster` go to its levels.
    path : Path
        Of the record file, for messages.

    Raises
    ------
    QuantizationError
        The record does not match the network.
    """
    skip_fusion = tuple(name for name, factors in records.items() if factors.skip_fusion)
    able = capabilities(graph, skip_fusion=skip_fusion)
    config = QuantizationConfig({name: LayerSettings() for name in records}, skip_fusion_layers=skip_fusion)
    _check_config(config, able)
    folded = fold_batch_norm(graph, skip_fusion)
    shapes = infer_shapes(folded)
    weights, settings = {}, {}
    for layer in folded.layers:
        if layer.name not in records:
            continue
        factors, kernel = records[layer.name], _kernel(layer)
        axis = _channel_axis(layer, len(factors.scale_w) > 1)
        _check_recorded(layer, factors, 1 if axis is None else kernel.shape[axis], shapes[layer.bottoms[0]], path)
        if layer.type in WEIGHT_TYPES:
            _check_folding(layer, graph.by_name[layer.name], factors, axis, path)
            uniform = on_grid(kernel, np.asarray(factors.scale_w, np.float32), axis)
            levels = np.asarray(factors.cluster, np.int8)
            weights[layer.name] = snap_codes(uniform, levels) if factors.cluster else uniform
        settings[layer.name] = LayerSettings(weights=WeightSettings("nuq" if factors.cluster else "arq"))
    return QuantizedModel(folded, replace(config, layers=settings), weights, records, able)


def _check_folding(layer: Layer, unfolded: Layer, factors: Factors, axis: int | None, path: Path) -> None:
    """Refuse factors of a layer that was not folded where it is now: they say so by fitting its own weights."""

    def fit(kernel: NDArray[np.float32]) -> bool:
        return np.allclose(quantize_weights(kernel, channel_axis=axis).scale, factors.scale_w, rtol=0.01, atol=0)

    if layer is not unfolded and not fit(layer.blobs[0]) and fit(unfolded.blobs[0]):
        raise QuantizationError(
            "scale_w must fit the weights after BatchNorm and Scale are folded into them. It fits them as they are "
            "instead; if the record was made without this folding, add skip_fusion: true to the layer's entry",
            path=path,
            layer=layer.name,
        )


def _check_recorded(layer: Layer, factors: Factors, channels: int, bottom: Shape, path: Path) -> None:
    """Refuse factors that cannot belong to a layer whose weights have so many scales and whose input has this shape."""
    if len(factors.scale_w) != channels:
        rule = f"scale_w must have length {channels}" if channels > 1 else "scale_w must have length 1"
        raise QuantizationError(f"{rule}. Got {len(factors.scale_w)} instead.", path=path, layer=layer.name)
    if len(factors.shift_bit) not in (0, channels):
        rule = f"shift_bit must be left out or have length {channels}"
        raise QuantizationError(f"{rule}. Got {len(factors.shift_bit)} instead.", path=path, layer=layer.name)
    own = (*bottom[1:], 1, 1, 1)[:3]
    found = (factors.channels, factors.height, factors.width)
    if found[0] != own[0]:
        raise QuantizationError(
            f"channels, height, width must be those of the layer's input, {own}. Got {found} instead; is the record of "
            "another network?",
            path=path,
            layer=layer.name,
        )
