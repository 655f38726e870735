"""Error feedback: rounding a layer's weights to levels so that the errors cancel in its output.

Notation: a row of weights in code units, w (K,), meets inputs x with second moments H = E[x x'] (K, K). Its output
error for levels q is (w - q) H (w - q)'. With the Cholesky factor H = L L', L lower triangular, that is the sum

    sum over j of  L[j, j]**2 (t[j] - q[j])**2,   t[j] = w[j] + sum over i > j of (w[i] - q[i]) L[i, j] / L[j, j]

so, going from the last column to the first, each weight is rounded to the level nearest to its target t[j], which has
taken up the errors of the columns already done. L[j, j]**2 is what an error in column j costs when the columns after it
are free to make up for it: the importance that a codebook should be designed with.

Source: the recursion of GPTQ (Frantar et al. 2022) and optimal brain surgeon, in the form of Babai's nearest plane
algorithm (Chen et al. 2025 show that they are the same), which needs no inverse of H; levels instead of a grid, the
codebook's importance and the free distortion are own derivations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError

# Shares of the mean second moment that are added to each of them, always and per input a sample: what few samples say
# about how inputs go together is not to be trusted. Measured on LeNet (800 inputs, 200 samples) and ResNet-20.
_DAMPING, _SCARCITY = 0.03, 0.07

_PANEL = 512  # columns of the factorization that are worked on at a time
_BLOCK = 64  # columns that are rounded before their errors are carried on by one matrix product


@dataclass(frozen=True)
class Feedback:
    """The factor of a layer's input second moments.

    Attributes
    ----------
    order : ndarray of int64, shape (K,)
        Columns by rising second moment: the ones that matter most come last and so are rounded first, while all
        others are still free.
    factor : ndarray of float64, shape (K, K)
        Lower triangular L of the damped and ordered H.
    """

    order: NDArray[np.int64]
    factor: NDArray[np.float64]

    @property
    def importance(self) -> NDArray[np.float64]:
        """What a squared error in each column costs, shape (K,), in the weights' own column order."""
        found = np.empty(len(self.order))
        found[self.order] = np.diag(self.factor) ** 2
        return found


def build_feedback(moments: NDArray[Any], samples: int) -> Feedback:
    """Factor the second moments of a layer's inputs.

    Parameters
    ----------
    moments : ndarray of float, shape (K, K)
        Mean, or sum, of x x' over the calibration, symmetric.
    samples : int
        How many x it was.

    Raises
    ------
    QuantizationError
        The moments are not finite, or no second moments at all.

    Notes
    -----
    **Cost**: one Cholesky factorization, K**3 / 3 multiplications, in one copy of the moments.
    """
    diagonal = np.diag(moments).astype(np.float64)
    if not np.isfinite(diagonal).all():
        raise QuantizationError("the second moments of its inputs are not finite")
    if not diagonal.any():
        return Feedback(np.arange(len(diagonal)), np.eye(len(diagonal)))  # inputs always 0: weights do not matter
    order = np.argsort(diagonal, kind="stable")
    damped = moments[np.ix_(order, order)].astype(np.float64, copy=False)
    share = _DAMPING + _SCARCITY * len(order) / max(1, samples)
    damped[np.diag_indices_from(damped)] += share * diagonal.mean()
    try:
        _factor_in_place(damped)
    except np.linalg.LinAlgError as error:
        raise QuantizationError("the second moments of its inputs are no covariance") from error
    return Feedback(order, damped)


def _factor_in_place(matrix: NDArray[np.float64]) -> None:
    """Replace a symmetric matrix by its lower Cholesky factor, panel by panel.

    `np.linalg.cholesky` needs three times the memory: 0.5 GB for 4,608 columns.
    """
    size = len(matrix)
    for begin in range(0, size, _PANEL):
        end = min(begin + _PANEL, size)
        corner = matrix[begin:end, begin:end] = np.linalg.cholesky(matrix[begin:end, begin:end])
        below = matrix[end:, begin:end]
        below[...] = np.linalg.solve(corner, below.T).T
        matrix[begin:end, end:] = 0
        for first in range(end, size, _PANEL):
            part = below[first - end :]
            matrix[first:, first : first + _PANEL] -= part @ part[:_PANEL].T


@dataclass(frozen=True)
class Assignment:
    """Levels chosen for a layer.

    Attributes
    ----------
    codes : ndarray of int8, shape (rows, K)
    distortion : float
        Squared output error summed over rows, each row times its own squared scale.
    """

    codes: NDArray[np.int8]
    distortion: float


def assign(
    feedback: Feedback, steps: NDArray[np.floating], levels: NDArray[np.int8], *, row_scale: NDArray[np.floating]
) -> Assignment:
    """Round weights to levels, feeding each column's error into the columns not yet done.

    Parameters
    ----------
    feedback : Feedback
    steps : ndarray of float, shape (rows, K)
        Weights over their scale: code units, not rounded.
    levels : ndarray of int8, shape (k,)
        Sorted.
    row_scale : ndarray of float, shape (rows,) or (1,)

    Returns
    -------
    Assignment

    Notes
    -----
    **Shapes**: a (512, 512, 3, 3) convolution has 512 rows of 4,608 columns.
    **Cost**: K column steps over the rows, and rows * K**2 multiplications in blocks; O(rows * K) memory.
    """
    targets = steps[:, feedback.order].astype(np.float64, order="F")
    errors = np.empty_like(targets)
    chosen = np.empty(targets.shape, np.int8, order="F")
    factor, sorted_levels = feedback.factor, levels.astype(np.float64)
    borders = (sorted_levels[1:] + sorted_levels[:-1]) / 2
    scale = 1 / np.diag(factor)
    lost = np.zeros(len(targets))
    for end in range(len(factor), 0, -_BLOCK):
        begin = max(0, end - _BLOCK)
        carried = errors[:, end:] @ factor[end:, begin:end]
        for column in range(end - 1, begin - 1, -1):
            inside = column - begin
            if column + 1 < end:
                carried[:, inside] += errors[:, column + 1 : end] @ factor[column + 1 : end, column]
            target = targets[:, column] + carried[:, inside] * scale[column]
            index = np.searchsorted(borders, target)
            chosen[:, column] = levels[index]
            level = sorted_levels[index]
            errors[:, column] = targets[:, column] - level
            lost += ((target - level) * factor[column, column]) ** 2
    codes = np.empty(targets.shape, np.int8)
    codes[:, feedback.order] = chosen
    return Assignment(codes, float((lost * np.asarray(row_scale, np.float64) ** 2).sum()))


def output_energy(feedback: Feedback, steps: NDArray[Any], *, row_scale: NDArray[np.floating]) -> float:
    """Return the squared output that the weights make, summed over rows: the distortion of all-zero weights."""
    rotated = steps[:, feedback.order].astype(np.float64) @ feedback.factor
    return float((np.square(rotated).sum(axis=1) * np.asarray(row_scale, np.float64) ** 2).sum())
