"""ONNX nodes that were made for one batch size, made over for any.

A lowering writes sizes as constants: shapes of a Reshape, limits of a Slice. Lowered once more for one item more, the
same nodes come out, and the constants that differ, and by how much, tell where the batch size stands in them.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from autonuq.graph.batch import MixesItems
from autonuq.graph.model import Array
from autonuq.graph.operators.builder import Builder


def free_batch(builder: Builder, one_more: Builder, size: int) -> None:
    """Replace the constants of `builder` that hold the batch size.

    Parameters
    ----------
    builder, one_more : Builder
        With the nodes of one network, lowered for `size` and for `size + 1` items.

    Raises
    ------
    MixesItems
        The nodes differ in something else; `builder` is as it was.

    Notes
    -----
    The network must treat items apart (`batch.find_batch`), so every size is a constant plus a multiple of the batch
    size. In a Reshape that is the size that ONNX finds by itself, -1; elsewhere it is computed when the model runs.
    """
    if [node.SerializeToString() for node in builder.nodes] != [node.SerializeToString() for node in one_more.nodes]:
        raise MixesItems("its operators have the batch size among their attributes")
    steps = {
        name: step
        for name, array in builder.initializers.items()
        if (step := _step(name, array, one_more.initializers[name])) is not None
    }
    readers = {name: [node for node in builder.nodes if name in node.input] for name in steps}
    added: list[NodeProto] = []
    for name, step in steps.items():
        array = builder.initializers.pop(name)
        if all(node.op_type == "Reshape" for node in readers[name]) and _leaves_one_out(array, step):
            builder.initializers[name] = np.where(step != 0, -1, array)
        else:
            added += _computed(builder, name, array - step * size, step)
    builder.nodes[:0] = added


def _step(name: str, array: Array, other: Array) -> Array | None:
    """Return what an item more adds to a constant, None if nothing."""
    if array is other or array.shape == other.shape and np.array_equal(array, other, equal_nan=True):
        return None
    if array.shape != other.shape or array.dtype != np.int64 or array.ndim != 1:
        raise MixesItems(f"constant '{name}' is made for it")
    return np.asarray(other - array)


def _leaves_one_out(array: Array, step: Array) -> bool:
    return np.count_nonzero(step) == 1 and -1 not in array


def _computed(builder: Builder, name: str, fixed: Array, step: Array) -> list[NodeProto]:
    """Return the nodes that make a constant of the batch size at run time, under the constant's name."""
    batch, scaled = f"{name}:batch", f"{name}:scaled"
    builder.initializers |= {f"{name}:step": step, f"{name}:fixed": fixed}
    first = next(iter(builder.inputs))
    return [
        helper.make_node("Shape", [first], [batch], name=batch, start=0, end=1),
        helper.make_node("Mul", [batch, f"{name}:step"], [scaled], name=scaled),
        helper.make_node("Add", [scaled, f"{name}:fixed"], [name], name=name),
    ]
