"""One set of checks for every codec, and what each promises about its size."""

import binascii
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autonuq.errors import QuantizationError
from autonuq.quant.codebook import build_codebook, code_histogram
from autonuq.quant.codec import CODECS, EntropyCodec
from autonuq.quant.codecs import make_codec

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
LEARNT = 0x2C6E
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
    """Bytes that were written once stay readable."""
    codes = np.array([0, 0, 5, -3, 0, 0, 127, 0, 5, 0, -128, 0], np.int8)
    assert CODECS["entropy"].encode(codes).hex() == "f9ad0120399036a0516dbf"
    assert CODECS["fixed"].encode(codes).hex() == "0480fd00057f4994a26820"  # 010 010 011 001 010 ...


@every_codec
def test_other_dtypes_are_refused(codec):
    with pytest.raises(TypeError, match="int8"):
        codec.encode(np.ones(3))


def squares(count, modulus):
    return np.arange(count) ** 2 % modulus


# Codes, and what the library `constriction` (0.5.0) made of them in versions of this program that used it.
RECORDED = {
    "one weight": (
        np.array([-7]),
        "fb800079",
    ),
    "one level": (
        np.full(1000, 3),
        "c7690083",
    ),
    "three levels": (
        (squares(400, 11) % 3 - 1) * 40,
        "6ada022fe0c0f90b80b2f9220da0f043cd06d28f7892359fa1f0abc4220bb840058230bbc93012a8a1986ad02858b170be0bbf0d"
        "acd634e2aee3c617a1bcd43378bb4a178087474bd6c9ecd6d00b2e3307097024e9ad04",
    ),
    "skewed": (
        np.where(np.arange(600) % 97 == 5, -1, 0),
        "2f8701407e86d40d0aba878a39cfdc221b",
    ),
    "eight levels": (
        squares(300, 17) // 2 * 9 - 30,
        "bb8c060ac8a9f4b1c1fe26508100e733f0db011b291ec41e7107a141dc2109b90e0143e93bcc2f0052b91c75f4a5956618d5c14f"
        "1a1024d94709ef46a476a88e3d34582c55c56dbe557ba42078036b55598f60e8d424bdd35fd0e6b099401aa11222d66c5e87915c"
        "4e522a315cb73d38c0820c169858",
    ),
    "all levels": (
        (np.arange(256) + 128) % 256 - 128,
        "c8c6ff0c000000000000000000000000000000000000000000000000000000000000000000007a7b7c7d76777879727374756e6f"
        "70716a6b6c6d66676869626364655e5f60615a5b5c5d56575859525354554e4f50514a4b4c4d46474849424344453e3f40413a3b"
        "3c3d36373839323334352e2f30312a2b2c2d26272829222324251e1f20211a1b1c1d16171819121314150e0f10110a0b0c0d0607"
        "080902030405feff0001fafbfcfdf6f7f8f9f2f3f4f5eeeff0f1eaebecede6e7e8e9e2e3e4e5dedfe0e1dadbdcddd6d7d8d9d2d3"
        "d4d5cecfd0d1cacbcccdc6c7c8c9c2c3c4c5bebfc0c1babbbcbdb6b7b8b9b2b3b4b5aeafb0b1aaabacada6a7a8a9a2a3a4a59e9f"
        "a0a19a9b9c9d96979899929394958e8f90918a8b8c8d868788898283848580817e7f",
    ),
    "ends in zeros": (
        np.array([-1] * 3 + [0] * 40),
        "f14401407e51802a59197292",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_streams_of_older_versions_are_read(name):
    codes, stream = RECORDED[name]
    for codec in (CODECS["entropy"], make_codec("entropy", (1, codes.size))):
        found = codec.decode(bytes.fromhex(stream), codes.size)
        assert np.array_equal(found, codes)


def sparse(rows, columns, step=40):
    """Codes 0 and 2 levels on either side of it, in columns that differ in how many are 0."""
    rng = np.random.default_rng(rows * columns)
    is_zero = rng.random((rows, columns)) < rng.permutation(np.linspace(0.4, 1, columns))
    return np.where(is_zero, 0, rng.choice([-2, -1, 1, 2], (rows, columns), p=[0.1, 0.4, 0.4, 0.1]) * step).astype(
        np.int8
    )


@pytest.mark.parametrize(
    ("shape", "digest"),
    [
        ((20, 30), "8ee3be32933f0c39"),
        ((16, 4, 3, 3), "79dc4da3c539247e"),
        ((600,), "41065e5095ed06af"),
        ((10, 3, 7), "32a252ab14990f5f"),
    ],
)
def test_learnt_bytes_are_the_same_everywhere(shape, digest):
    codes = sparse(shape[0], int(np.prod(shape[1:]))).reshape(shape)
    data = make_codec("entropy", shape).encode(codes)
    assert hashlib.sha256(data).hexdigest()[:16] == digest


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5)
    .map(tuple)
    .flatmap(
        lambda shape: arrays(np.int8, shape, elements=st.sampled_from([-128, -64, 0, 0, 0, 0, 64]) | st.integers(-9, 9))
    )
)
def test_layers_of_any_shape_come_back(codes):
    codec = make_codec("entropy", codes.shape)
    data = codec.encode(codes)
    assert np.array_equal(codec.decode(data, codes.size).reshape(codes.shape), codes)
    assert codec.size_bytes(codes) == len(data)


