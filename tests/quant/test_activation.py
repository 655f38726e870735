"""IFMR against its definition, HFMG against the range of its values."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant import activation
from autonuq.quant.activation import ActivationRange, HfmgHistogram, ifmr
from autonuq.quant.config import ActivationSettings

DEFAULTS = ActivationSettings()
f32 = np.float32


def naive_ifmr(values, settings, with_offset):
    """Evaluate the definition, one candidate at a time."""
    values = np.sort(values.astype(f32).ravel())
    k_max, k_min = (
        max(values.size - int(np.floor(f32(p) * f32(values.size))), 1)
        for p in (settings.max_percentile, settings.min_percentile)
    )
    high, low = max(values[-k_max], f32(0)), min(values[k_min - 1], f32(0))
    start, end, step = f32(settings.search_start), f32(settings.search_end), f32(settings.search_step)
    results = []
    for i in range(int((end - start) / step + f32(1))):
        ratio = start + f32(i) * step
        top = ratio * (high if with_offset else max(high, -low))
        bottom = low if with_offset else -top
        scale = (top - bottom) / f32(255) if with_offset else top / f32(127 if high > -low else 128)
        scale = f32(1) if scale < np.finfo(f32).eps else scale
        quotient = np.clip(values, bottom, top) / scale
        whole = np.trunc(quotient)
        steps = whole + np.copysign((np.abs(quotient - whole) >= 0.5).astype(f32), quotient)
        error = np.mean(((steps * scale).astype(np.float64) - values) ** 2)
        offset = int(np.floor(float(-bottom / scale) + 0.5)) - 128 if with_offset else 0
        results.append((error, float(scale), offset))
    return min(results, key=lambda result: result[0]), len(results)


def test_defaults_give_sixty_candidates():
    candidates = activation._candidates(f32(-1), f32(1), DEFAULTS, True)
    assert candidates.scale.size == 60
    assert candidates.high[-1] == pytest.approx(1.29)


SAMPLES = {
    "gauss": lambda rng: rng.standard_normal(5000),
    "relu": lambda rng: np.maximum(rng.standard_normal(5000), 0),
    "heavy": lambda rng: rng.standard_t(2, 5000),
    "skewed": lambda rng: rng.exponential(3, 3000) - 0.5,
    "grid": lambda rng: np.round(rng.standard_normal(3000) * 8) / 8,
    "pixels": lambda rng: rng.integers(0, 256, 2000).astype(float),
    "few": lambda rng: rng.standard_normal(7),
    "negative": lambda rng: -rng.exponential(1, 1000),
}


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_ifmr_chooses_what_its_definition_chooses(sample, with_offset, monkeypatch):
    monkeypatch.setattr(activation, "CHUNK", 1000)
    values = SAMPLES[sample](np.random.default_rng(7)).astype(f32).reshape(1, -1)
    settings = ActivationSettings(max_percentile=0.999, min_percentile=0.999)
    (_, scale, offset), _ = naive_ifmr(values, settings, with_offset)
    assert ifmr(values, settings=settings, with_offset=with_offset) == ActivationRange(scale, offset)


@pytest.mark.parametrize("with_offset", [True, False])
def test_fast_sums_stay_within_their_bound(with_offset):
    values = np.random.default_rng(1).standard_normal(20000).astype(f32)
    candidates = activation._candidates(f32(-3), f32(3.5), DEFAULTS, with_offset)
    fast, bound = activation._fast_losses(values, candidates)
    assert np.all(np.abs(fast - activation._defined_losses(values, candidates)) < bound)


def test_a_relu_output_has_offset_minus_128():
    found = ifmr(np.linspace(0, 6, 1000, dtype=f32), settings=DEFAULTS, with_offset=True)
    assert found.offset == -128


def test_pixels_keep_the_step_one():
    values = np.tile(np.arange(256, dtype=f32), 40)
    assert ifmr(values, settings=DEFAULTS, with_offset=True) == ActivationRange(1.0, -128)


def test_percentile_one_takes_the_extremes_and_less_leaves_them_out():
    values = np.append(np.linspace(0, 1, 999, dtype=f32), f32(1000))
    settings = ActivationSettings(search_start=1.0, search_end=1.0, max_percentile=1.0)
    assert ifmr(values, settings=settings, with_offset=True).scale == pytest.approx(1000 / 255)
    settings = ActivationSettings(search_start=1.0, search_end=1.0, max_percentile=0.9989)
    assert ifmr(values, settings=settings, with_offset=True).scale == pytest.approx(1 / 255)


@pytest.mark.parametrize(("with_offset", "offset"), [(True, -128), (False, 0)])
def test_zeros_have_scale_one(with_offset, offset):
    found = ActivationRange(1.0, offset)
    assert ifmr(np.zeros((2, 3), f32), settings=DEFAULTS, with_offset=with_offset) == found
    histogram = HfmgHistogram(1024)
    histogram.update(np.zeros(5, f32))
    assert histogram.range(with_offset) == found


def test_a_candidate_with_an_unusable_scale_never_wins():
    # 0.7 to 1.29 times this bound straddle the largest scale that is allowed
    values = np.array([0, 8388608 * 255], f32)
    found = ifmr(values, settings=ActivationSettings(max_percentile=1.0), with_offset=True)
    assert 0 < found.scale <= 8388608
    with pytest.raises(QuantizationError, match="too large"):
        ifmr(values * 10, settings=ActivationSettings(max_percentile=1.0), with_offset=True)


@pytest.mark.parametrize("values", [[], [np.nan, 1], [np.inf], [-np.inf, 0]])
def test_unusable_activations_are_refused(values):
    with pytest.raises(QuantizationError):
        ifmr(np.array(values, f32), settings=DEFAULTS, with_offset=True)
    with pytest.raises(QuantizationError):
        HfmgHistogram().update(np.array(values, f32))


def test_search_settings_without_a_candidate_are_refused():
    with pytest.raises(ValueError, match="search settings"):
        ifmr(np.ones(3, f32), settings=ActivationSettings(search_step=0.0), with_offset=True)


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("sample", ["gauss", "relu", "heavy", "skewed"])
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
