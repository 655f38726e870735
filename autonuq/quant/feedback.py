"""Error feedback: rounding a layer's weights to levels so that the errors cancel at the network's end.

Notation: weights W (R, K) meet inputs x with second moments H = E[x x'] (K, K); G (R, R) says what an error of the
outputs costs, the identity where nothing is known. Rounded to Q, the layer costs tr(G E H E'), E = W - Q. With Cholesky
factors G = M M' and H = L L', both lower triangular, that is the sum

    sum over i, j of  (M[i, i] L[j, j])**2 (t[i, j] - q[i, j])**2,
    t[i, j] = v[i, j] + sum over a > i of (v[a, j] - q[a, j]) M[a, i] / M[i, i],
    v[i, j] = w[i, j] + sum over b > j of (w[i, b] - q[i, b]) L[b, j] / L[j, j]

so, going from the last column to the first and in each column from the last row to the first, each weight is rounded to
the level nearest to its target t, which has taken up the errors of the columns and rows already done. L[j, j]**2 is
what an error in column j costs when the columns after it are free to make up for it: the importance that a codebook
should be designed with. Where bits have a price, a weight goes to the level that costs least: the nearest one, its
neighbour towards 0, or 0. Some codecs store two zeros that lie beside each other as cheaply as one: such pairs of
columns stand one behind the other, and where it costs less, both weights of a row become 0 together.

With N samples X (K, N) of the inputs, H = X X' / N + d I, and L need not be written out. Let A be the inverse of
I + X' X / (N d) over the columns before a block of columns b; then L's corner in b is the factor of

    X[b] A X[b]' / N + d I = C C',   and L[i, b] = X[i] V',   V = C**-1 X[b] A / N (block, N),   for rows i behind b,

after which A gives up V' V N. The errors of a row of weights are then carried as one vector of N numbers, the sum of
e[i] X[i]. This is the same recursion: the codes are the same up to rounding.

Source: the recursion of GPTQ (Frantar et al. 2022) and optimal brain surgeon, in the form of Babai's nearest plane
algorithm (Chen et al. 2025 show that they are the same), which needs no inverse of H; two-sided after YAQA (Tseng et
al. 2025, arXiv 2505.22988). Levels and prices instead of a grid, the codebook's importance, the free distortion and the
form in the samples' space are own derivations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.cores import check_wanted
from autonuq.quant.inputs import InputMoments, InputRows, Inputs
from autonuq.quant.machine_code import compiled

# Shares of the mean second moment that are added to each of them, always and per input a sample: what few samples say
# about how inputs go together is not to be trusted. Measured on LeNet (800 inputs, 16 to 1,000 samples), cifar10-quick
# and ResNet-20; with 16 samples of 800 inputs anything from 0.4 to 1.6 does, and more is worse.
_DAMPING, _SCARCITY, _MOST_DAMPING = 0.03, 0.07, 1.0

_PANEL = 128  # columns of the factorization that are worked on at a time
_BLOCK = 64  # columns that are rounded before their errors are carried on by one matrix product
_MOST_ROWS = 512  # that feed errors into one another: more would take the time of many columns
_TILE = 32  # rows of a block of columns that are rounded before their errors are carried on in the same way
_ZERO = 128  # index of code 0 among the 256


class _Factor(Protocol):
    """L with each column over its diagonal, as far as an assignment needs it."""

    @property
    def carried(self) -> int:
        """How many numbers the errors of a row of weights are carried as."""

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

    @property
    def carried(self) -> int:
        return len(self.factor)

    def corner(self, begin: int, end: int) -> NDArray[np.float32]:
        return self.factor[begin:end, begin:end]

    def nothing(self, rows: int) -> NDArray[np.float32]:
        return np.empty((self.carried, rows), np.float32)

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

    @property
    def carried(self) -> int:
        return int(self.samples.shape[1])

    def corner(self, begin: int, end: int) -> NDArray[np.float32]:
        return self.corners[begin // _BLOCK]

    def nothing(self, rows: int) -> NDArray[np.float32]:
        return np.zeros((self.carried, rows), np.float32)

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
    paired : int
        So many of the columns, an even number, the first ones, are rounded two at a time.
    """

    order: NDArray[np.int64]
    diagonal: NDArray[np.float64]
    factor: _Factor
    paired: int = 0


