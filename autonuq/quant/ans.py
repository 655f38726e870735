"""An ANS coder with one fixed model: whole numbers below k, each with a frequency of 2**24 in all.

The state has 64 bits and the stream consists of words of 32 bits, written from the last number to the first and read
the other way round. To write a number of frequency f, with c the sum of the frequencies below it: if the state's upper
40 bits are f or more, its lower 32 go to the stream; then ``state = state // f * 2**24 + c + state % f``. The state
starts at 0 and ends as the stream's last words, the lower one first, without leading zeros. This is how the stack coder
of the library `constriction` works, whose streams older versions wrote.

**Source**: Duda, arXiv:1311.2540.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.machine_code import compiled

MODEL_BITS = 24
"""The frequencies of all numbers add up to 2**24."""

_BUCKET_BITS = 10  # of a model's place: numbers are looked up by these, then searched


def encode_ans(numbers: NDArray[np.uint8], frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the words of numbers.

    Parameters
    ----------
    numbers : ndarray of uint8, shape (n,)
    frequencies : ndarray of int64, shape (k,)
        At least 1 of each number; they add up to 2**24.

    Notes
    -----
    **Cost**: O(n), one division a number.
    """
    words = np.empty(numbers.size + 2, dtype=np.uint32)
    size = _encode(numbers, frequencies.astype(np.uint64), _starts(frequencies)[:-1], words)
    return words[:size]


def decode_ans(words: NDArray[np.uint32], frequencies: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """Return `count` numbers, shape (count,).

    Raises
    ------
    QuantizationError
        The words are not what `encode_ans` makes of so many numbers.

    Notes
    -----
    **Cost**: O(n): a table of 1,024 places, and a step for each further number that begins in the same place.
    """
    if words.size and not words[-1]:
        raise QuantizationError("a layer's weights end in nothing: the data is damaged")
    starts = _starts(frequencies)
    places = np.arange(1 << _BUCKET_BITS, dtype=np.uint64) << np.uint64(MODEL_BITS - _BUCKET_BITS)
    first = (np.searchsorted(starts[:-1], places, side="right") - 1).astype(np.uint8)
    numbers = np.empty(count, dtype=np.uint8)
    if not _decode(words, frequencies.astype(np.uint64), starts, first, numbers):
        raise QuantizationError("a layer's weights leave something undecoded: the data is damaged")
    return numbers


def _starts(frequencies: NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.concatenate([[0], np.cumsum(frequencies)]).astype(np.uint64)


@compiled
def _encode(
    numbers: NDArray[np.uint8], frequencies: NDArray[np.uint64], starts: NDArray[np.uint64], words: NDArray[np.uint32]
) -> int:
    """Write the words, at most one a number and two more, and return how many there are."""
    state, size = np.uint64(0), 0
    for index in range(numbers.size - 1, -1, -1):
        number = numbers[index]
        frequency = frequencies[number]
        if state >> np.uint64(40) >= frequency:
            words[size] = np.uint32(state & np.uint64(0xFFFFFFFF))
            size += 1
            state >>= np.uint64(32)
        quotient = state // frequency
        state = (quotient << np.uint64(24)) + starts[number] + (state - quotient * frequency)
    while state:
        words[size] = np.uint32(state & np.uint64(0xFFFFFFFF))
        size += 1
        state >>= np.uint64(32)
    return size


@compiled
def _decode(
    words: NDArray[np.uint32],
    frequencies: NDArray[np.uint64],
    starts: NDArray[np.uint64],
    first: NDArray[np.uint8],
    numbers: NDArray[np.uint8],
) -> bool:
    """Fill `numbers`, and say whether that uses up the words."""
    state, left = np.uint64(0), words.size
    while left and state < np.uint64(1 << 32):
        left -= 1
        state = (state << np.uint64(32)) | np.uint64(words[left])
    for index in range(numbers.size):
        place = state & np.uint64(0xFFFFFF)
        number = np.int64(first[place >> np.uint64(14)])
        while starts[number + 1] <= place:
            number += 1
        numbers[index] = number
        state = (state >> np.uint64(24)) * frequencies[number] + (place - starts[number])
        if state < np.uint64(1 << 32) and left:
            left -= 1
            state = (state << np.uint64(32)) | np.uint64(words[left])
    return left == 0 and state == 0
