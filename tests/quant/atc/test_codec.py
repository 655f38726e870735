"""The codec `ascend`, and the codebooks made for it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonuq.errors import QuantizationError
from autonuq.quant.atc.codebook import build_ascend_codebooks, coarse_counts, mean_units
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codebook import build_codebook, build_codebooks, code_histogram

CODES = np.arange(-128, 128)


def laplace(shape, levels, scale=18):
    rng = np.random.default_rng(levels)
    codes = np.clip(np.rint(rng.laplace(0, scale, shape)), -128, 127).astype(np.int8)
    return build_codebook(code_histogram(codes), levels).apply(codes)


def distortion(codebook, importance):
    return np.dot(importance, (CODES - codebook.table.astype(float)) ** 2)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (10, 33), (64, 32), (500, 100), (3, 5, 2, 2), (32, 64, 3, 3), (64, 3, 7, 7)]),
    levels=st.sampled_from([1, 2, 5, 16, 36, 60, 256]),
    scale=st.sampled_from([1, 10, 60]),
)
def test_decoding_gives_the_codes_back(shape, levels, scale):
    codec, codes = AscendCodec(shape), laplace(shape, levels, scale)
    data = codec.encode(codes)
    assert np.array_equal(codec.decode(data, codes.size).reshape(shape), codes)
    assert codec.size_bytes(codes) == len(data) <= codec.device_bytes


def test_a_raw_fractal_between_coded_ones():
    rng = np.random.default_rng(0)
    codes = laplace((512, 512), 8)
    codes[:, 128:256] = rng.integers(-128, 128, (512, 128))
    codec = AscendCodec(codes.shape)
    data = codec.encode(codes)
    assert len(data) < codec.device_bytes
    assert np.array_equal(codec.decode(data, codes.size).reshape(codes.shape), codes)


def test_what_is_refused_costs_its_device_bytes():
    codes = laplace((30, 100), 256, scale=60)
    codec = AscendCodec(codes.shape)
    assert len(codec.encode(codes)) == codec.size_bytes(codes) == codec.device_bytes == 2 * 4 * 512
    assert codec.estimate_bytes(code_histogram(codes)) == codec.device_bytes


@pytest.mark.parametrize("levels", [2, 4, 8, 16, 22, 32, 36])
@pytest.mark.parametrize("shape", [(256, 256, 3, 3), (64, 3, 7, 7), (1000, 512), (200, 80, 3, 3)])
def test_the_estimate_is_near(shape, levels):
    codec, codes = AscendCodec(shape), laplace(shape, levels)
    assert codec.estimate_bytes(code_histogram(codes)) == pytest.approx(codec.size_bytes(codes), rel=0.03)


def test_damaged_and_wrong_data_is_refused():
    codes = laplace((64, 256), 16)
    codec = AscendCodec(codes.shape)
    data = codec.encode(codes)
    for wrong in (data[:-1], data[:-128], data + bytes(128), b"", data[:100] + b"\x55" + data[101:]):
        with pytest.raises(QuantizationError):
            codec.decode(wrong, codes.size)
    with pytest.raises(QuantizationError, match="weights"):
        codec.decode(data, codes.size - 1)
    narrow = AscendCodec((10, 10))
    with pytest.raises(QuantizationError, match="padding"):
        narrow.decode(b"\x01" * narrow.device_bytes, 100)


def test_a_codec_is_for_one_shape():
    with pytest.raises(ValueError, match="'shape' parameter"):
        AscendCodec((3, 4, 5))
    with pytest.raises(ValueError, match="shape"):
        AscendCodec((3, 4)).size_bytes(np.zeros((4, 3), np.int8))


@pytest.mark.parametrize("padding_zeros", [0, 500, 200_000])
@pytest.mark.parametrize("with_importance", [False, True])
def test_codebooks_beat_those_of_least_error(padding_zeros, with_importance):
    codes = laplace((100, 500), 256)
    histogram = code_histogram(codes)
    importance = histogram * (1 + np.abs(CODES) / 64) if with_importance else histogram.astype(float)
    padded = histogram.copy()
    padded[128] += padding_zeros
    family = build_codebooks(padded, importance=importance, max_levels=36)
    slopes = np.geomspace(0.1, 100, 12)
    found = build_ascend_codebooks(histogram, slopes, importance=importance, padding_zeros=padding_zeros)

    def objective(codebook, slope):
        units = padded.sum() * mean_units(coarse_counts(codebook, padded))
        return distortion(codebook, importance) + slope * units

    for codebook, slope in zip(found, slopes, strict=True):
        plain = min(objective(family.codebook(k), slope) for k in range(1, 37))
        assert objective(codebook, slope) <= plain * (1 + 1e-9)
        assert codebook.table[128] == 0
        assert len(codebook.levels) <= 36
    units = [mean_units(coarse_counts(codebook, padded)) for codebook in found]
    assert np.all(np.diff(units) <= 1e-9)
    assert np.all(np.diff([distortion(codebook, importance) for codebook in found]) >= -1e-6)
    assert units[0] > units[-1]


def test_codebooks_equal_brute_force():
    rng = np.random.default_rng(4)
    for _ in range(10):
        histogram = np.zeros(256, np.int64)
        histogram[128 + np.array([-9, -6, -5, -2, 0, 1, 4, 7])] = rng.integers(1, 100, 8)
        for slope in (0.3, 3.0, 30.0):
            (found,) = build_ascend_codebooks(histogram, np.array([slope]))
            best = min(objective_of(cut, histogram, slope) for cut in range(1 << 7))
            units = histogram.sum() * mean_units(coarse_counts(found, histogram))
            assert distortion(found, histogram) + slope * units <= best * 1.01


def objective_of(cut, histogram, slope):
    """Return the objective of occupied codes cut where the bits of a number are set."""
    occupied = np.flatnonzero(histogram)
    groups = np.split(occupied, [place + 1 for place in range(occupied.size - 1) if cut >> place & 1])
    counts, error = [], 0.0
    for group in groups:
        codes, weights = CODES[group], histogram[group]
        level = 0 if 0 in codes else np.rint(np.dot(codes, weights) / weights.sum())
        error += np.dot(weights, (codes - level) ** 2)
        counts.append(weights.sum())
    return error + slope * histogram.sum() * mean_units(np.array(counts))


@pytest.mark.parametrize("max_levels", [4, 16, 22, 32])
def test_levels_are_limited(max_levels):
    histogram = code_histogram(laplace((300, 300), 256, scale=30))
    found = build_ascend_codebooks(histogram, np.geomspace(0.01, 100, 9), max_levels=max_levels)
    assert all(len(codebook.levels) <= max_levels for codebook in found)
    assert len(found[0].levels) == max_levels


def test_designed_codebooks_save_a_tenth_at_the_error_of_16_levels():
    codes = laplace((256, 256, 3, 3), 256)
    histogram, codec = code_histogram(codes), AscendCodec((256, 256, 3, 3))
    plain = build_codebook(histogram, 16)
    slopes = np.geomspace(0.5, 3, 24) * distortion(plain, histogram) / codes.size
    found = codec.build_codebooks(histogram, slopes, max_levels=32)
    as_good = [codebook for codebook in found if distortion(codebook, histogram) <= distortion(plain, histogram)]
    assert min(codec.size_bytes(book.apply(codes)) for book in as_good) < 0.88 * codec.size_bytes(plain.apply(codes))


def test_misuse_of_the_codebooks():
    histogram = code_histogram(laplace((30, 30), 16))
    for slopes in ([0.0], [-1.0], [np.nan]):
        with pytest.raises(ValueError, match="'lagrangians' parameter"):
            build_ascend_codebooks(histogram, np.array(slopes))
    with pytest.raises(ValueError, match="'max_levels' parameter"):
        build_ascend_codebooks(histogram, np.ones(1), max_levels=37)
    with pytest.raises(QuantizationError):
        build_ascend_codebooks(np.zeros(256, np.int64), np.ones(1))