def build_feedback(inputs: Inputs, pairs: NDArray[np.int64] | None = None) -> Feedback:
    """Factor the second moments of a layer's inputs, damped and ordered.

    Parameters
    ----------
    inputs : Inputs
    pairs : ndarray of int64, shape (P, 2), optional
        Columns that are rounded two at a time.

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
    order = _order(diagonal, np.empty((0, 2), np.int64) if pairs is None else pairs)
    paired = 0 if pairs is None else pairs.size
    if not diagonal.any():  # inputs always 0: weights do not matter
        return Feedback(order, np.ones(len(order)), _independent(len(order)), paired)
    damping = damping_of(inputs)
    if isinstance(inputs, InputRows):
        return _of_rows(inputs, order, damping, paired)
    return _of_moments(inputs, order, damping, paired)


def _order(squares: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return pairs of columns by rising second moment, then the other columns."""
    sums = squares[pairs].sum(axis=1)
    others = np.setdiff1d(np.arange(squares.size), pairs)
    ordered = pairs[np.argsort(sums, kind="stable")], others[np.argsort(squares[others], kind="stable")]
    return np.concatenate([part.ravel() for part in ordered])


def damping_of(inputs: Inputs) -> float:
    """Return what is added to the diagonal of a layer's second moments, in their units."""
    share = min(_DAMPING + _SCARCITY * inputs.inputs / max(1, inputs.samples), _MOST_DAMPING)
    return share * float(inputs.squares.mean())


def _independent(columns: int) -> _Sampled:
    corners = tuple(np.eye(min(_BLOCK, columns - begin), dtype=np.float32) for begin in range(0, columns, _BLOCK))
    none = np.empty((columns, 0), np.float32)
    return _Sampled(corners, none, none)


def _of_moments(moments: InputMoments, order: NDArray[np.int64], damping: float, paired: int) -> Feedback:
    damped = moments.sums[np.ix_(order, order)].astype(np.float64, copy=False)
    damped /= max(1, moments.samples)
    damped[np.diag_indices_from(damped)] += damping
    try:
        _factor_in_place(damped)
    except np.linalg.LinAlgError as error:
        raise QuantizationError("the second moments of its inputs are no covariance") from error
    diagonal = np.diag(damped).copy()
    return Feedback(order, diagonal, _Dense(np.divide(damped, diagonal, out=damped).astype(np.float32)), paired)


def _of_rows(inputs: InputRows, order: NDArray[np.int64], damping: float, paired: int) -> Feedback:
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
    return Feedback(order, diagonal, _Sampled(tuple(corners), samples, carriers), paired)


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
class OutputFactor:
    """The factor M of what errors of a layer's outputs cost.

    Attributes
    ----------
    order : ndarray of int64, shape (rows,)
        Outputs by rising cost, as columns are.
    diagonal : ndarray of float64, shape (rows,)
        Of M, in that order.
    blocks : ndarray of float32, shape (rows, B)
        M over its diagonal: row a holds the entries for the rows of its own block of B, the others count as 0. B = 0:
        outputs do not know of one another.
    """

    order: NDArray[np.int64]
    diagonal: NDArray[np.float64]
    blocks: NDArray[np.float32]


def equal_outputs(rows: int) -> OutputFactor:
    """Return the factor of the identity."""
    return OutputFactor(np.arange(rows), np.ones(rows), np.empty((rows, 0), np.float32))


def factor_outputs(costs: NDArray[np.floating]) -> OutputFactor:
    """Factor G, shape (rows, rows), positive definite; with more than 512 rows, blocks of G.

    Raises
    ------
    QuantizationError
        G is not finite or not positive definite.
    """
    rows = len(costs)
    if not np.isfinite(costs).all():
        raise QuantizationError("what its output errors cost is not finite")
    order = np.argsort(np.diag(costs), kind="stable")
    size = min(rows, _MOST_ROWS)
    diagonal, blocks = np.empty(rows), np.zeros((rows, size), np.float32)
    for begin in range(0, rows, size):
        own = order[begin : begin + size]
        try:
            factor = np.linalg.cholesky(costs[np.ix_(own, own)])
        except np.linalg.LinAlgError as error:
            raise QuantizationError("what its output errors cost is no covariance") from error
        diagonal[begin : begin + size] = np.diag(factor)
        blocks[begin : begin + size, : len(own)] = factor / np.diag(factor)
    return OutputFactor(order, diagonal, blocks)


@dataclass(frozen=True)
class Prices:
    """What codes take.

    Attributes
    ----------
    bits : ndarray of float64, shape (256,)
        Of each code.
    in_pairs : ndarray of float64, shape (256,)
        Of each code in a pair of columns; two zeros take what one does.
    """

    bits: NDArray[np.float64]
    in_pairs: NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """What a layer's weights may become.

    Attributes
    ----------
    levels : ndarray of int8, shape (k,)
        Sorted.
    scale : ndarray of float64, shape (rows,)
        Width of a step.
    price : float
        What a bit may cost, in units of the layer's cost.
    prices : Prices
        Of no meaning without a price of a bit.
    """

    levels: NDArray[np.int8]
    scale: NDArray[np.float64]
    price: float = 0.0
    prices: Prices = field(default_factory=lambda: Prices(np.zeros(256), np.zeros(256)))


