"""One plan's network as one value: its codes, its blobs, its graphs. `outputs` and `formats` write it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.quantized import QuantizedModel
from autonuq.errors import QuantizationError
from autonuq.graph.model import Graph, Layer
from autonuq.graph.passes import QuantizedBlobs, insert_quantizers
from autonuq.graph.record import Factors
from autonuq.quant.curve import Curve
from autonuq.quant.points import OperatingPoints
from autonuq.quant.uniform import UniformWeights, quantize_bias

Plan = Mapping[str, int]
"""Layer name -> index of a point on the layer's curve; layers that are missing have point 0, the best int8."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a layer became when its network was built in order.

    Attributes
    ----------
    codes : ndarray of int8, in the shape of the weights
    bias : ndarray of float32, in the shape of the layer's second blob, or None
    """

    codes: NDArray[np.int8]
    bias: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A quantized network under one plan.

    Parameters
    ----------
    model : QuantizedModel
        Calibrated, unless only its weights are asked for.
    points : mapping of str to OperatingPoints
        What the plan chooses from.
    plan : mapping of str to int
        None of both: the model as it is, uniform or restricted to levels.
    made : mapping of str to Made
        What takes the place of the points' codes and biases, where the network was built in order.
    """

    model: QuantizedModel
    points: Mapping[str, OperatingPoints] = field(default_factory=dict)
    plan: Plan = field(default_factory=dict)
    made: Mapping[str, Made] = field(default_factory=dict)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The curve that a plan's points lie on, of every layer with int8 weights."""
        return {name: found.curve for name, found in self.points.items()}

    def with_plan(self, plan: Plan) -> Candidate:
        """Return the same network under another plan."""
        return replace(self, plan=plan, made={})

    def leaving_float(self, names: Collection[str]) -> Candidate:
        """Return the same network with some layers float; neither a plan nor the points have them."""
        return Candidate(
            self.model.leaving_float(names),
            {name: points for name, points in self.points.items() if name not in names},
            {name: point for name, point in self.plan.items() if name not in names},
            {name: made for name, made in self.made.items() if name not in names},
        )

    @cached_property
    def factors(self) -> dict[str, Factors]:
        """The quantization factors of every quantized layer, the steps of its weights as the plan has them."""
        found = dict(self.model.factors)
        for name, points in self.points.items():
            if points.scale is not None:
                scale = tuple(points.scale[self.plan.get(name, 0)].tolist())
                found[name] = replace(found[name], scale_w=scale, offset_w=(0,) * len(scale))
        return found

    @property
    def nuq_layers(self) -> tuple[str, ...]:
        """Layers that have a codebook, by the plan or from `restrict_levels`, in network order."""
        return tuple(name for name in self.model.weights if self.plan.get(name, 0) or self.model.factors[name].cluster)

    def codes(self, name: str) -> NDArray[np.int8]:
        """Return a layer's int8 codes, in the shape of its weights."""
        if name in self.made:
            return self.made[name].codes
        if name not in self.points:
            return self.model.weights[name].codes
        codes: NDArray[np.int8] = self.points[name].codes[self.plan.get(name, 0)]
        return codes

    def biases(self, layer: Layer) -> tuple[NDArray[Any], ...]:
        """Return a layer's blobs behind its weights, with what the bias takes up of their error."""
        made, points = self.made.get(layer.name), self.points.get(layer.name)
        if made is not None:
            return () if made.bias is None else (made.bias,)
        if points is None or points.bias is None:
            return layer.blobs[1:]
        taken_up = points.bias[self.plan.get(layer.name, 0)]
        return tuple((bias + taken_up.reshape(bias.shape)).astype(np.float32) for bias in layer.blobs[1:])

    def levels(self, name: str) -> list[int]:
        """Return the sorted int8 steps that a layer's codes use; O(weights)."""
        return [int(level) for level in np.unique(self.codes(name))]

    def weights(self, name: str) -> UniformWeights:
        """Return a layer's codes with their scales."""
        scale = np.asarray(self.factors[name].scale_w, np.float32)
        return replace(self.model.weights[name], codes=self.codes(name), scale=scale)

    def blobs(self, layer: Layer) -> tuple[NDArray[Any], ...]:
        """Return a layer's float32 blobs, its weights as the plan has them."""
        if layer.name not in self.model.weights:
            return layer.blobs
        return (self.weights(layer.name).dequantize(), *self.biases(layer))

    def weights_only_graph(self) -> Graph:
        """Return the network with the plan's weights, its activations left float."""
        graph = self.model.graph
        return graph.with_layers(layer.with_(blobs=self.blobs(layer)) for layer in graph.layers)

    def fake_quant_graph(self) -> Graph:
        """Return the network with the plan's weights and fake-quantized inputs, as it is scored."""
        graph = self.model.graph
        return self._with_quantizers({name: self.blobs(graph.by_name[name]) for name in self.model.factors})

    def deploy_graph(self) -> Graph:
        """Return the network for ATC: int8 weights, int32 biases, packed dequantization parameters.

        Raises
        ------
        QuantizationError
            A bias does not fit int32.
        """
        return self._with_quantizers({name: self._device_blobs(name) for name in self.model.factors}, deploy=True)

    def _with_quantizers(self, blobs: Mapping[str, tuple[NDArray[Any], ...]], *, deploy: bool = False) -> Graph:
        quantized = {name: QuantizedBlobs(own, self.factors[name]) for name, own in blobs.items()}
        return insert_quantizers(self.model.graph, quantized, deploy=deploy)

    def _device_blobs(self, name: str) -> tuple[NDArray[Any], ...]:
        """Return a layer's int8 codes and int32 biases; AVE Pooling has neither."""
        if name not in self.model.weights:
            return ()
        biases = self.biases(self.model.graph.by_name[name])
        return (self.codes(name), *(_device_bias(name, bias, self.factors[name]) for bias in biases))


def _device_bias(name: str, bias: NDArray[np.float32], factors: Factors) -> NDArray[np.int32]:
    try:
        return quantize_bias(bias, float(factors.scale_d or 0), np.asarray(factors.scale_w, np.float32))
    except QuantizationError as error:
        raise QuantizationError(str(error), layer=name) from error
