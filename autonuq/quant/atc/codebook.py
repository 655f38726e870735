"""Codebooks for ATC's weight compressor: what its codes cost, and the levels that cost least.

A code's length is a staircase in the rank of its byte: 4 bytes of one unit, 18 of two, 14 of three, and two of the most
frequent byte in a row cost one unit together. So neither the number of levels nor the entropy is what to minimize.

Notation, with that of `codebook`:

==========  ==========  ==========================================================================
N                       bytes of the layer on the device, padding included
p           (k,)        share of each level in them, falling
u           (k,)        units of each rank: 1, 1, 1, 1, 2 (18 times), 3 (14 times), 4, ...
m                       units per byte: ``p[0] / (1 + p[0]) + sum(p[1:] u[1:])``
L                       lagrangians
==========  ==========  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.atc.packets import HEADER_BYTES, LOW_SPARSE, PACKET_BYTES, PACKET_UNITS, PIECE_BYTES
from autonuq.quant.codebook import BINS, Codebook, Intervals, build_codebooks, build_intervals, interval_sums

USEFUL_LEVELS = LOW_SPARSE.dictionary
"""Levels beyond these cost more than a byte of bits."""

UNITS = np.concatenate((LOW_SPARSE.units, np.full(BINS - USEFUL_LEVELS, 4)))
"""Units of each rank; a pair of rank 0 costs one as well."""

_ZERO = 128
_ONE_UNIT = 3  # ranks besides rank 0
_TWO_UNITS = 18
_ROUNDS = 10  # of the fixed point and of the bisections
_STEADY = 1e-3  # change of the largest share that is none
_END_BYTES = 2


def mean_units(counts: NDArray[Any]) -> float:
    """Return m, the units per byte of independent bytes, from the count of each level in any order."""
    share: NDArray[np.float64] = np.sort(np.asarray(counts, dtype=np.float64))[::-1] / np.sum(counts)
    return float(share[0] / (1 + share[0]) + np.dot(share[1:], UNITS[1 : share.size]))


def estimate_compressed_bytes(
    histogram: NDArray[Any], *, padding_zeros: int = 0, fractal_bytes: int, engines: int = 4
) -> float:
    """Estimate the compressed size of a layer from its histogram.

    Parameters
    ----------
    histogram : ndarray of int, shape (256,)
        Count of each int8 code, index = code + 128.
    padding_zeros : int
        Zeros of the device layout besides.
    fractal_bytes, engines : int
        As in `atc.compress`.

    Returns
    -------
    float
        Bytes.

    Notes
    -----
    A packet loses ``(E[u**2] / E[u] - 1) / 2`` of its 21 units on average to the code that does not fit. A lane
    costs its header, its end mark and half the padding besides. Padding comes in long runs, so where zero is the
    most frequent byte its zeros cost half a unit each.

    **Cost**: microseconds. Within 1 % for independent weights in fractals of some KiB.
    **Source**: renewal theory (mean residual life) for the loss in packets.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    total = counts.sum() + padding_zeros
    padded = counts.copy()
    padded[_ZERO] += padding_zeros
    order = np.argsort(-padded, kind="stable")
    in_runs = padding_zeros if order[0] == _ZERO else 0
    ranked = (counts if in_runs else padded)[order]
    rest = ranked.sum()
    first = ranked[0] * rest / (rest + ranked[0]) if rest else 0.0
    codes = np.concatenate(([first + in_runs / 2], ranked[1:]))
    units = np.dot(codes, UNITS)
    waste = (np.dot(codes, UNITS**2) / units - 1) / 2
    lane = fractal_bytes / engines
    packets = lane * units / total / (PACKET_UNITS - waste)
    coded = PACKET_BYTES * packets + HEADER_BYTES + _END_BYTES + PIECE_BYTES / 2
    return float(total * min(1.0, coded / lane))