@dataclass(frozen=True)
class Assignment:
    """Levels chosen for a layer.

    Attributes
    ----------
    codes : ndarray of int8, shape (rows, K)
    cost : float
        tr(G E H E'), with damped moments.
    """

    codes: NDArray[np.int8]
    cost: float


@dataclass(frozen=True)
class Targets:
    """A layer's weights as an assignment takes them.

    Attributes
    ----------
    weights : ndarray of float32, shape (K, rows)
        Columns in the feedback's order, each in one piece; rows in the outputs' order.
    feedback : Feedback
    outputs : OutputFactor
    """

    weights: NDArray[np.float32]
    feedback: Feedback
    outputs: OutputFactor

    @property
    def importance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a squared error costs by row and by column, shapes (rows,) and (K,), each in its order."""
        return self.outputs.diagonal**2, self.feedback.diagonal**2

    @property
    def assignment_bytes(self) -> float:
        """Memory that an assignment takes besides these."""
        columns, rows = self.weights.shape
        return assignment_bytes(rows, columns, self.feedback.factor.carried)


def assignment_bytes(rows: int, columns: int, carried: float) -> float:
    """Return the memory that rounding (rows, columns) takes: so many numbers a row as errors, and codes three times."""
    return rows * (4.0 * carried + 3.0 * columns)


def targets_of(feedback: Feedback, weights: NDArray[np.floating], outputs: OutputFactor | None = None) -> Targets:
    """Order weights, shape (rows, K); one copy."""
    rows, columns = weights.shape
    outputs = outputs or equal_outputs(rows)
    ordered = np.empty((columns, rows), np.float32)
    for begin in range(0, columns, _PANEL):
        some = feedback.order[begin : begin + _PANEL]
        ordered[begin : begin + _PANEL] = weights[np.ix_(outputs.order, some)].T
    return Targets(ordered, feedback, outputs)


def assign(targets: Targets, grid: Grid) -> Assignment:
    """Round weights to a grid, feeding each error into the columns and rows not yet done.

    Notes
    -----
    Borders between levels lie on half steps, so a table of half steps says which level is nearest.

    **Shapes**: a (512, 512, 3, 3) convolution has 512 rows of 4,608 columns.
    **Cost**: rows * K**2 / 2 multiplications, or 2 rows * K * N with N samples, and min(rows, 512) * rows * K / 2 where
    outputs know of one another; O(rows * K) memory.
    """
    factor, outputs, (columns, rows) = targets.feedback.factor, targets.outputs, targets.weights.shape
    scale = grid.scale[outputs.order]
    by_row, by_column = targets.importance
    by_row = by_row * scale**2
    blocks = _in_steps(outputs.blocks, scale)
    nearest, towards_zero = _tables(grid.levels)
    prices = grid.price / np.maximum(by_row, np.finfo(float).tiny)
    errors, cost = factor.nothing(rows), 0.0
    chosen, steps = np.empty((columns, rows), np.int8), scale.astype(np.float32)
    for begin in reversed(range(0, columns, _BLOCK)):
        check_wanted()
        end = min(begin + _BLOCK, columns)
        own = targets.weights[begin:end] / steps
        aims = factor.carry(errors, begin, end)
        aims += own
        block, missed, from_rows = np.empty_like(own), np.empty_like(own), np.zeros_like(own)
        corner = np.ascontiguousarray(factor.corner(begin, end))
        for start, first, last, stop in _tiles(rows, blocks.shape[1]):
            if last < stop:
                known = blocks[last:stop, first - start : last - start]
                from_rows[:, first:last] = missed[:, last:stop] @ known
            cost += _round_tile(
                start, first, last, own, aims, from_rows, corner, blocks, nearest, towards_zero,
                grid.prices.bits, grid.prices.in_pairs, prices, by_row, by_column[begin:end], missed, block,
                chosen[begin:end], targets.feedback.paired - begin,
            )  # fmt: skip
        factor.add(errors, block, begin, end)
    codes = np.empty((rows, columns), np.int8)
    codes[outputs.order] = chosen[np.argsort(targets.feedback.order)].T
    return Assignment(codes, cost)


def _in_steps(blocks: NDArray[np.float32], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return M over its diagonal for errors in steps of each row instead of units."""
    rows, size = blocks.shape
    scaled = np.empty_like(blocks)
    for begin in range(0, rows, size or rows):
        own = scale[begin : begin + size]
        scaled[begin : begin + size, : len(own)] = blocks[begin : begin + size, : len(own)] * (own[:, None] / own)
    return scaled


