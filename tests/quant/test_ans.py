"""The ANS coder beside plain Python integers, which cannot overflow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonuq.errors import QuantizationError
from autonuq.quant.ans import decode_ans, encode_ans


def frequencies_of(shares):
    """Integers of at least 1 that add up to 2**24."""
    found = np.maximum(np.array(shares) * (1 << 24) // (sum(shares) + 1), 1).astype(np.int64)
    found[found.argmax()] += (1 << 24) - found.sum()
    return found


def words_of(numbers, frequencies):
    state, words, starts = 0, [], [0, *np.cumsum(frequencies).tolist()]
    for number in reversed(numbers.tolist()):
        frequency = int(frequencies[number])
        if state >> 40 >= frequency:
            words.append(state % 2**32)
            state >>= 32
        state = (state // frequency << 24) + starts[number] + state % frequency
    while state:
        words.append(state % 2**32)
        state >>= 32
    return words


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256), st.integers(0, 500), st.integers(0, 99))
def test_words_are_those_of_the_definition(shares, count, seed):
    frequencies = frequencies_of(shares)
    rng = np.random.default_rng(seed)
    numbers = rng.choice(len(shares), count, p=frequencies / frequencies.sum()).astype(np.uint8)
    words = encode_ans(numbers, frequencies)
    assert words.tolist() == words_of(numbers, frequencies)
    assert np.array_equal(decode_ans(words, frequencies, count), numbers)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.lists(st.integers(0, 99), min_size=2, max_size=9))
def test_any_words_are_numbers_or_refused(words, shares):
    frequencies = frequencies_of(shares)
    try:
        numbers = decode_ans(np.array(words, np.uint32), frequencies, 50)
    except QuantizationError:
        return
    assert encode_ans(numbers, frequencies).tolist() == words


def test_words_that_are_left_over_are_refused():
    frequencies = frequencies_of([3, 1])
    words = encode_ans(np.resize([1, 0, 0], 100).astype(np.uint8), frequencies)
    for count in (0, 1, 50, 99):
        with pytest.raises(QuantizationError):
            decode_ans(words, frequencies, count)
    with pytest.raises(QuantizationError):
        decode_ans(np.append(words, 0).astype(np.uint32), frequencies, 100)