def test_columns_that_differ_pay():
    codes = sparse(300, 200)
    plain, shaped = CODECS["entropy"].encode(codes), make_codec("entropy", codes.shape).encode(codes)
    assert len(shaped) < 0.97 * len(plain)
    assert np.array_equal(CODECS["entropy"].decode(plain, codes.size), codes.ravel())
    assert np.array_equal(make_codec("entropy", codes.shape).decode(plain, codes.size), codes.ravel())
    with pytest.raises(QuantizationError, match="without the layer's shape"):
        CODECS["entropy"].decode(shaped, codes.size)
    with pytest.raises(QuantizationError, match="has not"):
        make_codec("entropy", codes.shape).decode(shaped, codes.size - 1)
    with pytest.raises(ValueError, match="got codes of shape"):
        make_codec("entropy", codes.shape).encode(codes[1:])


@pytest.mark.parametrize("codes", [sparse(30, 40), sparse(30, 40)[:5], laplace(3000, 9).reshape(60, 50)])
def test_learnt_streams_refuse_any_flipped_bit_and_any_other_length(codes):
    codec = EntropyCodec(codes.shape)
    data = codec.encode(codes)
    flipped = [
        data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        for place in range(len(data))
        for bit in range(8)
    ]
    cut = [data[:stop] for stop in range(len(data))]
    for damaged in (*flipped, *cut, data + b"\1", data + b"\0\0"):
        with pytest.raises(QuantizationError):
            codec.decode(damaged, codes.size)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.sampled_from([0, LEARNT]))
def test_anything_with_a_right_checksum_is_codes_or_refused(body, kind):
    checksum = binascii.crc_hqx((100).to_bytes(8, "little") + body, 0) ^ kind
    try:
        codes = EntropyCodec((10, 10)).decode(checksum.to_bytes(2, "little") + body, 100)
    except QuantizationError:
        return
    assert codes.shape == (100,)


def test_no_flipped_bit_makes_one_kind_of_stream_the_other():
    """One bit changes an odd number of bits of this CRC; the kinds differ in an even number."""
    assert LEARNT.bit_count() % 2 == 0
    for length in (1, 7, 100):
        for bit in range(8 * length):
            assert binascii.crc_hqx((1 << bit).to_bytes(length, "little"), 0).bit_count() % 2 == 1


@pytest.mark.parametrize(
    "levels", [[0, 40], [-40, 0, 40], [-128, 0], [-128, -64, 0, 64], [7, 127], [-128, 127], [-3, 5], [0, 1]]
)
def test_any_two_levels_can_be_learnt(levels):
    codes = np.random.default_rng(0).permutation(np.repeat(np.int8(levels), 100))
    data = CODECS["entropy"].encode(codes)
    assert np.array_equal(CODECS["entropy"].decode(data, codes.size), codes)


@pytest.mark.parametrize("levels", [3, 8, 32])
def test_large_layers_stay_within_two_thousandths_of_first_order_entropy(levels):
    codes = laplace(40_000, levels)
    counts = np.unique(codes, return_counts=True)[1]
    entropy_bytes = np.sum(counts * np.log2(codes.size / counts)) / 8
    assert CODECS["entropy"].size_bytes(codes) <= 1.002 * entropy_bytes