def build_ascend_codebooks(
    histogram: NDArray[Any],
    lagrangians: NDArray[np.float64],
    *,
    importance: NDArray[Any] | None = None,
    padding_zeros: int = 0,
    max_levels: int = USEFUL_LEVELS,
) -> list[Codebook]:
    """Choose levels that minimize weighted squared error plus lagrangian times units.

    Parameters
    ----------
    histogram : ndarray of int, shape (256,)
        Count of each int8 code, index = code + 128.
    lagrangians : ndarray of float64, shape (L,), positive
        Weighted squared error that one unit, three bits, is worth.
    importance : ndarray of float64, shape (256,), optional
        Summed importance of the weights of each code; defaults to `histogram`.
    padding_zeros : int
        Zeros of the device layout besides; they are ranked, and cost units, but no error.
    max_levels : int in [4, 36]
        The largest codebook wanted.

    Returns
    -------
    list of Codebook, length L

    Raises
    ------
    QuantizationError
        As `build_codebooks`.
    ValueError
        A lagrangian is not positive and finite, or `max_levels` is out of range.

    Notes
    -----
    The dynamic program cuts the codes into intervals and gives each a class: rank 0, one of three of one unit, of two
    units, of three. The first two are counted exactly. That there are at most 18 of two units and at most
    `max_levels` in all is enforced by a surcharge per interval, found by bisection; so a codebook is the exact
    optimum among those with its own number of intervals in each class. Rank 0 is charged ``1 / (1 + p[0])**2`` units
    a byte, what one more of them costs, with p[0] from the round before. Of all codebooks of all rounds, and of those
    of least error of each size, the one that is best by its true ranks is returned for each lagrangian.

    **Cost**: O(m**2 L) per round, about a millisecond per lagrangian, at most 10 rounds.
    **Source**: own derivation. Lagrangian relaxation of the counts: Everett, Operations Research 11(3), 1963.
    """
    slopes = np.asarray(lagrangians, dtype=np.float64)
    if not (np.all(np.isfinite(slopes)) and np.all(slopes > 0)):
        raise ValueError(
            f"The 'lagrangians' parameter of build_ascend_codebooks must be positive and finite. Got {slopes} instead."
        )
    if not 1 + _ONE_UNIT <= max_levels <= USEFUL_LEVELS:
        rule = f"an int in [{1 + _ONE_UNIT}, {USEFUL_LEVELS}]"
        raise ValueError(
            f"The 'max_levels' parameter of build_ascend_codebooks must be {rule}. Got {max_levels} instead."
        )
    counts = np.array(histogram, dtype=np.float64)
    weights = counts.copy() if importance is None else np.asarray(importance, dtype=np.float64)
    if counts.shape == (BINS,):
        counts[_ZERO] += padding_zeros
    intervals = build_intervals(counts, weights)
    candidates = _plain(counts, weights, max_levels)
    step = candidates[-2].distortion - candidates[-1].distortion if len(candidates) > 1 else 0.0
    searches = [_Search(slope, max_levels, step) for slope in slopes.tolist()]
    for _ in range(_ROUNDS):
        alive = [search for search in searches if not search.is_settled]
        if not alive:
            break
        for search, starts in zip(alive, _cut(intervals, alive), strict=True):
            found = _candidate(intervals, starts)
            search.learn(found.counts)
            if starts.size <= max_levels:
                candidates.append(found)
    distortions = np.array([candidate.distortion for candidate in candidates])
    units = np.array([candidate.units for candidate in candidates])
    return [candidates[int(best)].codebook for best in (distortions + slopes[:, None] * units).argmin(axis=1)]


@dataclass(frozen=True)
class _Candidate:
    """A codebook with what it costs."""

    codebook: Codebook
    distortion: float
    counts: NDArray[np.float64]
    """Of each level, falling."""

    @property
    def units(self) -> float:
        return float(self.counts.sum()) * mean_units(self.counts)


def _plain(counts: NDArray[np.float64], weights: NDArray[np.float64], max_levels: int) -> list[_Candidate]:
    """Return the codebooks of least error, of every size."""
    family = build_codebooks(counts, importance=weights, max_levels=max_levels)
    codebooks = [family.codebook(levels) for levels in range(1, family.max_levels + 1)]
    ranked = [np.sort(coarse_counts(codebook, counts))[::-1] for codebook in codebooks]
    return [_Candidate(*parts) for parts in zip(codebooks, family.distortions.tolist(), ranked, strict=True)]


def _candidate(intervals: Intervals, starts: NDArray[np.int64]) -> _Candidate:
    ends = np.append(starts[1:], intervals.codes.size) - 1
    counts = np.add.reduceat(intervals.counts, starts)
    distortion = float(intervals.costs[ends, starts].sum())
    return _Candidate(intervals.codebook(starts), distortion, np.sort(counts)[::-1])