def _tiles(rows: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield tiles of rows, the last one first: where their block of rows begins, they begin, they end, and it ends."""
    if size == 0:
        yield 0, 0, rows, rows
        return
    for start in reversed(range(0, rows, size)):
        stop = min(start + size, rows)
        for first in reversed(range(start, stop, _TILE)):
            yield start, first, min(first + _TILE, stop), stop


@compiled
def _round_tile(
    start: int,
    first: int,
    last: int,
    own: NDArray[np.float32],
    targets: NDArray[np.float32],
    from_rows: NDArray[np.float32],
    corner: NDArray[np.float32],
    blocks: NDArray[np.float32],
    nearest: NDArray[np.float32],
    towards_zero: NDArray[np.float32],
    bits: NDArray[np.float64],
    bits_in_pairs: NDArray[np.float64],
    prices: NDArray[np.float64],
    by_row: NDArray[np.float64],
    by_column: NDArray[np.float64],
    missed: NDArray[np.float32],
    errors: NDArray[np.float32],
    levels: NDArray[np.int8],
    paired: int,
) -> float:
    """Round some rows of a block of columns, shape (columns, rows), and return what it costs.

    It fills in errors, levels, and what other rows are told: by how much targets were missed, before rows added to
    them. The first columns, `paired` of them, go in pairs: the last two first, each row of both before the next row.
    """
    columns, zero, cost, inverses = len(own), 128, 0.0, 1 / by_column
    column = columns - 1
    while column >= 0:
        is_pair = column < paired
        inner = column - 1 if is_pair else column
        own_bits = bits_in_pairs if is_pair else bits
        for beside in range(column, inner - 1, -1):
            target = targets[beside]
            for done in range(column + 1, columns):
                weight, known = corner[done, beside], errors[done]
                for row in range(first, last):
                    target[row] += weight * known[row]
        for row in range(last - 1, first - 1, -1):
            spent = 0.0
            for beside in range(column, inner - 1, -1):
                if beside != column:
                    targets[beside, row] += corner[column, beside] * errors[column, row]
                aim = targets[beside, row] + from_rows[beside, row]
                cell = min(max(int(np.ceil(2 * aim)), -256), 256)
                level = nearest[cell + 256]
                price = prices[row] * inverses[beside]
                if price > 0 and level != 0:
                    best = (aim - level) ** 2 + price * own_bits[int(level) + zero]
                    towards = towards_zero[int(level) + zero]
                    other = (aim - towards) ** 2 + price * own_bits[int(towards) + zero]
                    if other < best:
                        best, level = other, towards
                    if towards != 0 and nearest[256] == 0 and aim * aim + price * own_bits[zero] < best:
                        level = np.float32(0)
                levels[beside, row] = np.int8(level)
                errors[beside, row] = own[beside, row] - level
                spent += by_column[beside] * (aim - level) ** 2
            if is_pair and nearest[256] == 0 and (levels[column, row] != 0 or levels[inner, row] != 0):
                apart = own_bits[int(levels[column, row]) + zero] + own_bits[int(levels[inner, row]) + zero]
                change = corner[column, inner] * (own[column, row] - errors[column, row])
                both = by_column[column] * (targets[column, row] + from_rows[column, row]) ** 2
                both += by_column[inner] * (targets[inner, row] + from_rows[inner, row] + change) ** 2
                if both - spent < prices[row] * (apart - own_bits[zero]):
                    spent = both
                    targets[inner, row] += change
                    for beside in range(column, inner - 1, -1):
                        levels[beside, row], errors[beside, row] = 0, own[beside, row]
            cost += by_row[row] * spent
            if blocks.shape[1] > 0:
                for beside in range(column, inner - 1, -1):
                    error, carried = targets[beside, row] - levels[beside, row], from_rows[beside]
                    missed[beside, row] = error
                    for other_row in range(first, row):
                        carried[other_row] += blocks[row, other_row - start] * error
        column = inner - 1
    return cost


def _tables(levels: NDArray[np.int8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the level nearest to (c / 2 - 1 / 2, c / 2], c from -256 to 256, and the next one inside each code.

    The lower one of two equally near levels; a level without one nearer to 0 is its own neighbour.
    """
    exact, lower_ends = levels.astype(np.float64), np.arange(-257, 256) / 2
    nearest = exact[np.searchsorted((exact[1:] + exact[:-1]) / 2, lower_ends, side="right")]
    inner = np.arange(-_ZERO, _ZERO, dtype=np.float64)
    lower, upper = exact[:-1], exact[1:]
    up, down = (upper > 0) & (np.abs(lower) < upper), (lower < 0) & (np.abs(upper) < -lower)
    inner[upper[up].astype(int) + _ZERO] = lower[up]
    inner[lower[down].astype(int) + _ZERO] = upper[down]
    return nearest.astype(np.float32), inner.astype(np.float32)
