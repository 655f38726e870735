"""What a stream remembers, against the values themselves."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant import stream
from autonuq.quant.stream import ValueStream

f32 = np.float32


@pytest.fixture
def streamed(monkeypatch):
    """Make a stream with short tails and few bins."""
    monkeypatch.setattr(stream, "TAIL", 50)
    monkeypatch.setattr(stream, "BINS", 1 << 10)
    monkeypatch.setattr(stream, "CHUNK", 333)

    def make(values, batches=4):
        found = ValueStream()
        for batch in np.array_split(np.asarray(values, f32), batches):
            found.update(batch)
        found.total()  # whatever is asked puts all values in their places
        return found

    return make


SAMPLES = {
    "gauss": lambda rng: rng.standard_normal(5000),
    "relu": lambda rng: np.maximum(rng.standard_normal(5000), 0),
    "cauchy": lambda rng: rng.standard_t(1, 5000),
    "constant": lambda rng: np.full(5000, -0.1),
    "growing": lambda rng: rng.standard_normal(5000) * np.geomspace(1e-30, 1e30, 5000),
    "fading": lambda rng: rng.standard_normal(5000) * np.geomspace(1e30, 1e-30, 5000),
    "denormal": lambda rng: rng.standard_normal(5000) * 1e-40,
    "largest": lambda rng: rng.uniform(-1, 1, 5000) * np.finfo(f32).max,
    "rising": lambda rng: np.arange(5000),
    "falling": lambda rng: -np.arange(5000),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_counts_and_sums_are_off_by_one_bin_at_most(streamed, sample):
    values = np.sort(SAMPLES[sample](np.random.default_rng(0)).astype(f32))
    found = streamed(np.random.default_rng(1).permutation(values))
    width, exact = 2.0**found._exponent, values.astype(np.float64)
    boundaries = np.append(np.random.default_rng(2).choice(values, 200), [f32(np.inf), f32(-np.inf)])
    counts, sums = found.below(boundaries)
    below = boundaries.astype(np.float64)[:, None]
    assert np.all(np.count_nonzero(exact < below - width, axis=1) <= counts + 1e-6)
    assert np.all(np.count_nonzero(exact < below + width, axis=1) >= counts - 1e-6)
    finite = np.isfinite(boundaries)
    nearby = np.count_nonzero(np.abs(exact - below[finite]) <= width, axis=1)
    bound = np.zeros(boundaries.size)
    bound[finite] = nearby * (np.abs(boundaries[finite].astype(np.float64)) + width)
    rounding = 1e-6 * np.abs(exact).sum() + 1e-7 * width * values.size
    assert np.all(np.abs(sums - np.where(exact < below, exact, 0).sum(axis=1)) <= bound + rounding)


@pytest.mark.parametrize("sample", SAMPLES)
def test_totals_are_exact(streamed, sample):
    values = SAMPLES[sample](np.random.default_rng(0)).astype(f32)
    found, exact = streamed(values), values.astype(np.float64)
    assert found.size == values.size
    assert found.total() == pytest.approx(exact.sum(), rel=1e-6, abs=1e-7 * np.abs(exact).sum() + 1e-30)
    assert found.energy() == pytest.approx(exact @ exact, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("sample", SAMPLES)
def test_ranks_are_exact_in_the_tails_and_within_a_bin_between(streamed, sample):
    values = SAMPLES[sample](np.random.default_rng(0)).astype(f32)
    found, ordered = streamed(values), np.sort(values)
    for rank in (0, 1, 49, 4950, 4999):
        assert found.at_rank(rank) == ordered[rank]
    for rank in (50, 51, 1234, 2500, 4949):
        assert abs(float(found.at_rank(rank)) - float(ordered[rank])) <= 2.0**found._exponent


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_order_of_the_batches_does_not_count(streamed, sample):
    values = SAMPLES[sample](np.random.default_rng(0)).astype(f32)
    one, other = streamed(values), streamed(values[::-1], batches=9)
    assert one.size == other.size
    assert np.array_equal(one._kept, other._kept)
    assert one.total() == pytest.approx(other.total(), rel=1e-6, abs=1e-6 * np.abs(values.astype(np.float64)).sum())


def test_few_values_are_kept_and_many_are_not(streamed):
    values = np.random.default_rng(0).standard_normal(101).astype(f32)
    assert np.array_equal(streamed(values[:100]).values, np.sort(values[:100]))
    assert streamed(values).values is None


def test_memory_does_not_grow_with_the_values(streamed):
    found = streamed(np.random.default_rng(0).standard_normal(100_000), batches=10)
    assert found._kept.size == 2 * stream.TAIL
    assert stream.BINS // 2 < found._bins.shape[1] <= stream.BINS


@pytest.mark.parametrize("values", [[], [np.nan, 1], [np.inf], [-np.inf, 0]])
def test_unusable_activations_are_refused(values):
    with pytest.raises(QuantizationError):
        ValueStream().update(np.array(values, f32))
