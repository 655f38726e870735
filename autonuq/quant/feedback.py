"""Error feedback: rounding a layer's weights to levels so that the errors cancel in its output.

Notation: a row of weights in code units, w (K,), meets inputs x with second moments H = E[x x'] (K, K). Its output
error for levels q is (w - q) H (w - q)'. With the Cholesky factor H = L L', L lower triangular, that is the sum

    sum over j of  L[j, j]**2 (t[j] - q[j])**2,   t[j] = w[j] + sum over i > j of (w[i] - q[i]) L[i, j] / L[j, j]

so, going from the last column to the first, each weight is rounded to the level nearest to its target t[j], which has
taken up the errors of the columns already done. L[j, j]**2 is what an error in column j costs when the columns after it
are free to make up for it: the importance that a codebook should be designed with.

With N samples X (K, N) of the inputs, H = X X' / N + d I, and L need not be written out. Let A be the inverse of
I + X' X / (N d) over the columns before a block of columns b; then L's corner in b is the factor of

    X[b] A X[b]' / N + d I = C C',   and L[i, b] = X[i] V',   V = C**-1 X[b] A / N (block, N),   for rows i behind b,

after which A gives up V' V N. The errors of a row of weights are then carried as one vector of N numbers, the sum of
e[i] X[i]. This is the same recursion: the codes are the same up to rounding.

Source: the recursion of GPTQ (Frantar et al. 2022) and optimal brain surgeon, in the form of Babai's nearest plane
algorithm (Chen et al. 2025 show that they are the same), which needs no inverse of H; levels instead of a grid, the
codebook's importance, the free distortion and the form in the samples' space are own derivations.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from autonuq.errors import QuantizationError
from autonuq.quant.inputs import InputMoments, InputRows, Inputs

# Shares of the mean second moment that are added to each of them, always and per input a sample: what few samples say
# about how inputs go together is not to be trusted. Measured on LeNet (800 inputs, 16 to 1,000 samples), cifar10-quick
# and ResNet-20; with 16 samples of 800 inputs anything from 0.4 to 1.6 does, and more is worse.
_DAMPING, _SCARCITY, _MOST_DAMPING = 0.03, 0.07, 1.0

_PANEL = 512  # columns of the factorization that are worked on at a time
_BLOCK = 64  # columns that are rounded before their errors are carried on by one matrix product
_SIDE_BY_SIDE = 1 << 23  # weights that are rounded at a time, several sets of levels together
_CELLS = 513  # half steps from -128 to 128: between two of them no border between levels


class _Factor(Protocol):
    """L with each column over its diagonal, as far as an assignment needs it."""

    def corner(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return L[begin:end, begin:end]."""

    def nothing(self, rows: int) -> NDArray[np.float32]:
        """Return the errors of no columns."""

    def carry(self, errors: NDArray[np.float32], begin: int, end: int) -> NDArray[np.float32]:
        """Return what errors of the columns from `end` on add to the targets, shape (end - begin, rows)."""

    def add(self, errors: NDArray[np.float32], block: NDArray[np.float32], begin: int, end: int) -> None:
        """Take in the errors of a block of columns, shape (end - begin, rows)."""


@dataclass(frozen=True)
class _Dense:
    """L itself, shape (K, K)."""

    factor: NDArray[np.float32]

    def corner(self, begin: int, end: int) -> NDArray[np.float32]:
        return self.factor[begin:end, begin:end]

    def nothing(self, rows: int) -> NDArray[np.float32]:
        return np.empty((len(self.factor), rows), np.float32)

    def carry(self, errors: NDArray[np.float32], begin: int, end: int) -> NDArray[np.float32]:
        return self.factor[end:, begin:end].T @ errors[end:]

    def add(self, errors: NDArray[np.float32], block: NDArray[np.float32], begin: int, end: int) -> None:
        errors[begin:end] = block


