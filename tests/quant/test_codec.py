"""One set of checks for every codec, and what each promises about its size."""

import binascii

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autonuq.errors import QuantizationError
from autonuq.quant.codebook import build_codebook, code_histogram
from autonuq.quant.codec import CODECS

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
few_codes = st.integers(1, 9).flatmap(
    lambda k: st.lists(st.integers(-128, 127), min_size=k, max_size=k).flatmap(
        lambda levels: arrays(np.int8, st.integers(0, 70), elements=st.sampled_from(levels))
    )
)
any_codes = few_codes | arrays(np.int8, st.integers(0, 300))


def laplace(size, levels):
    rng = np.random.default_rng(size)
    codes = np.clip(np.rint(rng.laplace(0, 18, size)), -128, 127).astype(np.int8)
    return build_codebook(code_histogram(codes), levels).apply(codes)


@every_codec
@settings(max_examples=150, deadline=None)
@given(codes=any_codes)
def test_decoding_gives_the_codes_back(codec, codes):
    data = codec.encode(codes)
    found = codec.decode(data, codes.size)
    assert found.dtype == np.int8
    assert np.array_equal(found, codes)
    assert codec.size_bytes(codes) == len(data)


@every_codec
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 16, 17, 100, 255, 256])
def test_every_number_of_levels(codec, levels):
    rng = np.random.default_rng(levels)
    kept = np.sort(rng.permutation(256)[:levels]) - 128
    codes = np.concatenate([kept, rng.choice(kept, 1001)]).astype(np.int8).reshape(1, -1)
    data = codec.encode(codes)
    assert np.array_equal(codec.decode(data, codes.size), codes.ravel())
    assert codec.size_bytes(codes) == len(data)
    assert codec.estimate_bytes(code_histogram(codes)) == pytest.approx(len(data), abs=5)


@every_codec
@pytest.mark.parametrize("shape", [(20, 1, 5, 5), (500, 800), (10, 500)])
def test_layers_of_lenet(codec, shape):
    codes = laplace(int(np.prod(shape)), 16).reshape(shape)
    data = codec.encode(codes)
    assert np.array_equal(codec.decode(data, codes.size).reshape(shape), codes)


@every_codec
def test_no_weights_are_no_bytes(codec):
    nothing = np.empty((0, 3), np.int8)
    assert codec.encode(nothing) == b""
    assert codec.size_bytes(nothing) == 0
    assert codec.decode(b"", 0).size == 0
    with pytest.raises(QuantizationError):
        codec.decode(b"x", 0)
    with pytest.raises(QuantizationError):
        codec.decode(b"", 1)


@every_codec
def test_truncated_and_extended_data_is_refused(codec):
    codes = laplace(500, 8)
    data = codec.encode(codes)
    for damaged in [data[:stop] for stop in range(len(data))] + [data + b"\1", data + b"\0\0"]:
        with pytest.raises(QuantizationError):
            codec.decode(damaged, codes.size)


def test_the_entropy_codec_refuses_any_flipped_bit():
    codes = laplace(200, 8)
    data = CODECS["entropy"].encode(codes)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(QuantizationError):
            CODECS["entropy"].decode(bytes(damaged), codes.size)


@pytest.mark.parametrize("body", [b"\0", b"\7\0", b"\7" + b"\xff" * 40, b"\xff\0\xff\xff", b"\x7f" + b"\0" * 80])
def test_nonsense_with_a_right_checksum_is_refused(body):
    checksum = binascii.crc_hqx((100).to_bytes(8, "little") + body, 0)
    with pytest.raises(QuantizationError):
        CODECS["entropy"].decode(checksum.to_bytes(2, "little") + body, 100)


@pytest.mark.parametrize("count", [1, 499, 501, 510, 10_000])
def test_the_entropy_codec_refuses_another_number_of_weights(count):
    codes = laplace(500, 8)
    with pytest.raises(QuantizationError, match="checksum"):
        CODECS["entropy"].decode(CODECS["entropy"].encode(codes), count)


def test_the_fixed_codec_refuses_impossible_levels_indices_and_padding():
    data = bytearray(CODECS["fixed"].encode(np.array([1, 2, 3], np.int8)))
    assert bytes(data) == bytes([2, 1, 2, 3, 0b000110_00])
    for place, value in ((1, 3), (4, 0b111111_00), (4, 0b000110_01)):
        damaged = bytearray(data)
        damaged[place] = value
        with pytest.raises(QuantizationError):
            CODECS["fixed"].decode(bytes(damaged), 3)


@pytest.mark.parametrize(
    ("levels", "size"), [(1, 2), (2, 3 + 125), (4, 5 + 250), (5, 6 + 375), (16, 17 + 500), (17, 18 + 625)]
)
def test_fixed_sizes_are_the_formula(levels, size):
    codes = np.resize(np.arange(levels, dtype=np.int8), 1000)
    assert CODECS["fixed"].size_bytes(codes) == size


@pytest.mark.parametrize("levels", [8, 16, 32, 256])
def test_entropy_codec_is_close_to_first_order_entropy(levels):
    codes = laplace(300_000, levels)
    counts = np.unique(codes, return_counts=True)[1]
    entropy_bytes = np.sum(counts * np.log2(codes.size / counts)) / 8
    assert entropy_bytes <= CODECS["entropy"].size_bytes(codes) <= entropy_bytes * 1.001 + 10


def test_side_information_of_a_small_layer_is_small():
    codes = laplace(500, 8)
    counts = np.unique(codes, return_counts=True)[1]
    entropy_bytes = np.sum(counts * np.log2(codes.size / counts)) / 8
    assert CODECS["entropy"].size_bytes(codes) < entropy_bytes + 20


def test_bytes_are_the_same_everywhere():
    """Bytes that were written once stay readable: this is version 1 of the format."""
    codes = np.array([0, 0, 5, -3, 0, 0, 127, 0, 5, 0, -128, 0], np.int8)
    assert CODECS["entropy"].encode(codes).hex() == "82800480e640da833dc0a416861eca07"
    assert CODECS["fixed"].encode(codes).hex() == "0480fd00057f4994a26820"  # 010 010 011 001 010 ...


@every_codec
def test_other_dtypes_are_refused(codec):
    with pytest.raises(TypeError, match="int8"):
        codec.encode(np.ones(3))