class _Bisection:
    """A surcharge as small as keeps a count within its limit."""

    def __init__(self, limit: int, first: float) -> None:
        self.value = 0.0
        self._limit, self._first = limit, first
        self._low, self._high = 0.0, np.inf

    def learn(self, count: int) -> bool:
        """Move on, given the count with the present value; tell whether that was enough."""
        if count > self._limit:
            self._low = self.value
            self.value = max(2 * self.value, self._first) if np.isinf(self._high) else (self._low + self._high) / 2
            return False
        self._high = self.value
        self.value = (self._low + self._high) / 2
        return count == self._limit or self._high == 0


class _Search:
    """The rounds of one lagrangian; `step` is the scale of surcharges."""

    def __init__(self, slope: float, max_levels: int, step: float) -> None:
        self.slope = slope
        self.share = 0.2  # p[0]
        self.is_settled = False
        self.two_units = _Bisection(_TWO_UNITS, step)
        self.levels = _Bisection(max_levels, step)

    def learn(self, counts: NDArray[np.float64]) -> None:
        """Change the surcharges, given what the present ones led to."""
        share = counts[0] / counts.sum()
        is_steady = abs(share - self.share) < _STEADY
        self.share = share
        two_units = np.count_nonzero(self.slope * counts[1 + _ONE_UNIT :] >= self.two_units.value)
        fits = [self.two_units.learn(int(two_units)), self.levels.learn(counts.size)]
        self.is_settled = is_steady and all(fits)


def coarse_counts(codebook: Codebook, histogram: NDArray[Any]) -> NDArray[np.float64]:
    """Return the histogram of a layer once its codes are levels, shape (256,)."""
    return np.asarray(
        np.bincount(codebook.table.astype(np.int64) + _ZERO, weights=histogram, minlength=BINS), dtype=np.float64
    )


def _cut(intervals: Intervals, searches: list[_Search]) -> list[NDArray[np.int64]]:
    """Return the starts of the best intervals of each search.

    A state is [search, rank 0 used, others of one unit used]; `least` at [..., i] is the least cost of the first i
    codes.
    """
    size, count = intervals.codes.size, len(searches)
    slopes = np.array([search.slope for search in searches])[:, None]
    shares = np.array([search.share for search in searches])[:, None]
    two_units = np.array([search.two_units.value for search in searches])[:, None]
    levels = np.array([search.levels.value for search in searches])[:, None]
    inside = interval_sums(intervals.counts)
    states = (count, 2, 1 + _ONE_UNIT)
    least = np.full((*states, size + 1), np.inf)
    least[:, 0, 0, 0] = 0
    starts = np.zeros((size, *states), dtype=np.int16)
    classes = np.zeros((size, *states), dtype=np.int8)
    for j in range(size):
        row = slice(0, j + 1)
        units, error = slopes * inside[j, row], intervals.costs[j, row]
        longer = error + np.minimum(2 * units + two_units, 3 * units) + levels
        totals = np.full((3, *states), np.inf)
        places = np.zeros((3, *states), dtype=np.int64)
        charges = (longer, error + units / (1 + shares) ** 2, error + units)
        for kind, charge in enumerate(charges):
            before, after = _STATES[kind]
            candidates = least[before][..., row] + charge[:, None, None]
            places[kind][after] = candidates.argmin(axis=-1)
            totals[kind][after] = candidates.min(axis=-1)
        classes[j] = totals.argmin(axis=0)
        starts[j] = np.choose(classes[j], places)
        least[..., j + 1] = totals.min(axis=0)
    ends = least[..., -1].reshape(count, -1).argmin(axis=1)
    return [_backtrack(starts[:, own], classes[:, own], int(end)) for own, end in enumerate(ends)]


_ALL = slice(None)
_STATES = (
    ((_ALL, _ALL, _ALL), (_ALL, _ALL, _ALL)),
    ((_ALL, slice(0, 1), _ALL), (_ALL, slice(1, 2), _ALL)),
    ((_ALL, _ALL, slice(0, -1)), (_ALL, _ALL, slice(1, None))),
)
"""States before and after an interval of two or three units, of rank 0, of one unit."""


def _backtrack(starts: NDArray[np.int16], classes: NDArray[np.int8], state: int) -> NDArray[np.int64]:
    """Return the starts of all intervals, given that and the class of the last for each end and state."""
    zero, one = divmod(state, 1 + _ONE_UNIT)
    found, end = [], len(starts)
    while end > 0:
        kind = classes[end - 1, zero, one]
        end = int(starts[end - 1, zero, one])
        zero, one = zero - (kind == 1), one - (kind == 2)
        found.append(end)
    return np.array(found[::-1])
