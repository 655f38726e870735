"""How far a network's results diverge from the original's: what can be said without labels.

Of a head that a softmax is taken of: KL(p || p^), mean over its positions, in nats. Of any other: half of the mean
squared error of its values in units of their variance. Of several heads: the sum. To second order in small errors both
are what `output_side` takes apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autonuq.graph.heads import Head
from autonuq.graph.layers import canonical_axis
from autonuq.graph.model import Array

Values = Mapping[str, Sequence[Array]]
"""Blob of a head -> its value in each pass."""


def divergences(heads: Sequence[Head], original: Values, changed: Values) -> list[NDArray[np.float64]]:
    """Return the divergence of each item of each pass, shape (items,) of a pass; infinite where it is not finite.

    Values whose items cannot be told apart count as one item.
    """
    passes = len(next(iter(original.values())))
    spreads = {head.blob: _spread(original[head.blob]) for head in heads if head.classes is None}
    found = []
    for index in range(passes):
        items = min(len(original[head.blob][index]) for head in heads)
        total = np.zeros(items)
        for head in heads:
            own, other = (values[head.blob][index] for values in (original, changed))
            total += _by_item(_softmax_divergence(own, other, head.classes), items) if head.classes is not None else (
                _by_item(_squared_error(own, other, spreads[head.blob]), items)
            )  # fmt: skip
        found.append(np.where(np.isfinite(total), total, np.inf))
    return found


def _spread(passes: Sequence[Array]) -> float:
    """Return the variance of a head's values; infinite of a constant one, whose error has no unit."""
    values = sum(one.size for one in passes)
    mean = sum(float(one.sum(dtype=np.float64)) for one in passes) / max(1, values)
    variance = sum(float(np.square(one - mean, dtype=np.float64).sum()) for one in passes) / max(1, values)
    return variance if variance > 1e-9 * mean**2 else np.inf


def _squared_error(original: Array, changed: Array, variance: float) -> NDArray[np.float64]:
    return np.asarray(0.5 * np.square(changed.astype(np.float64) - original) / variance)


def _softmax_divergence(original: Array, changed: Array, axis: int) -> NDArray[np.float64]:
    axis = canonical_axis(axis, original.ndim)
    own, other = _log_softmax(original, axis), _log_softmax(changed, axis)
    return np.asarray((np.exp(own) * (own - other)).sum(axis=axis))


def _log_softmax(values: Array, axis: int) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = values.astype(np.float64) - values.max(axis=axis, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _by_item(values: NDArray[np.float64], items: int) -> NDArray[np.float64]:
    return np.asarray(values.reshape(items, -1).mean(axis=1))
