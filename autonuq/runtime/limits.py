"""What a network takes of memory at least, held against what is left before any of it is made.

A prototxt of a hundred bytes can declare blobs of gigabytes. Without this the system would end the process, or others,
in the middle of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autonuq.errors import RuntimeFailure
from autonuq.graph.files import expected_blobs
from autonuq.graph.layers import convolution, infer_shapes
from autonuq.graph.model import FED_LAYERS, Graph, Layer, Shape
from autonuq.graph.shapes.windows import channel_axis
from autonuq.runtime.device import selected_device
from autonuq.runtime.memory import available_memory

_VALUE_BYTES = 4
_NOT_ASKED_BYTES = 1 << 26  # less is not worth asking the system


@dataclass
class _Arena:
    """The memory for blobs that all sessions share: it keeps what the largest pass took, for those that follow."""

    kept_bytes: int = 0


_arena = _Arena()


def refuse_blob(name: str, shape: Shape) -> None:
    """Refuse an array for a blob that memory does not hold.

    Raises
    ------
    RuntimeFailure
    """
    taken = _VALUE_BYTES * math.prod(shape)
    if (left := _lacking(taken)) is not None:
        raise RuntimeFailure(
            f"blob '{name}' of shape {shape} takes {_gigabytes(taken)}, but {_gigabytes(left)} of memory are left: "
            "reshape it to a smaller batch or input"
        )


def refuse_weights(graph: Graph) -> None:
    """Refuse to make weights that memory does not hold, for a network that comes without a caffemodel.

    Raises
    ------
    RuntimeFailure
    """
    sizes = {name: _VALUE_BYTES * sum(map(math.prod, shapes)) for name, shapes in expected_blobs(graph).items()}
    taken = sum(sizes.values())
    if (left := _lacking(taken)) is not None:
        raise RuntimeFailure(
            f"the network's weights take {_gigabytes(taken)}, most of them this layer's, but {_gigabytes(left)} of "
            "memory are left: take a smaller network",
            path=graph.path,
            layer=max(sizes, key=sizes.__getitem__),
        )


def refuse_pass(graph: Graph, inputs: Mapping[str, Shape] | None = None) -> None:
    """Refuse a forward pass whose blobs memory does not hold.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to tuple of int, optional
        Shapes of inputs that differ from the prototxt's.

    Raises
    ------
    RuntimeFailure
    """
    if not selected_device().is_cpu:  # an accelerator's memory is not this one
        return
    layer, taken = pass_bytes(graph, infer_shapes(graph, inputs))
    if (left := _lacking(taken - _arena.kept_bytes)) is not None:
        raise RuntimeFailure(
            f"a pass takes {_gigabytes(taken)} at least where this layer runs, but {_gigabytes(left)} of memory are "
            "left: take a smaller batch or input",
            path=graph.path,
            layer=layer,
        )
    _arena.kept_bytes = max(_arena.kept_bytes, taken)


def pass_bytes(graph: Graph, shapes: Mapping[str, Shape]) -> tuple[str, int]:
    """Return the layer at which a forward pass needs the most, and how much that is at least, in bytes.

    Parameters
    ----------
    graph : Graph
        With at least one layer.
    shapes : mapping of str to tuple of int
        Of every blob.

    Notes
    -----
    What is fed is there twice, as the blob's own array and as the engine's input. Another blob is there from the layer
    that makes it to the last one that reads it; an output stays. What the engine needs within a layer is counted for
    Deconvolution alone, where it is what every weight makes of every pixel of an item.
    **Cost**: O(layers).
    """
    last = {blob: index for index, layer in enumerate(graph.layers) for blob in (*layer.bottoms, *layer.tops)}
    last |= dict.fromkeys(graph.outputs, len(graph.layers))
    sizes = {blob: _VALUE_BYTES * math.prod(shape) for blob, shape in shapes.items()}
    fed = {top for layer in graph.layers if layer.type in FED_LAYERS for top in layer.tops}
    present = 2 * sum(sizes[blob] for blob in fed)
    there = set(fed)
    most = (graph.layers[0].name, present)
    for index, layer in enumerate(graph.layers):
        made = set(layer.tops) - there
        there |= made
        present += sum(sizes[blob] for blob in made)
        within = _VALUE_BYTES * _products(layer, shapes[layer.bottoms[0]]) if layer.type == "Deconvolution" else 0
        most = max(most, (layer.name, present + within), key=lambda one: one[1])
        done = {blob for blob in {*layer.bottoms, *layer.tops} - fed if last[blob] == index} & there
        there -= done
        present -= sum(sizes[blob] for blob in done)
    return most


def _products(layer: Layer, bottom: Shape) -> int:
    axis = channel_axis(layer, bottom)
    found = convolution(layer, len(bottom) - axis - 1)
    return found.num_output // found.group * math.prod((*found.kernel, *bottom[axis + 1 :]))


def _lacking(taken: int) -> float | None:
    """Return what is left if it is less than what is taken, else None."""
    left = available_memory() if taken > _NOT_ASKED_BYTES else None
    return left if left is not None and taken > left else None


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