@dataclass(frozen=True)
class _Sampled:
    """L by its corners, the ordered samples X and V of the module's notation, shape (K, N) each."""

    corners: tuple[NDArray[np.float32], ...]
    samples: NDArray[np.float32]
    carriers: NDArray[np.float32]

    def corner(self, begin: int, end: int) -> NDArray[np.float32]:
        return self.corners[begin // _BLOCK]

    def nothing(self, rows: int) -> NDArray[np.float32]:
        return np.zeros((self.samples.shape[1], rows), np.float32)

    def carry(self, errors: NDArray[np.float32], begin: int, end: int) -> NDArray[np.float32]:
        return self.carriers[begin:end] @ errors

    def add(self, errors: NDArray[np.float32], block: NDArray[np.float32], begin: int, end: int) -> None:
        errors += self.samples[begin:end].T @ block


@dataclass(frozen=True)
class Feedback:
    """The factor of a layer's input second moments.

    Attributes
    ----------
    order : ndarray of int64, shape (K,)
        Columns by rising second moment: the ones that matter most come last and so are rounded first, while all
        others are still free.
    diagonal : ndarray of float64, shape (K,)
        Of L, in that order.
    factor : _Factor
        What else is needed of L.
    """

    order: NDArray[np.int64]
    diagonal: NDArray[np.float64]
    factor: _Factor

    @property
    def importance(self) -> NDArray[np.float64]:
        """What a squared error in each column costs, shape (K,), in the weights' own column order."""
        found = np.empty(len(self.order))
        found[self.order] = self.diagonal**2
        return found


def build_feedback(inputs: Inputs) -> Feedback:
    """Factor the second moments of a layer's inputs, damped and ordered.

    Raises
    ------
    QuantizationError
        The moments are not finite, or no second moments at all.

    Notes
    -----
    **Cost**: of moments one Cholesky factorization, K**3 / 3 multiplications, in one copy of them; of N samples
    2 K N**2 multiplications, in two copies of them.
    """
    diagonal = inputs.squares
    if not np.isfinite(diagonal).all():
        raise QuantizationError("the second moments of its inputs are not finite")
    order = np.argsort(diagonal, kind="stable")
    if not diagonal.any():  # inputs always 0: weights do not matter
        return Feedback(order, np.ones(len(order)), _independent(len(order)))
    share = min(_DAMPING + _SCARCITY * len(order) / max(1, inputs.samples), _MOST_DAMPING)
    damping = share * float(diagonal.mean())
    if isinstance(inputs, InputRows):
        return _of_rows(inputs, order, damping)
    return _of_moments(inputs, order, damping)


def _independent(columns: int) -> _Sampled:
    corners = tuple(np.eye(min(_BLOCK, columns - begin), dtype=np.float32) for begin in range(0, columns, _BLOCK))
    none = np.empty((columns, 0), np.float32)
    return _Sampled(corners, none, none)


def _of_moments(moments: InputMoments, order: NDArray[np.int64], damping: float) -> Feedback:
    damped = moments.sums[np.ix_(order, order)].astype(np.float64, copy=False)
    damped[np.diag_indices_from(damped)] += damping
    try:
        _factor_in_place(damped)
    except np.linalg.LinAlgError as error:
        raise QuantizationError("the second moments of its inputs are no covariance") from error
    diagonal = np.diag(damped).copy()
    return Feedback(order, diagonal, _Dense(np.divide(damped, diagonal, out=damped).astype(np.float32)))


def _of_rows(inputs: InputRows, order: NDArray[np.int64], damping: float) -> Feedback:
    samples = np.ascontiguousarray(inputs.rows[:, order].T)
    carriers = np.empty_like(samples)
    diagonal, corners = np.empty(len(order)), []
    left = np.eye(inputs.samples) / inputs.samples  # A / N
    for begin in range(0, len(order), _BLOCK):
        block = samples[begin : begin + _BLOCK].astype(np.float64)
        seen = block @ left
        corner = np.linalg.cholesky(seen @ block.T + damping * np.eye(len(block)))
        carrier = np.linalg.solve(corner, seen)
        left -= carrier.T @ carrier
        own = np.diag(corner)
        diagonal[begin : begin + _BLOCK] = own
        corners.append((corner / own).astype(np.float32))
        carriers[begin : begin + _BLOCK] = carrier / own[:, None]
    return Feedback(order, diagonal, _Sampled(tuple(corners), samples, carriers))


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


@dataclass(frozen=True)
class Targets:
    """A layer's weights as an assignment takes them.

    Attributes
    ----------
    steps : ndarray of float32, shape (K, rows)
        Weights over their scale: code units, not rounded; columns in the feedback's order, each in one piece.
    scale : ndarray of float64, shape (rows,)
        Width of a step.
    """

    steps: NDArray[np.float32]
    scale: NDArray[np.float64]


def targets_of(feedback: Feedback, weights: NDArray[np.floating], scale: NDArray[np.floating]) -> Targets:
    """Order weights, shape (rows, K), whose rows have these scales, shape (rows,) or (1,); one copy."""
    rows, columns = weights.shape
    steps = np.empty((columns, rows), np.float32)
    for begin in range(0, columns, _PANEL):
        np.divide(weights[:, feedback.order[begin : begin + _PANEL]].T, scale, out=steps[begin : begin + _PANEL])
    return Targets(steps, np.broadcast_to(np.asarray(scale, np.float64), (rows,)))


def sets_at_a_time(weights: int) -> int:
    """Return how many sets of levels `assign` can take of a layer without much memory."""
    return max(1, _SIDE_BY_SIDE // weights)


def assign(feedback: Feedback, targets: Targets, level_sets: Sequence[NDArray[np.int8]]) -> list[Assignment]:
    """Round weights to sets of levels, feeding each column's error into the columns not yet done.

    Parameters
    ----------
    feedback : Feedback
    targets : Targets
    level_sets : sequence of ndarray of int8, shape (k,) each
        Sorted. All sets are worked on side by side, as if each had rows of its own.

    Returns
    -------
    list of Assignment
        One for each set.

    Notes
    -----
    Borders between levels lie on half steps, so a table of half steps says which level is nearest.

    **Shapes**: a (512, 512, 3, 3) convolution has 512 rows of 4,608 columns.
    **Cost**: for each set K column steps over the rows, and in blocks rows * K**2 / 2 multiplications, or
    2 rows * K * N with N samples; O(rows * K) memory.
    """
    (columns, rows), sets = targets.steps.shape, len(level_sets)
    factor, tables = feedback.factor, _tables(level_sets)
    places = 256 + _CELLS * np.repeat(np.arange(sets, dtype=np.int32), rows)
    errors, lost = factor.nothing(sets * rows), np.zeros(sets)
    chosen = np.empty((columns, sets * rows), np.int8)
    with _few_threads(factor):
        for begin in reversed(range(0, columns, _BLOCK)):
            end = min(begin + _BLOCK, columns)
            own = np.tile(targets.steps[begin:end], (1, sets))
            aims = factor.carry(errors, begin, end)
            aims += own
            levels, block = _rounded(own, aims, factor.corner(begin, end), tables, places)
            factor.add(errors, block, begin, end)
            chosen[begin:end] = levels
            aims -= levels
            squares = (feedback.diagonal[begin:end] ** 2).astype(np.float32) @ np.square(aims, out=aims)
            lost += squares.reshape(sets, rows) @ targets.scale**2
    codes = chosen[np.argsort(feedback.order)].reshape(columns, sets, rows)
    return [Assignment(np.ascontiguousarray(codes[:, index].T), float(loss)) for index, loss in enumerate(lost)]


def _few_threads(factor: _Factor) -> AbstractContextManager[Any]:
    """Keep BLAS to one thread where its products are small: on a busy machine threads wait for each other at each."""
    return threadpool_limits(1, "blas") if isinstance(factor, _Sampled) else nullcontext()


def _rounded(
    own: NDArray[np.float32],
    targets: NDArray[np.float32],
    corner: NDArray[np.float32],
    tables: NDArray[np.float32],
    places: NDArray[np.int32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Round a block of columns, shape (columns, rows), targets completed in place; return levels and errors."""
    levels, errors = np.empty_like(own), np.empty_like(own)
    cell = np.empty(own.shape[1], np.float32)
    for column in reversed(range(len(own))):
        target = targets[column]
        if column + 1 < len(own):
            target += corner[column + 1 :, column] @ errors[column + 1 :]
        np.ceil(np.multiply(target, 2, out=cell), out=cell)
        np.minimum(np.maximum(cell, -256, out=cell), 256, out=cell)
        np.take(tables, cell.astype(np.int32) + places, out=levels[column], mode="clip")
        np.subtract(own[column], levels[column], out=errors[column])
    return levels, errors


def _tables(level_sets: Sequence[NDArray[np.int8]]) -> NDArray[np.float32]:
    """Return the level nearest to targets in (c / 2 - 1 / 2, c / 2], c from -256 to 256, for each set; flat.

    The lower one of two equally near levels.
    """
    lower_ends = np.arange(-257, 256) / 2
    found = []
    for levels in level_sets:
        exact = levels.astype(np.float64)
        found.append(exact[np.searchsorted((exact[1:] + exact[:-1]) / 2, lower_ends, side="right")])
    return np.concatenate(found).astype(np.float32)


def output_energy(feedback: Feedback, targets: Targets) -> float:
    """Return the squared output that the weights make, summed over rows: the distortion of all-zero weights."""
    return assign(feedback, targets, [np.zeros(1, np.int8)])[0].distortion
