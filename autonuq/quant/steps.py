"""Static NUQ: a layer's int8 codes restricted to a given number of levels, chosen once and not searched.

The codebook is the exact optimum for its number of levels. With the second moments of the layer's inputs every weight
is rounded to it by error feedback (`feedback`); without them each code goes to the level that its bin belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.codebook import build_codebook, code_histogram, code_importance, look_up
from autonuq.quant.feedback import Grid, assign
from autonuq.quant.inputs import Inputs
from autonuq.quant.points import feedback_importance, layer_targets
from autonuq.quant.uniform import UniformWeights

_EVERY_CODE = np.arange(-128, 128)


def restrict_codes(
    weights: NDArray[np.float32], uniform: UniformWeights, num_steps: int, inputs: Sequence[Inputs] = ()
) -> UniformWeights:
    """Keep `num_steps` of the int8 steps at the least loss.

    Parameters
    ----------
    weights : ndarray of float32, (outputs, ...)
    uniform : UniformWeights
        The same weights on their int8 grid; one scale, or one per output (axis 0).
    num_steps : int in [2, 256]
    inputs : sequence of Inputs, optional
        What a row of weights meets, in one group; without them weights count alone.

    Returns
    -------
    UniformWeights
        Codes with at most `num_steps` different values, scales as they were.

    Raises
    ------
    QuantizationError
        The inputs do not fit the weights, or are not finite.

    Notes
    -----
    **Shapes**: (512, 512, 3, 3) goes with moments (4608, 4608) or samples (N, 4608).
    **Cost**: without inputs one pass and a dynamic program over 256 bins; with them one factorization and one
    assignment.
    """
    histogram = code_histogram(uniform.codes)
    if not inputs:
        importance = code_importance(uniform.codes, uniform.scale_like().astype(np.float64) ** 2)
        book = build_codebook(histogram, num_steps, importance=importance)
        return replace(uniform, codes=book.apply(uniform.codes))
    (own,) = inputs
    targets = layer_targets(weights, own, has_bias=False)
    book = build_codebook(histogram, num_steps, importance=feedback_importance(uniform, targets))
    scale = np.broadcast_to(uniform.scale, (len(weights),)).astype(np.float64)
    found = assign(targets, Grid(book.levels, scale))
    return replace(uniform, codes=found.codes.reshape(uniform.codes.shape))


def snap_codes(uniform: UniformWeights, levels: NDArray[np.int8]) -> UniformWeights:
    """Move every code to the nearest of the levels, the smaller one of two equally near."""
    ordered = np.sort(levels).astype(np.int64)
    table = ordered[np.searchsorted(ordered[:-1] + ordered[1:], 2 * _EVERY_CODE)].astype(np.int8)
    return replace(uniform, codes=look_up(uniform.codes, table).view(np.int8))


def cluster_of(codes: NDArray[np.int8], num_steps: int) -> tuple[int, ...]:
    """Return the layer's levels in ascending order, filled up to exactly `num_steps` with steps nearest to 0.

    Readers of AMCT's records refuse tables of any other length than 16 or 32, even if fewer levels occur.
    """
    used = set(np.unique(codes).tolist())
    spare = (step for step in sorted(_EVERY_CODE.tolist(), key=abs) if step not in used)
    while len(used) < num_steps:
        used.add(next(spare))
    return tuple(sorted(used))
