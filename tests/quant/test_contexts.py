"""What the learning coder gains, and that nothing makes it read or write beyond its arrays."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autonuq.errors import QuantizationError
from autonuq.quant.contexts import Places, _tables, decode_contexts, encode_contexts

MUCH = 1 << 20
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple)


def by_columns(rows, columns):
    """Numbers 0, 1, 2 of columns that differ in how often they are 1."""
    rng = np.random.default_rng(rows)
    is_zero = rng.random((rows, columns)) < rng.permutation(np.linspace(0.3, 1, columns))
    return np.where(is_zero, 1, rng.integers(0, 2, (rows, columns)) * 2).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 6))), st.integers(0, 6))
def test_decoding_gives_the_numbers_back(numbers, centre):
    places = Places.of_shape(numbers.shape)
    data = encode_contexts(numbers.ravel().copy(), 7, centre, places, MUCH)
    assert np.array_equal(decode_contexts(data, 7, centre, places), numbers.ravel())


@pytest.mark.parametrize("levels", [2, 3, 64, 256])
@pytest.mark.parametrize("shape", [(40_000,), (1, 40_000), (200, 200), (50, 20, 5, 8), (8, 1, 5, 1000)])
def test_any_number_of_levels_in_any_shape(levels, shape):
    numbers = np.random.default_rng(levels).binomial(levels - 1, 0.4, 40_000).astype(np.uint8)
    centre = levels // 2
    data = encode_contexts(numbers.copy(), levels, centre, Places.of_shape(shape), MUCH)
    assert np.array_equal(decode_contexts(data, levels, centre, Places.of_shape(shape)), numbers)


def test_carries_go_through_all_words():
    """The least likely decision again and again moves the lower end of the interval to just below a carry."""
    numbers = np.where(np.arange(30_000) % 997 == 996, 1, 0).astype(np.uint8)
    for centre in (0, 1):
        data = encode_contexts(numbers.copy(), 2, centre, Places.of_shape((30_000,)), MUCH)
        assert np.array_equal(decode_contexts(data, 2, centre, Places.of_shape((30_000,))), numbers)


def test_columns_that_differ_pay():
    numbers = by_columns(300, 200)
    shares = np.bincount(numbers.ravel()) / numbers.size
    entropy_bytes = -(shares * np.log2(shares)).sum() * numbers.size / 8
    shaped = encode_contexts(numbers.ravel().copy(), 3, 1, Places.of_shape(numbers.shape), MUCH)
    assert len(shaped) < 0.9 * entropy_bytes
    assert len(encode_contexts(numbers.ravel().copy(), 3, 1, Places.of_shape((numbers.size,)), MUCH)) > entropy_bytes


def test_a_limit_is_kept():
    numbers = by_columns(300, 200).ravel()
    places = Places.of_shape((300, 200))
    size = len(encode_contexts(numbers.copy(), 3, 1, places, MUCH))
    assert len(encode_contexts(numbers.copy(), 3, 1, places, size)) == size
    for limit in (0, 1, 2, 100, size - 1000, size - 1):
        assert encode_contexts(numbers.copy(), 3, 1, places, limit) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(2, 64), shapes, st.data())
def test_any_bytes_are_numbers_or_refused(data, levels, shape, draw):
    centre = draw.draw(st.integers(0, levels - 1))
    try:
        numbers = decode_contexts(data, levels, centre, Places.of_shape(shape))
    except QuantizationError:
        return
    assert numbers.shape == (np.prod(shape),)
    assert encode_contexts(numbers, levels, centre, Places.of_shape(shape), MUCH) == data


def test_what_follows_the_last_weight_is_refused():
    numbers = by_columns(30, 20).ravel()
    data = encode_contexts(numbers.copy(), 3, 1, Places.of_shape((30, 20)), MUCH)
    for longer in (data + b"\0", data + b"\0\0", data + b"\1\2\3"):
        with pytest.raises(QuantizationError, match="undecoded"):
            decode_contexts(longer, 3, 1, Places.of_shape((30, 20)))


def test_tables_are_the_same_everywhere():
    digests = [hashlib.sha256(table.astype("<i4").tobytes()).hexdigest()[:16] for table in _tables()]
    assert digests == ["4d6de129c667b9a9", "d41002387e5c9b76", "9907bf9ddc225daf"]
    stretch, squash, _ = _tables()
    logits = np.arange(-2047, 2048) / 256
    assert np.abs(squash - 65536 / (1 + np.exp(-logits))).max() <= 0.5001
    middles = (np.arange(8, 1 << 16, 16)) / 65536
    assert (
        np.abs(stretch - np.clip(256 * np.log(middles / (1 - middles)), -2047, 2047)).max() < 17
    )  # where the table is steep, its 16 bits are coarse
