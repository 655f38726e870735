"""HFMG against the range of its values."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant import activation
from autonuq.quant.activation import ActivationRange, HfmgHistogram

f32 = np.float32

SAMPLES = {
    "gauss": lambda rng: rng.standard_normal(5000),
    "relu": lambda rng: np.maximum(rng.standard_normal(5000), 0),
    "heavy": lambda rng: rng.standard_t(2, 5000),
    "skewed": lambda rng: rng.exponential(3, 3000) - 0.5,
}


@pytest.mark.parametrize(("with_offset", "offset"), [(True, -128), (False, 0)])
def test_zeros_have_scale_one(with_offset, offset):
    histogram = HfmgHistogram(1024)
    histogram.update(np.zeros(5, f32))
    assert histogram.range(with_offset) == ActivationRange(1.0, offset)


@pytest.mark.parametrize("values", [[], [np.nan, 1], [np.inf], [-np.inf, 0]])
def test_unusable_activations_are_refused(values):
    with pytest.raises(QuantizationError):
        HfmgHistogram().update(np.array(values, f32))


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_hfmg_is_no_worse_than_the_full_range(sample, with_offset):
    values = SAMPLES[sample](np.random.default_rng(3)).astype(f32)
    histogram = HfmgHistogram(2048)
    for batch in np.array_split(values, 5):
        histogram.update(batch)
    found = histogram.range(with_offset)
    low, high = min(values.min(), 0), max(values.max(), 0)
    scale = (high - low) / 255 if with_offset else max(high / 127, -low / 128)
    full = ActivationRange(float(scale), int(np.floor(-low / scale + 0.5)) - 128 if with_offset else 0)
    assert found.scale <= scale * (1 + 1e-6)
    if sample == "relu" and with_offset:
        assert found.offset == -128
    assert squared_error(values, found) <= squared_error(values, full) * 1.02


def squared_error(values, found):
    """Quantize values as the Quant layer does, and compare."""
    steps = np.floor(values.astype(float) / found.scale + 0.5)
    restored = np.clip(steps, -128 - found.offset, 127 - found.offset) * found.scale
    return np.sum((restored - values) ** 2)


def test_hfmg_keeps_all_counts_when_the_range_grows():
    histogram = HfmgHistogram(64)
    for scale in (0.0, 1.0, 5.0, 0.5, 30.0):
        histogram.update(np.linspace(-scale, 2 * scale, 100, dtype=f32))
    assert histogram._counts.sum() == pytest.approx(500)


def test_hfmg_needs_bins_and_batches():
    with pytest.raises(ValueError, match="num_of_bins"):
        HfmgHistogram(4)
    with pytest.raises(QuantizationError, match="no batch"):
        HfmgHistogram().range(True)


def test_the_loss_integral_equals_a_fine_sum():
    edges, counts = np.linspace(-2, 3, 6), np.array([3.0, 0, 5, 2, 1])
    scale, first = np.array([0.11]), np.array([-9.0])
    x = (np.arange(500_000) + 0.5) / 100_000 - 2
    steps = np.clip(np.round(x / 0.11), -9, 246)
    fine = np.sum(np.repeat(counts, 100_000) * (x - steps * 0.11) ** 2) / 100_000
    assert activation._range_losses(edges, counts, scale, first)[0] == pytest.approx(fine, rel=1e-6)
