"""Codebooks: which of its 256 int8 steps a layer keeps, chosen exactly.

Notation, used by every function here:

==========  ========  =================================================================================
m                     number of different codes that occur in the layer
x           (m,)      those codes, rising
n           (m,)      how many weights have each
w           (m,)      their importance: what one squared code step costs; n if nothing else is known
level       (m, m)    level[j, i]: the best int8 level for the interval x[i..j]
cost        (m, m)    cost[j, i] = sum of ``w (x - level[j, i])**2`` over x[i..j]; inf for i > j
==========  ========  =================================================================================

A codebook with k levels cuts x into k intervals, each of which goes to its level. Squared error is a parabola in the
level, so the best int8 level is the weighted mean, rounded; it lies inside its interval, so levels differ. The
interval that holds code 0 has level 0: zero stays zero. An optimal set of levels gives each code its nearest level,
and nearest-level regions are intervals; hence the best cut into intervals is the best codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from autonuq.errors import QuantizationError

BINS = 256
"""Different int8 codes; code c has index c + 128."""

SIDE_BITS_PER_LEVEL = 12.0
"""About what a level costs an entropy coder besides its weights: its place among 256, and learning its frequency."""

_CODES = np.arange(-128, 128)
_ZERO = 128
_GROUP = 16  # rows of the dynamic program whose starts are found together
_PIECE = 1 << 20  # weights whose importance is expanded at a time
_COUNTED = 1 << 22  # pairs of weights that are counted at a time


def code_histogram(codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """Count the weights of each code.

    Parameters
    ----------
    codes : ndarray of int8, any shape

    Returns
    -------
    ndarray of int64, shape (256,)
        Index = code + 128.

    Notes
    -----
    **Cost**: O(n), one pass. Large arrays are counted as pairs of bytes, half as many counts, and folded; a part at a
    time, because NumPy makes int64 of what it counts.
    """
    unsigned = np.ascontiguousarray(codes, dtype=np.int8).reshape(-1).view(np.uint8)
    if unsigned.size < BINS * BINS:
        return np.roll(np.bincount(unsigned, minlength=BINS), _ZERO)
    even = unsigned.size // 2 * 2
    words, pairs = unsigned[:even].view(np.uint16), np.zeros(BINS * BINS, np.int64)
    for start in range(0, words.size, _COUNTED):
        pairs += np.bincount(words[start : start + _COUNTED], minlength=BINS * BINS)
    square = pairs.reshape(BINS, BINS)
    counts = square.sum(axis=0) + square.sum(axis=1) + np.bincount(unsigned[even:], minlength=BINS)
    return np.roll(counts, _ZERO)


def code_importance(codes: NDArray[np.int8], weight_importance: NDArray[Any]) -> NDArray[np.float64]:
    """Sum the importance of the weights of each code.

    Parameters
    ----------
    codes : ndarray of int8, any shape
    weight_importance : ndarray of float
        Importance of each weight; broadcasts to the shape of `codes`.

    Returns
    -------
    ndarray of float64, shape (256,)
        Index = code + 128.

    Raises
    ------
    QuantizationError
        An importance is negative, NaN or infinite.
    ValueError
        `weight_importance` does not broadcast to the codes.

    Notes
    -----
    **Shapes**: codes (50, 20, 5, 5) with importance (50, 20, 1, 1): one per kernel.
    **Cost**: O(n); importance is expanded to float64 a piece at a time.
    """
    importance = np.asarray(weight_importance, dtype=np.float64)
    if not (np.all(np.isfinite(importance)) and np.all(importance >= 0)):
        raise QuantizationError("the importance of weights must be finite and not negative")
    expanded = np.broadcast_to(importance, codes.shape)
    if importance.size == 1:
        total: NDArray[np.float64] = code_histogram(codes) * importance.reshape(-1)[0]
        return total
    rows = max(1, _PIECE * len(codes) // max(codes.size, 1))
    summed = np.zeros(BINS)
    for start in range(0, len(codes), rows):
        piece = np.ascontiguousarray(codes[start : start + rows], dtype=np.int8).reshape(-1).view(np.uint8)
        summed += np.bincount(piece, weights=expanded[start : start + rows].reshape(-1), minlength=BINS)
    return np.roll(summed, _ZERO)


@dataclass(frozen=True)
class Codebook:
    """The levels of one layer, and which code goes to which.

    Attributes
    ----------
    levels : ndarray of int8, shape (k,)
        Rising.
    table : ndarray of int8, shape (256,)
        Level of each code, index = code + 128. Every level maps to itself.

    Raises
    ------
    ValueError
        The arrays are not of such a form.
    """

    levels: NDArray[np.int8]
    table: NDArray[np.int8]

    def __post_init__(self) -> None:
        """Check the form, so that a codebook from a file is as good as one that was built."""
        levels, table = np.asarray(self.levels), np.asarray(self.table)
        if levels.ndim != 1 or levels.size == 0 or np.any(levels[1:] <= levels[:-1]):
            raise ValueError("The levels of a Codebook must be a rising array of int8.")
        if table.shape != (BINS,) or not np.array_equal(table[levels.astype(np.int64) + _ZERO], levels):
            raise ValueError("The table of a Codebook must hold 256 levels and map every level to itself.")

    def apply(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Replace every code by its level.

        Parameters
        ----------
        codes : ndarray of int8, any shape

        Returns
        -------
        ndarray of int8, shape of `codes`
            A new, writable array.

        Notes
        -----
        **Cost**: O(n), one copy and one pass of the standard library's byte table: about twice as fast as
        `numpy.take` on layers of up to some million weights, level with it beyond.
        """
        return look_up(codes, self.table.astype(np.int8)).view(np.int8)

    def indices(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Replace every code by the index of its level: ndarray of uint8, shape of `codes`. Cost as `apply`."""
        return look_up(codes, np.searchsorted(self.levels, self.table).astype(np.uint8))


def look_up(codes: NDArray[np.int8], table: NDArray[Any]) -> NDArray[np.uint8]:
    """Map codes through a table of 256 one-byte entries, index = code + 128."""
    by_byte = np.roll(table, -_ZERO).tobytes()
    mapped = bytearray(np.ascontiguousarray(codes, dtype=np.int8).reshape(-1).data).translate(by_byte)
    return np.frombuffer(mapped, dtype=np.uint8).reshape(codes.shape)


@dataclass(frozen=True)
class Intervals:
    """The layer as the dynamic programs see it; the module's notation."""

    codes: NDArray[np.int64]
    counts: NDArray[np.float64]
    levels: NDArray[np.float64]
    costs: NDArray[np.float64]

    def codebook(self, starts: NDArray[np.int64]) -> Codebook:
        """Make the codebook whose intervals start at these indices, rising from 0.

        A code that does not occur goes to the level of the interval it lies in, or, between two intervals, to the
        nearer level, the lower of equally near ones.
        """
        ends = np.append(starts[1:], self.codes.size) - 1
        levels = self.levels[ends, starts]
        own = np.maximum(np.searchsorted(self.codes[starts], _CODES, side="right") - 1, 0)
        following = np.minimum(own + 1, levels.size - 1)
        outside = self.codes[ends][own] < _CODES
        nearer = outside & (levels[following] - _CODES < _CODES - levels[own])
        table = levels[np.where(nearer, following, own)]
        return Codebook(levels.astype(np.int8), table.astype(np.int8))


@dataclass(frozen=True)
class CodebookFamily:
    """The optimal codebooks of one layer for every number of levels.

    Attributes
    ----------
    max_levels : int
        Size of the largest codebook: the limit that was asked for, or the number of different codes if smaller.
    distortions : ndarray of float64, shape (max_levels,)
        ``sum of w (x - level)**2`` of the codebook with k levels, index k - 1; never rises.
    """

    max_levels: int
    distortions: NDArray[np.float64]
    _intervals: Intervals
    _starts: NDArray[np.int16]
    """[k - 1, j]: start of the last of k intervals that cover x[0..j]."""

    def codebook(self, levels: int) -> Codebook:
        """Return the optimal codebook with at most so many levels.

        Parameters
        ----------
        levels : int in [1, 256]
            A layer with fewer different codes, or a family with a lower limit, gives `max_levels`.

        Raises
        ------
        ValueError
            `levels` is out of range.
        """
        _check_levels(levels, "levels", "CodebookFamily.codebook")
        starts = np.empty(min(levels, self.max_levels), dtype=np.int64)
        end = self._intervals.codes.size - 1
        for k in range(starts.size - 1, -1, -1):
            starts[k] = self._starts[k, end]
            end = starts[k] - 1
        return self._intervals.codebook(starts)


def build_codebooks(
    histogram: NDArray[Any], *, importance: NDArray[Any] | None = None, max_levels: int = BINS
) -> CodebookFamily:
    """Choose the int8 levels that minimize weighted squared error, exactly, for every number of levels at once.

    Parameters
    ----------
    histogram : ndarray of int64, shape (256,)
        Count of each int8 code, index = code + 128.
    importance : ndarray of float64, shape (256,), optional
        Summed importance of the weights of each code; defaults to `histogram`.
    max_levels : int in [1, 256]
        The largest codebook wanted.

    Returns
    -------
    CodebookFamily

    Raises
    ------
    QuantizationError
        The histogram or the importance is empty, negative, not finite, or not of shape (256,).
    ValueError
        `max_levels` is out of range.

    Notes
    -----
    Among equally good cuts the one whose last interval starts first is taken, so results are reproducible.

    **Shapes**: a (64, 3, 7, 7) convolution gives one histogram of 9,408 counts.
    **Cost**: one dynamic program over arrays, some 3 ms for 256 codes and all k, whatever the size of the layer.
    **Source**: Wang & Song, R Journal 3(2), 2011 (optimal 1-D k-means); restricted to integer levels and to codebooks
    that keep zero here.
    """
    _check_levels(max_levels, "max_levels", "build_codebooks")
    intervals = build_intervals(histogram, importance)
    distortions, starts = _cut(intervals.costs, min(max_levels, intervals.codes.size))
    return CodebookFamily(len(distortions), distortions, intervals, starts)


def build_codebook(histogram: NDArray[Any], levels: int, *, importance: NDArray[Any] | None = None) -> Codebook:
    """Choose at most `levels` int8 levels that minimize weighted squared error, exactly.

    Parameters
    ----------
    histogram : ndarray of int64, shape (256,)
        Count of each int8 code, index = code + 128.
    levels : int in [1, 256]
        How many levels the layer may keep.
    importance : ndarray of float64, shape (256,), optional
        Summed importance of the weights of each code; defaults to `histogram`.

    Returns
    -------
    Codebook
        With `levels` levels, or all codes of a layer that has no more.

    Raises
    ------
    QuantizationError, ValueError
        As `build_codebooks`, which see for method and cost.

    Examples
    --------
    >>> codes = np.array([-9, -8, -8, 0, 0, 0, 7, 8], np.int8)
    >>> codebook = build_codebook(code_histogram(codes), 3)
    >>> codebook.levels.tolist(), codebook.apply(codes).tolist()
    ([-8, 0, 8], [-8, -8, -8, 0, 0, 0, 8, 8])
    """
    return build_codebooks(histogram, importance=importance, max_levels=levels).codebook(levels)


def codebook_of(histogram: NDArray[Any]) -> Codebook:
    """Return the codebook that keeps every code of a layer: what `build_codebook` gives for 256 levels, at once.

    Parameters
    ----------
    histogram : ndarray of int64, shape (256,)
        Count of each int8 code, index = code + 128.

    Raises
    ------
    QuantizationError
        As `build_codebooks`.
    """
    levels = _CODES[_occupied(histogram)]
    own = np.maximum(np.searchsorted(levels, _CODES, side="right") - 1, 0)
    following = np.minimum(own + 1, levels.size - 1)
    nearer = levels[following] - _CODES < _CODES - levels[own]
    return Codebook(levels.astype(np.int8), levels[np.where(nearer, following, own)].astype(np.int8))


def build_entropy_codebooks(
    histogram: NDArray[Any],
    lagrangians: NDArray[np.float64],
    *,
    importance: NDArray[Any] | None = None,
    side_bits_per_level: float = SIDE_BITS_PER_LEVEL,
) -> list[Codebook]:
    """Choose levels that minimize weighted squared error plus a lagrangian times coded bits, exactly, for each of many.

    Parameters
    ----------
    histogram : ndarray of int64, shape (256,)
        Count of each int8 code, index = code + 128.
    lagrangians : ndarray of float64 >= 0, shape (L,)
        Weighted squared error that one bit is worth.
    importance : ndarray of float64, shape (256,), optional
        Summed importance of the weights of each code; defaults to `histogram`.
    side_bits_per_level : float
        What a level costs besides its weights.

    Returns
    -------
    list of Codebook, length L
        Each with as many levels as pay.

    Raises
    ------
    QuantizationError
        As `build_codebooks`.
    ValueError
        A lagrangian is negative or not finite.

    Notes
    -----
    **Cost**: O(m**2) steps over arrays of shape (L,), one program for all.
    **Source**: own derivation. The bits of an interval with n of all N weights, ``n log2(N / n)`` and the side bits,
    depend on the interval alone, so the sum over intervals has the form of an optimal-cut dynamic program, optimal
    over all numbers of levels. Entropy-constrained quantization itself: Chou, Lookabaugh & Gray, IEEE Trans. ASSP
    37(1), 1989.
    """
    if not (np.all(np.isfinite(lagrangians)) and np.all(lagrangians >= 0)):
        raise ValueError(
            "The 'lagrangians' parameter of build_entropy_codebooks must be finite and not negative."
            f" Got {lagrangians} instead."
        )
    intervals = build_intervals(histogram, importance)
    size = intervals.codes.size
    bits = _interval_bits(intervals.counts) + side_bits_per_level
    slopes = lagrangians[:, None]
    least = np.zeros((lagrangians.size, size + 1))  # of covering the first codes
    starts = np.empty((lagrangians.size, size), dtype=np.int64)
    for j in range(size):
        row = slice(0, j + 1)
        totals = least[:, row] + intervals.costs[j, row] + slopes * bits[j, row]
        starts[:, j] = totals.argmin(axis=1)
        least[:, j + 1] = totals.min(axis=1)
    return [intervals.codebook(_backtrack(own)) for own in starts]


def _backtrack(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the starts of all intervals, given that of the last interval for each end."""
    found = [int(starts[-1])]
    while found[-1] > 0:
        found.append(int(starts[found[-1] - 1]))
    return np.array(found[::-1])


def _occupied(histogram: NDArray[Any]) -> NDArray[np.int64]:
    """Check a histogram and return the indices of the codes that occur."""
    _check_bins("histogram", np.asarray(histogram, dtype=np.float64))
    occupied = np.flatnonzero(histogram)
    if occupied.size == 0:
        raise QuantizationError("the histogram of a codebook must not be empty")
    return occupied


def _check_bins(name: str, values: NDArray[np.float64]) -> None:
    if values.shape != (BINS,) or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise QuantizationError(f"the {name} of a codebook must be {BINS} finite numbers, none negative")


def _cut(costs: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """Cut x into 1 to `count` intervals at the least total cost.

    Returns
    -------
    distortions : ndarray of float64, shape (count,)
    starts : ndarray of int16, shape (count, m)
        [k - 1, j]: start of the last of k intervals that cover x[0..j]; meaningless for j < k - 1.

    Notes
    -----
    ``least[k, j] = min over w of least[k - 1, j - w - 1] + cost[j, j - w]``, w + 1 the length of the last interval.
    Only lengths up to the longest last interval of k - 1 intervals are looked at, because the last interval of x[0..j]
    never gets longer when there are more of them. That holds for costs with ``cost(a..c) + cost(b..d) <= cost(a..d) +
    cost(b..c)`` for a <= b <= c <= d (Yao, STOC 1982), which ours have: let u be the level of a..d and v that of b..c.
    If u <= v, ``(x - v)**2 - (x - u)**2`` falls with x and its weighted sum over b..c is not positive, v being the best
    there; so neither is its sum over c+1..d, and u for a..c with v for b..d costs no more than the right-hand side. If
    u > v, the same from the other end. A level 0 that an interval is bound to changes nothing: where b..c holds code 0
    both sides are equal, and elsewhere level 0 is farther from the codes beyond b..c than v is.

    The lengths of `_GROUP` rows of the table are found together, from which cells reach the least cost.
    """
    size = len(costs)
    skewed = np.full((size, 2 * size), np.inf)
    skewed[:, size:] = costs
    row_bytes, item_bytes = skewed.strides
    band = as_strided(skewed[0, size:], (size, size), (-item_bytes, row_bytes + item_bytes)).copy()  # [w, j]
    table = np.full((count, 2 * size), np.inf)  # [k, m + j]: with k + 1 intervals
    table[0, size:] = costs[:, 0]
    row_bytes = table.strides[0]
    before = as_strided(table[0, size - 1 :], (count, size, size), (row_bytes, -item_bytes, item_bytes))  # [k, w, j]
    starts = np.zeros((count, size), dtype=np.int16)
    ends, beyond = np.arange(size), np.arange(size, dtype=np.uint8)[:, None]
    width, first = size, 1
    while first < count:
        rows = range(first, min(first + min(first, _GROUP), count))
        totals = np.empty((len(rows), width, size - first))
        for k, total in zip(rows, totals, strict=True):
            np.add(band[:width, first:], before[k - 1, :width, first:], out=total)
            np.minimum.reduce(total, axis=0, out=table[k, size + first :])
        reached = (totals == table[rows.start : rows.stop, None, size + first :]).view(np.uint8)
        reached *= beyond[:width]
        longest = np.maximum.reduce(reached, axis=1)
        starts[rows.start : rows.stop, first:] = ends[first:] - longest
        width = int(longest[-1, rows[-1] - first :].max()) + 1
        first = rows.stop
    return table[:, -1].copy(), starts


def build_intervals(histogram: NDArray[Any], importance: NDArray[Any] | None) -> Intervals:
    """Check a histogram and compute cost and best level of every interval of its codes."""
    counts = np.asarray(histogram, dtype=np.float64)
    weights = counts if importance is None else np.asarray(importance, dtype=np.float64)
    occupied = _occupied(counts)
    _check_bins("importance", weights)
    codes = _CODES[occupied]
    levels, costs = _interval_costs(codes, weights[occupied])
    return Intervals(codes, counts[occupied], levels, costs)


def _interval_costs(
    codes: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return level and cost of every interval, (m, m) each; level is meaningless where cost is inf."""
    mass, first, second = (interval_sums(weights * codes**power) for power in (0, 1, 2))
    levels = np.rint(np.divide(first, mass, out=np.zeros_like(first), where=mass > 0))
    np.clip(levels, codes[None, :], codes[:, None], out=levels)  # of no importance: the code nearest to 0
    if 0 in codes:
        zero = int(np.searchsorted(codes, 0))
        levels[zero:, : zero + 1] = 0
    costs = second - levels * (2 * first - levels * mass)
    np.maximum(costs, 0, out=costs)
    np.fill_diagonal(costs, 0)  # exactly, where the differences of sums need not be
    costs[~np.tri(codes.size, dtype=bool)] = np.inf
    return levels, costs


def interval_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum over x[i..j] at [j, i]."""
    cumulative = np.concatenate(([0.0], np.cumsum(values)))
    return np.subtract.outer(cumulative[1:], cumulative[:-1])


def _interval_bits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``n log2(N / n)`` of every interval, (m, m)."""
    inside = np.maximum(interval_sums(counts), 1)  # above the diagonal the sums are not meant
    return np.asarray(inside * np.log2(counts.sum() / inside))


def _check_levels(levels: int, parameter: str, function: str) -> None:
    if not 1 <= levels <= BINS:
        raise ValueError(
            f"The '{parameter}' parameter of {function} must be an int in [1, {BINS}]. Got {levels} instead."
        )
