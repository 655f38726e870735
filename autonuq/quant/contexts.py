"""A coder whose model learns while it codes, from what a weight's neighbours, its row and its column were.

Every weight is cut into decisions: is it the centre, the level nearest to 0; above or below; then, away from the
centre, is it further than the next level, than the one after that, and so on. Each decision goes through a range coder
with a probability that coder and decoder learn in step, so nothing about the statistics is stored.

Notation: all numbers are integers.

===========  =======================================================================================================
counter      probability p that a decision is yes, of 22 bits, and how often n it was learnt from, at most 1,023; in
             one number, ``p << 10 | n``. It learns by ``p += ((yes ? 2**22 - 1 : 0) - p) * rate[n] >> 16``
rate         ``rate[n] = 2**17 // (2 n + 3)``: a plain average at first, one over the last thousand at the end
stretch      logit of a probability in steps of 1/256, in [-2047, 2047]; squash is its inverse, of 16 bits
===========  =======================================================================================================

**Centre or not**: counters of all weights (g), of the weight's column, its row so far, and which of four neighbours
are the centre: one and two columns before, one kernel row before, the same column one row before; of a kernel with
several positions also those of the input channel and of the position. With w the mixing weights, 16 bits after the
point, and x the stretched counters, the probability is squash of ``g + (sum of w[i] * (x[i] - g) >> 16)``, clipped;
then each ``w[i] += (x[i] - g) * error * 3 + 2**15 >> 16``, error = 2**16 or 0 for yes or no, minus the probability. All
w start at 0.4. The first counter starts at 1/2 with n = 0, the others, when they are first met, at its probability
with n = 2, neighbours' with n = 1; the row's does so in each row, with n = 4.

**Above or below**: a counter for each pair of what one column and one kernel row before are (centre, above, below);
not asked if there are levels on one side only. **Further**: a counter for each side and number of levels. Both start at
1/2 with n = 1, and count with the upper 16 bits of p, from 32 to 65,504.

What is left of the first column, and above the first row, is the centre; a kernel of one position has rows of one.

**Range coder**: an interval of the numbers of 48 bits. Yes takes the lower part, ``(range >> 16) * probability``, no
the upper. A range below 2**32 sends off the upper 16 bits. What is written at last is the number in the interval that
has the most zeros at the end; zero bytes at the end are left out.

**Source**: logistic mixing of counters: Mahoney, PAQ (data compression programs, 2005 on); range coder: Martin, 1979;
which contexts: measured on the networks of `studies/bench`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.machine_code import compiled

_E = 4629735647166717429  # exp(1/256), 62 bits after the point
_ONE = 1 << 62
_STRETCHED = 2047
_CENTRE, _SIDE, _FURTHER = 0, 1, 2  # the decisions of a weight
_HALF = 1 << 31  # the counter of a probability of 1/2 that was learnt from nothing
_PATIENCE = 8192  # weights; when twice as many were coded, and each time so many again, the coder looks at its use
_CREDIT = 96  # bytes that learning may take
_SHARE = 26214  # 0.4, what each of the counters counts at first


@dataclass(frozen=True)
class Places:
    """Where the weights of a layer lie: (outputs, channels, kernel positions), and the width of the kernel."""

    rows: int
    channels: int
    positions: int
    width: int

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> Places:
        """Return those of weights (N, C, H, W), (N, K), or of any other shape that is not empty."""
        positions = int(np.prod(shape[2:], dtype=np.int64))
        return cls(shape[0], shape[1] if len(shape) > 1 else 1, positions, shape[-1] if len(shape) > 2 else 1)


@cache
def _tables() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return stretch of the upper 12 bits of a probability, squash by stretch + 2,047, and the rates."""
    power, upper = _ONE, []
    for _ in range(_STRETCHED + 1):
        upper.append(((power << 16) + (power + _ONE) // 2) // (power + _ONE))
        power = power * _E >> 62
    squash = np.array([(1 << 16) - value for value in upper[:0:-1]] + upper)
    stretch = np.minimum(np.searchsorted(squash, np.arange(8, 1 << 16, 16)), 2 * _STRETCHED) - _STRETCHED
    return stretch, squash, (1 << 17) // (2 * np.arange(1024) + 3)


def encode_contexts(
    numbers: NDArray[np.uint8], levels: int, centre: int, places: Places, limit_bytes: int
) -> bytes | None:
    """Return the bytes of numbers, or None if they are more than a limit, or look as if they would be.

    Parameters
    ----------
    numbers : ndarray of uint8, shape (n,)
    levels : int
        All numbers are below.
    centre : int
        Which number stands for the level nearest to 0.
    places : Places
        Of n weights.
    limit_bytes : int

    Notes
    -----
    **Cost**: O(n), some 25 ns a weight. It gives up where, after 16,384 weights and each time these have doubled, both
    the last of them and all took more than their share of the limit.
    """
    words = np.zeros(limit_bytes // 2 + 4, dtype=np.uint16)
    size, is_whole = _code(numbers, words, False, limit_bytes, levels, centre, *_arguments(places))
    data = words[:size].astype(">u2").tobytes().rstrip(b"\0")
    return data if is_whole and len(data) <= limit_bytes else None


def decode_contexts(data: bytes, levels: int, centre: int, places: Places) -> NDArray[np.uint8]:
    """Return the numbers, shape (n,).

    Raises
    ------
    QuantizationError
        The bytes are not what `encode_contexts` makes of so many numbers.
    """
    numbers = np.empty(places.rows * places.channels * places.positions, dtype=np.uint8)
    words = np.frombuffer(data + b"\0" * (len(data) % 2), dtype=">u2").astype(np.uint16)
    _, is_whole = _code(numbers, words, True, 0, levels, centre, *_arguments(places))
    if data.endswith(b"\0") or not is_whole:
        raise QuantizationError("a layer's weights leave something undecoded: the data is damaged")
    return numbers


def _arguments(places: Places) -> tuple[Any, ...]:
    return (*astuple(places), *_tables())


@compiled
def _code(
    numbers: NDArray[Any],
    words: NDArray[Any],
    is_decoding: bool,
    limit: int,
    levels: int,
    centre: int,
    rows: int,
    channels: int,
    positions: int,
    width: int,
    stretch: NDArray[Any],
    squash: NDArray[Any],
    rates: NDArray[Any],
) -> tuple[int, bool]:
    """Fill `words` from `numbers`, or the other way round; return the words used, and whether all went well."""
    columns, before = channels * positions, max(2, width)
    sides: Any = np.zeros(before + columns, np.int64)  # of the last weight in each column: 0 centre, 1 above, 2 below
    by_column: Any = np.zeros(columns, np.int64)
    by_channel: Any = np.zeros(channels, np.int64)
    by_position: Any = np.zeros(positions, np.int64)
    by_near: Any = np.zeros(16, np.int64)
    above: Any = np.full(9, _HALF | 1)
    further: Any = np.full((3, 256), _HALF | 1)
    general: Any = _HALF
    w_column = w_channel = w_position = w_near = w_row = _SHARE
    held_channel = held_position = x_channel = x_position = 0
    is_spatial = positions > 1
    low, span, size = _open(words, is_decoding)
    index, marked, marked_bytes = 0, _PATIENCE, 0
    for _ in range(rows):
        by_row = (general >> 10 << 10) | 4
        channel, position = 0, -1
        for column in range(columns):
            here = column + before
            position += 1
            if position == positions:
                channel, position = channel + 1, 0
            left, up = sides[here - 1], sides[here - width]
            near = (left == 0) | (sides[here - 2] == 0) << 1 | (up == 0) << 2 | (sides[here] == 0) << 3
            held_column = _known(by_column[column], general, 2)
            held_near = _known(by_near[near], general, 1)
            base = stretch[general >> 20]
            x_column = stretch[held_column >> 20] - base
            x_near = stretch[held_near >> 20] - base
            x_row = stretch[by_row >> 20] - base
            total = w_column * x_column + w_near * x_near + w_row * x_row
            if is_spatial:  # else a channel is a column
                held_channel = _known(by_channel[channel], general, 2)
                held_position = _known(by_position[position], general, 2)
                x_channel = stretch[held_channel >> 20] - base
                x_position = stretch[held_position >> 20] - base
                total += w_channel * x_channel + w_position * x_position
            probability = squash[min(max(base + (total >> 16) + 2047, 0), 4094)]
            step, side, reached, stage = numbers[index] - centre, 0, 1, _CENTRE
            while True:
                lower = (span >> 16) * probability
                if is_decoding:
                    yes = 1 if low < lower else 0
                    low -= 0 if yes else lower
                else:
                    asked = step == 0 if stage == _CENTRE else step > 0 if stage == _SIDE else abs(step) > reached
                    yes = 1 if asked else 0
                    low += 0 if yes else lower
                span = lower if yes else span - lower
                if span < 1 << 32:
                    span <<= 16
                    if is_decoding:
                        low = (low << 16) + (words[size] if size < words.size else 0)
                    else:  # `_sent`, written out: as a call, with its array, coding takes 1.6 times as long
                        if low >> 48:
                            carried = min(size, words.size) - 1
                            while carried >= 0 and words[carried] == 65535:
                                words[carried] = 0
                                carried -= 1
                            if carried >= 0:
                                words[carried] += 1
                        if size < words.size:
                            words[size] = low >> 32 & 65535
                        low = (low & 0xFFFFFFFF) << 16
                    size += 1
                if stage == _CENTRE:
                    error = ((yes << 16) - probability) * 3
                    w_column += (x_column * error + 32768) >> 16
                    w_near += (x_near * error + 32768) >> 16
                    w_row += (x_row * error + 32768) >> 16
                    general = _learnt(general, yes, rates[general & 1023])
                    by_column[column] = _learnt(held_column, yes, rates[held_column & 1023])
                    by_near[near] = _learnt(held_near, yes, rates[held_near & 1023])
                    by_row = _learnt(by_row, yes, rates[by_row & 1023])
                    if is_spatial:
                        w_channel += (x_channel * error + 32768) >> 16
                        w_position += (x_position * error + 32768) >> 16
                        by_channel[channel] = _learnt(held_channel, yes, rates[held_channel & 1023])
                        by_position[position] = _learnt(held_position, yes, rates[held_position & 1023])
                    if yes:
                        break
                    pair = left * 3 + up
                    stage = _SIDE
                    if 0 < centre < levels - 1:
                        probability = _direct(above[pair])
                        continue
                    yes = 1 if centre == 0 else 0
                elif stage == _SIDE:
                    above[pair] = _learnt(above[pair], yes, rates[above[pair] & 1023])
                else:
                    further[side, reached] = _learnt(further[side, reached], yes, rates[further[side, reached] & 1023])
                    if yes == 0:
                        break
                    reached += 1
                if stage == _SIDE:
                    side = 1 if yes else 2
                    most = levels - 1 - centre if yes else centre
                    stage = _FURTHER
                if reached == most:
                    break
                probability = _direct(further[side, reached])
            if is_decoding:
                numbers[index] = centre + (reached if side == 1 else -reached if side == 2 else 0)
            sides[here] = side
            index += 1
        if is_decoding or index < 2 * marked:
            continue
        is_late = marked_bytes > 0 and _is_over(2 * size - marked_bytes, index - marked, limit, numbers.size)
        if 2 * size > limit or (is_late and _is_over(2 * size - _CREDIT, index, limit, numbers.size)):
            return size, False
        marked, marked_bytes = index, 2 * size
    return _closed(words, is_decoding, low, span, size)


@compiled
def _known(counter: Any, general: Any, learnt: int) -> Any:
    """Return a counter; one that is new starts where the counter of all weights is."""
    return counter if counter else (general >> 10 << 10) | learnt


@compiled
def _learnt(counter: Any, yes: Any, rate: Any) -> Any:
    probability, learnt = counter >> 10, counter & 1023
    probability += ((yes << 22) - yes - probability) * rate >> 16
    return probability << 10 | min(learnt + 1, 1023)


@compiled
def _direct(counter: Any) -> Any:
    """Return a counter's probability, of 16 bits, away from 0 and 1."""
    return min(max(counter >> 16, 32), 65504)


@compiled
def _open(words: NDArray[Any], is_decoding: bool) -> tuple[Any, Any, Any]:
    """Return the coder's state: low end of the interval (of the number read, above it), range, and words passed."""
    value = 0
    if is_decoding:
        for index in range(3):
            value = (value << 16) + (words[index] if index < words.size else 0)
    return value, 1 << 48, 3 if is_decoding else 0


@compiled
def _sent(words: NDArray[Any], low: Any, size: int) -> Any:
    """Write the upper 16 of 48 bits, what goes beyond them carried on; return the others."""
    if low >> 48:
        carried = min(size, words.size) - 1
        while carried >= 0 and words[carried] == 65535:
            words[carried] = 0
            carried -= 1
        if carried >= 0:
            words[carried] += 1
    if size < words.size:
        words[size] = low >> 32 & 65535
    return (low & 0xFFFFFFFF) << 16


@compiled
def _closed(words: NDArray[Any], is_decoding: bool, low: Any, span: Any, size: Any) -> tuple[Any, bool]:
    """Write the last words, or say whether those that were read are what would have been written."""
    read = 0
    if is_decoding:
        for index in range(size - 3, size):
            read = (read << 16) + (words[index] if index < words.size else 0)
        low = (read - low) & 0xFFFFFFFFFFFF
    bits = 48
    while -(-low >> bits) << bits >= low + span:
        bits -= 1
    last = -(-low >> bits) << bits
    if is_decoding:
        return size, last & 0xFFFFFFFFFFFF == read and words.size <= size
    for index in range(3):
        last = _sent(words, last, size + index)
    return size + 3, True


@compiled
def _is_over(used: int, done: int, limit: int, count: int) -> bool:
    """Say whether more bytes were used than the share of the limit."""
    return used * count > limit * done
