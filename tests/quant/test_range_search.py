"""IFMR against its definition, while a stream holds every value and after it let them go."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant import range_search, stream
from autonuq.quant.activation import ActivationRange
from autonuq.quant.config import ActivationSettings
from autonuq.quant.range_search import ifmr
from autonuq.quant.stream import ValueStream

DEFAULTS = ActivationSettings()
f32 = np.float32


def streamed(values, batches=1):
    found = ValueStream()
    for batch in np.array_split(np.asarray(values, f32), batches):
        found.update(batch)
    return found


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
    candidates = range_search._candidates(f32(-1), f32(1), DEFAULTS, True)
    assert candidates.scale.size == 60
    assert candidates.high[-1] == pytest.approx(1.29)


SAMPLES = {
    "gauss": lambda rng: rng.standard_normal(5000),
    "relu": lambda rng: np.maximum(rng.standard_normal(5000), 0),
    "relu6": lambda rng: np.clip(4 * rng.standard_normal(5000), 0, 6),
    "heavy": lambda rng: rng.standard_t(2, 5000),
    "heavier": lambda rng: rng.standard_t(1, 5000),
    "skewed": lambda rng: rng.exponential(3, 3000) - 0.5,
    "grid": lambda rng: np.round(rng.standard_normal(3000) * 8) / 8,
    "pixels": lambda rng: rng.integers(0, 256, 2000).astype(float),
    "few": lambda rng: rng.standard_normal(7),
    "negative": lambda rng: -rng.exponential(1, 1000),
    "constant": lambda rng: np.full(3000, -3.7),
    "two": lambda rng: rng.choice([-0.3, 1.7], 3000),
    "rare": lambda rng: np.where(rng.random(5000) < 0.01, rng.standard_normal(5000), 0),
    "shifted zeros": lambda rng: np.maximum(rng.standard_normal(5000), 0) + rng.choice([-0.31, 0.17, 0.4], 5000),
    "denormal": lambda rng: rng.standard_normal(3000) * 1e-40,
    "huge": lambda rng: rng.standard_normal(3000) * 1e8,
    "narrow": lambda rng: 1000 + 1e-3 * rng.standard_normal(3000),
    "growing": lambda rng: rng.standard_normal(5000) * np.geomspace(1e-4, 1e4, 5000),
    "fading": lambda rng: rng.standard_normal(5000) * np.geomspace(1e4, 1e-4, 5000),
    "an outlier": lambda rng: np.append(rng.standard_normal(5000), 1e20),
}


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_ifmr_chooses_what_its_definition_chooses(sample, with_offset):
    values = SAMPLES[sample](np.random.default_rng(7)).astype(f32)
    settings = ActivationSettings(max_percentile=0.999, min_percentile=0.999)
    (_, scale, offset), _ = naive_ifmr(values, settings, with_offset)
    assert ifmr(streamed(values), settings=settings, with_offset=with_offset) == ActivationRange(scale, offset)


def candidate_errors(values, settings, with_offset):
    """Return the scales of all candidates and the error of each by the definition, one that nobody streams."""
    found = streamed(values)
    candidates = range_search._candidates(*range_search._percentile_bounds(found, settings), settings, with_offset)
    return candidates.scale, range_search._defined_losses(np.asarray(values, f32), candidates)


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_stream_that_let_its_values_go_finds_no_worse_a_range(sample, with_offset, batches, monkeypatch):
    values = SAMPLES[sample](np.random.default_rng(7)).astype(f32)
    settings = ActivationSettings(max_percentile=0.999, min_percentile=0.999)
    scales, errors = candidate_errors(values, settings, with_offset)
    monkeypatch.setattr(stream, "TAIL", 100)
    monkeypatch.setattr(stream, "CHUNK", 700)
    found = ifmr(streamed(values, batches), settings=settings, with_offset=with_offset)
    (chosen,) = np.flatnonzero(scales == f32(found.scale))[:1]
    assert errors[chosen] <= errors.min() * (1 + 1e-4)
    assert found.scale == pytest.approx(scales[np.argmin(errors)], rel=0.02)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.99, 0.9999, 1.0])
def test_any_percentile_works_beyond_the_tails(percentile, monkeypatch):
    values = np.random.default_rng(2).standard_normal(50_000).astype(f32)
    settings = ActivationSettings(max_percentile=percentile, min_percentile=0.9999)
    scales, errors = candidate_errors(values, settings, True)
    monkeypatch.setattr(stream, "TAIL", 64)
    found = ifmr(streamed(values, 5), settings=settings, with_offset=True)
    assert found.scale == pytest.approx(scales[np.argmin(errors)], rel=1e-4)


@pytest.mark.parametrize("with_offset", [True, False])
def test_fast_sums_stay_within_their_bound(with_offset):
    values = np.random.default_rng(1).standard_normal(20000).astype(f32)
    candidates = range_search._candidates(f32(-3), f32(3.5), DEFAULTS, with_offset)
    fast, bound = range_search._losses(streamed(values), candidates)
    assert np.all(np.abs(fast - range_search._defined_losses(values, candidates)) < bound)


@pytest.mark.parametrize("sample", ["gauss", "relu", "relu6", "skewed"])
def test_streamed_sums_stay_within_their_bound(sample, monkeypatch):
    monkeypatch.setattr(stream, "TAIL", 64)
    values = np.concatenate([SAMPLES[sample](np.random.default_rng(seed)) for seed in range(10)]).astype(f32)
    found = streamed(values, 3)
    candidates = range_search._candidates(min(values.min(), f32(0)), values.max(), DEFAULTS, True)
    losses, _ = range_search._losses(found, candidates)
    defined = range_search._defined_losses(values, candidates)
    assert found.values is None
    assert np.all(np.abs(losses - defined) < 6 * (2.0**found._exponent / candidates.scale) ** 2 * defined)


def test_a_relu_output_has_offset_minus_128():
    found = ifmr(streamed(np.linspace(0, 6, 1000)), settings=DEFAULTS, with_offset=True)
    assert found.offset == -128


@pytest.mark.parametrize("repeats", [40, 4000])
def test_pixels_keep_the_step_one(repeats):
    values = np.tile(np.arange(256, dtype=f32), repeats)
    assert ifmr(streamed(values), settings=DEFAULTS, with_offset=True) == ActivationRange(1.0, -128)


def test_percentile_one_takes_the_extremes_and_less_leaves_them_out():
    values = streamed(np.append(np.linspace(0, 1, 999), 1000))
    settings = ActivationSettings(search_start=1.0, search_end=1.0, max_percentile=1.0)
    assert ifmr(values, settings=settings, with_offset=True).scale == pytest.approx(1000 / 255)
    settings = ActivationSettings(search_start=1.0, search_end=1.0, max_percentile=0.9989)
    assert ifmr(values, settings=settings, with_offset=True).scale == pytest.approx(1 / 255)


@pytest.mark.parametrize(("with_offset", "offset"), [(True, -128), (False, 0)])
def test_zeros_have_scale_one(with_offset, offset):
    found = ActivationRange(1.0, offset)
    assert ifmr(streamed(np.zeros(6)), settings=DEFAULTS, with_offset=with_offset) == found


def test_a_candidate_with_an_unusable_scale_never_wins():
    # 0.7 to 1.29 times this bound straddle the largest scale that is allowed
    values = np.array([0, 8388608 * 255], f32)
    found = ifmr(streamed(values), settings=ActivationSettings(max_percentile=1.0), with_offset=True)
    assert 0 < found.scale <= 8388608
    with pytest.raises(QuantizationError, match="too large"):
        ifmr(streamed(values * 10), settings=ActivationSettings(max_percentile=1.0), with_offset=True)


def test_values_are_needed():
    with pytest.raises(QuantizationError, match="no activations"):
        ifmr(ValueStream(), settings=DEFAULTS, with_offset=True)


def test_search_settings_without_a_candidate_are_refused():
    with pytest.raises(ValueError, match="search settings"):
        ifmr(streamed(np.ones(3)), settings=ActivationSettings(search_step=0.0), with_offset=True)
