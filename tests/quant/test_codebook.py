"""Codebooks against brute force, and what holds for all of them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonuq.errors import QuantizationError
from autonuq.quant.codebook import (
    Codebook,
    build_codebook,
    build_codebooks,
    build_entropy_codebooks,
    build_intervals,
    code_histogram,
    code_importance,
    codebook_of,
)

CODES = np.arange(-128, 128)
small_histograms = st.dictionaries(st.integers(-7, 7), st.integers(1, 50), min_size=1, max_size=7)
importances = st.lists(st.floats(0, 100), min_size=256, max_size=256) | st.none()


def histogram_of(counts):
    histogram = np.zeros(256, np.int64)
    for code, count in counts.items():
        histogram[code + 128] = count
    return histogram


def distortion(codebook, weights):
    return float(np.dot(weights, (CODES - codebook.table.astype(float)) ** 2))


def brute_force(histogram, weights, k):
    """Try every set of k int8 levels that keeps zero; each code goes to its nearest level."""
    occupied = np.flatnonzero(histogram)
    codes, weights = CODES[occupied], weights[occupied]
    best = np.inf
    for levels in combinations(range(codes[0], codes[-1] + 1), k):
        if histogram[128] and 0 not in levels:
            continue
        nearest = np.min((codes[:, None] - np.array(levels)) ** 2, axis=1)
        best = min(best, float(np.dot(weights, nearest)))
    return best


@settings(max_examples=40, deadline=None)
@given(small_histograms, importances, st.integers(1, 4))
def test_no_set_of_levels_is_better(counts, importance, k):
    histogram = histogram_of(counts)
    weights = histogram.astype(float) if importance is None else np.array(importance)
    family = build_codebooks(histogram, importance=None if importance is None else weights)
    codebook = family.codebook(k)
    assert len(codebook.levels) == min(k, len(counts))
    assert 0 not in counts or 0 in codebook.levels
    expected = brute_force(histogram, weights, len(codebook.levels))
    held = np.where(histogram > 0, weights, 0)
    assert distortion(codebook, held) == pytest.approx(expected, rel=1e-9, abs=1e-9 * held.sum())
    assert family.distortions[len(codebook.levels) - 1] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_keeping_zero_changes_the_optimum():
    histogram = histogram_of({0: 1, 10: 100, 11: 100})
    assert build_codebook(histogram, 1).levels.tolist() == [0]
    assert build_codebook(histogram, 2).levels.tolist() == [0, 10]
    assert build_codebook(histogram_of({1: 1, 10: 100, 11: 100}), 1).levels.tolist() == [10]


def entropy_cost(starts, codes, counts, weights, lagrangian, side):
    total = 0.0
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        own, mass, n = codes[start:stop], weights[start:stop], counts[start:stop].sum()
        levels = [0] if 0 in own else range(own[0], own[-1] + 1)
        total += min(float(np.dot(mass, (own - level) ** 2)) for level in levels)
        total += lagrangian * (n * np.log2(counts.sum() / n) + side)
    return total


@settings(max_examples=25, deadline=None)
@given(small_histograms, importances, st.floats(0, 30))
def test_no_cut_is_better_with_bits_counted(counts, importance, lagrangian):
    histogram = histogram_of(counts)
    occupied = np.flatnonzero(histogram)
    codes, held = CODES[occupied], histogram[occupied].astype(float)
    weights = held if importance is None else np.array(importance)[occupied]
    every = [(0, *inner) for r in range(codes.size) for inner in combinations(range(1, codes.size), r)]
    costs = [entropy_cost(starts, codes, held, weights, lagrangian, 3.0) for starts in every]
    (codebook,) = build_entropy_codebooks(
        histogram,
        np.array([lagrangian]),
        importance=None if importance is None else np.array(importance),
        side_bits_per_level=3.0,
    )
    own = np.flatnonzero(np.diff(codebook.table[occupied].astype(int), prepend=-999))
    found = entropy_cost(tuple(own), codes, held, weights, lagrangian, 3.0)
    assert found == pytest.approx(min(costs), rel=1e-9, abs=1e-6)
    assert 0 not in counts or codebook.table[128] == 0


@pytest.fixture(scope="module")
def laplace():
    return np.clip(np.rint(np.random.default_rng(0).laplace(0, 15, (40, 30, 3, 3))), -128, 127).astype(np.int8)


def test_more_levels_never_raise_the_distortion(laplace):
    histogram = code_histogram(laplace)
    family = build_codebooks(histogram)
    assert family.max_levels == np.count_nonzero(histogram)
    assert np.all(np.diff(family.distortions) <= 0)
    assert family.distortions[-1] == 0
    for k in (1, 2, 3, 16, 17, 100, 256):
        codebook = family.codebook(k)
        index = min(k, family.max_levels) - 1
        assert distortion(codebook, histogram) == pytest.approx(family.distortions[index], rel=1e-12)
        assert np.sum((codebook.apply(laplace).astype(float) - laplace) ** 2) == distortion(codebook, histogram)


@pytest.mark.parametrize("k", [1, 2, 7, 16, 256])
def test_levels_and_zero_survive(laplace, k):
    histogram = code_histogram(laplace)
    for codebook in (build_codebook(histogram, k), *build_entropy_codebooks(histogram, np.array([float(k)]))):
        kept = codebook.apply(laplace)
        assert kept.shape == laplace.shape and kept.dtype == np.int8 and kept.flags.writeable
        assert np.array_equal(np.unique(kept), codebook.levels)
        assert np.array_equal(codebook.apply(kept), kept)
        assert np.all(kept[laplace == 0] == 0)
        assert np.array_equal(codebook.levels[codebook.indices(laplace)], kept)
        assert np.all(np.diff(codebook.table.astype(int)) >= 0)


def test_unimportant_codes_do_not_need_a_level():
    importance = np.ones(256)
    importance[CODES > 5] = 0
    histogram = np.where(np.abs(CODES) < 10, 3, 0)
    assert build_codebooks(histogram, importance=importance).distortions[15] == 0
    assert build_codebooks(histogram, importance=np.zeros(256)).codebook(1).levels.tolist() == [0]


@pytest.mark.parametrize("share", [0.004, 0.03, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_codebook_of_all_codes_is_the_largest_of_the_family(seed, share):
    rng = np.random.default_rng(seed)
    histogram = rng.integers(1, 9, 256) * (rng.random(256) < share)
    histogram[rng.integers(256)] = 1
    found, expected = codebook_of(histogram), build_codebook(histogram, 256)
    assert (found.levels == expected.levels).all() and (found.table == expected.table).all()


def test_a_limited_family_is_the_beginning_of_the_full_one(laplace):
    histogram = code_histogram(laplace)
    limited, full = build_codebooks(histogram, max_levels=8), build_codebooks(histogram)
    assert np.array_equal(limited.distortions, full.distortions[:8])
    assert limited.max_levels == 8
    assert np.array_equal(limited.codebook(200).table, full.codebook(8).table)


@pytest.mark.parametrize("size", [0, 1, 2, 65535, 65536, 65537, 100_001])
def test_histogram_counts_every_code(size):
    codes = np.random.default_rng(size).integers(-128, 128, size).astype(np.int8)
    assert np.array_equal(code_histogram(codes), np.bincount(codes.astype(int) + 128, minlength=256))


def test_importance_is_summed_per_code(monkeypatch):
    monkeypatch.setattr("autonuq.quant.codebook._PIECE", 20)
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (6, 5, 3)).astype(np.int8)
    for importance in (np.array(2.5), rng.random((6, 1, 1)), rng.random((5, 3)), rng.random((6, 5, 3))):
        expected = np.zeros(256)
        np.add.at(expected, codes.astype(int) + 128, np.broadcast_to(importance, codes.shape))
        np.testing.assert_allclose(code_importance(codes, importance), expected, rtol=1e-12)
    with pytest.raises(QuantizationError, match="importance"):
        code_importance(codes, np.array([-1.0]))


@pytest.mark.parametrize("histogram", [np.zeros(256), np.full(256, -1), np.full(256, np.nan), np.ones(255)])
def test_unusable_histograms_are_refused(histogram):
    with pytest.raises(QuantizationError, match="histogram"):
        build_codebooks(histogram)
    with pytest.raises(QuantizationError, match="histogram"):
        codebook_of(histogram)


@pytest.mark.parametrize("levels", [0, 257])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        build_codebook(np.ones(256), levels)
    with pytest.raises(ValueError, match="levels"):
        build_codebooks(np.ones(256)).codebook(levels)
    with pytest.raises(ValueError, match="lagrangian"):
        build_entropy_codebooks(np.ones(256), np.array([1.0, -1.0]))


def test_a_codebook_checks_its_form():
    table = np.zeros(256, np.int8)
    Codebook(np.zeros(1, np.int8), table)
    for levels in ([], [1], [0, 0], [1, 0]):
        with pytest.raises(ValueError, match="Codebook"):
            Codebook(np.array(levels, np.int8), table)


def plain_program(costs):
    """Cut into every number of intervals by the recurrence alone, without any pruning."""
    least = costs[:, 0].copy()
    yield least[-1]
    for _ in range(1, len(costs)):
        before = np.concatenate(([np.inf], least[:-1]))
        least = (costs + before).min(axis=1)
        yield least[-1]


shapes = st.sampled_from(("flat", "laplace", "rare"))
full_histograms = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 256), shapes)


@settings(max_examples=60, deadline=None)
@given(full_histograms, st.sampled_from((None, "noise", "zeros", "none")))
def test_no_pruning_costs_anything(kind, weighting):
    """Every number of levels, up to 256 codes: what is not looked at is never better."""
    seed, size, shape = kind
    rng = np.random.default_rng(seed)
    occupied = rng.choice(256, size, replace=False)
    histogram = np.zeros(256, np.int64)
    histogram[occupied] = {
        "flat": rng.integers(1, 9, size),
        "laplace": 1 + 1e6 * np.exp(-np.abs(occupied - 128) / 15),
        "rare": np.ceil(rng.pareto(0.5, size)).clip(1, 1e9),
    }[shape]
    importance = {
        None: None,
        "noise": histogram * rng.lognormal(sigma=2, size=256),
        "zeros": histogram * rng.integers(0, 2, 256),
        "none": np.zeros(256),
    }[weighting]
    family = build_codebooks(histogram, importance=importance)
    expected = np.array(list(plain_program(build_intervals(histogram, importance).costs)))
    np.testing.assert_allclose(family.distortions, expected, rtol=1e-12, atol=1e-12 * expected[0])
    weights = histogram.astype(float) if importance is None else importance
    for k in {2, 3, size // 2 + 1, size}:
        found = distortion(family.codebook(k), np.where(histogram > 0, weights, 0))
        assert found == pytest.approx(family.distortions[min(k, size) - 1], rel=1e-9, abs=1e-9 * expected[0])
