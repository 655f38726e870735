"""What the integers of a deploy model stand for: float32 weights, as in the fake-quant model.

They are the same but for the biases, which a deploy model has in units of the sums of products: int32. `IntegerPlan`
finds every integer again, so that the network runs as on the chip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autonuq.graph.model import Array, Graph, Layer
from autonuq.graph.operators.quantizers import quant_factors


def unpack_parameters(packed: Array) -> tuple[Array, Array, Array]:
    """Return scale, shift N and weight offset, ndarrays of float32, from a deploy model's DeQuant layer.

    Parameters
    ----------
    packed : ndarray of uint64, shape (C,)
        As `passes.device_parameters` makes it.
    """
    low = np.ascontiguousarray(packed.astype(np.uint32))
    shift, offset = ((packed >> np.uint64(bits)).astype(np.uint8) for bits in (32, 40))
    return low.view(np.float32), shift.astype(np.float32), offset.view(np.int8).astype(np.float32)


def is_deployed(graph: Graph) -> bool:
    """Say whether a graph has layers with int8 weights."""
    return any(_is_integer(layer) for layer in graph.layers)


def in_float(graph: Graph) -> Graph:
    """Return the graph with the float32 weights and biases that integers stand for.

    Raises
    ------
    ModelError
        A layer with int8 weights stands between no Quant and DeQuant layer.
    """
    if not is_deployed(graph):
        return graph
    return graph.with_layers(_converted(graph))


def bias_units(graph: Graph) -> dict[str, float]:
    """Return what one unit of an int32 bias stands for, the largest of each layer that has one."""
    return {
        producer.name: float(layer.blobs[0].max())
        for index, layer in enumerate(graph.layers)
        if layer.type == "DeQuant" and len((producer := graph.layers[graph.sources[index][0][0]]).blobs) > 1
    }


def _is_integer(layer: Layer) -> bool:
    return bool(layer.blobs) and layer.blobs[0].dtype == np.int8


def _converted(graph: Graph) -> Iterator[Layer]:
    for index, layer in enumerate(graph.layers):
        yield layer.with_(blobs=_blobs(graph, index)) if _is_integer(layer) else layer


def _blobs(graph: Graph, index: int) -> Sequence[Array]:
    """Return a layer's float32 weights and bias."""
    layer = graph.layers[index]
    quantizer = graph.layers[graph.sources[index][0][0]]
    followers = [graph.layers[reader] for reader in graph.readers.get((index, 0), ())]
    dequantizers = [follower for follower in followers if follower.type == "DeQuant"]
    if quantizer.type != "Quant" or len(dequantizers) != 1:
        raise graph.error(
            layer,
            "has int8 weights, but no Quant layer before it and DeQuant layer behind it say what they stand for: take "
            "the prototxt that belongs to the caffemodel",
        )
    factor, _ = quant_factors(quantizer)
    step = dequantizers[0].blobs[0].astype(np.float32)
    codes, *bias = layer.blobs
    axis = 1 if layer.type == "Deconvolution" else 0
    shape = [1] * codes.ndim
    shape[axis] = -1
    scale = (step.astype(np.float64) * factor).reshape(shape)
    return [(codes * scale).astype(np.float32), *((one * step.astype(np.float64)).astype(np.float32) for one in bias)]
