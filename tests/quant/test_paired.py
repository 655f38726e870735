"""What the inputs of two networks say of the weights between them: by its definition, in both forms."""

import numpy as np
import pytest

from autonuq.quant.feedback import damping_of
from autonuq.quant.inputs import InputMoments, InputRows
from autonuq.quant.paired import InputPairing, samples_of

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((5, 12))


def both(samples, seed=0, noise=0.3):
    """Inputs of the original and of the quantized network: positive, correlated, and not far from each other."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((samples, 12)) @ rng.standard_normal((12, 12)) / 3 + 1, 0)
    return x.astype(np.float32), (x + noise * rng.standard_normal(x.shape) + 0.1).astype(np.float32)


def paired(original, quantized, *, is_centred=False, samples=None, parts=3, weights=WEIGHTS):
    found = InputPairing(weights, samples or len(original), is_centred)
    for one, other in zip(np.array_split(original, parts), np.array_split(quantized, parts), strict=True):
        if len(one):
            found.add(one, other)
    return found.paired()


def aims_by_definition(found, x, x_quantized, is_centred, weights=WEIGHTS):
    if is_centred:
        x, x_quantized = x - x.mean(axis=0), x_quantized - x_quantized.mean(axis=0)
    moments = x_quantized.T @ x_quantized / len(x) + damping_of(found.inputs) * np.eye(x.shape[1])
    lacking = (x - x_quantized).T @ x_quantized / len(x)
    return weights + 0.5 * weights @ lacking @ np.linalg.inv(moments)


@pytest.mark.parametrize("is_centred", [False, True])
@pytest.mark.parametrize(
    ("samples", "form"), [(4, InputRows), (12, InputRows), (13, InputMoments), (900, InputMoments)]
)
def test_aims_are_those_of_the_definition(samples, form, is_centred):
    x, x_quantized = both(samples)
    found = paired(x, x_quantized, is_centred=is_centred)
    assert isinstance(found.inputs, form)
    expected = aims_by_definition(found, x.astype(np.float64), x_quantized.astype(np.float64), is_centred)
    assert found.aims() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("is_centred", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 6, 40])
def test_aims_are_the_same_for_few_rows_and_for_many(rows, is_centred):
    weights = np.random.default_rng(rows).standard_normal((rows, 12)).astype(np.float32)
    x, x_quantized = both(300)
    found = paired(x, x_quantized, is_centred=is_centred, weights=weights)
    expected = aims_by_definition(found, x.astype(np.float64), x_quantized.astype(np.float64), is_centred, weights)
    assert found.aims() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("is_centred", [False, True])
def test_rows_say_what_moments_say(is_centred):
    x, x_quantized = both(10)
    rows = paired(x, x_quantized, is_centred=is_centred)
    moments = paired(x, x_quantized, is_centred=is_centred, samples=100)
    assert isinstance(rows.inputs, InputRows) and isinstance(moments.inputs, InputMoments)
    assert rows.aims() == pytest.approx(moments.aims(), rel=1e-3, abs=1e-4)
    assert rows.inputs.squares == pytest.approx(moments.inputs.squares, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("is_centred", [False, True])
@pytest.mark.parametrize("samples", [8, 300])
def test_equal_inputs_leave_weights_as_they_are(samples, is_centred):
    x, _ = both(samples)
    found = paired(x, x, is_centred=is_centred)
    assert (found.aims() == WEIGHTS).all()


@pytest.mark.parametrize("samples", [8, 300])
def test_weights_make_up_for_half_of_a_loss_that_they_can_make_up_for(samples):
    """The quantized network's inputs are 0.8 of the original's: weights become 1.125 times what they were."""
    x = np.random.default_rng(2).standard_normal((samples, 12)).astype(np.float32)
    x[:, 4:] = 0
    found = paired(x, np.float32(0.8) * x)
    expected = 1 + 0.5 * 0.25 / (1 + damping_of(found.inputs) / found.inputs.squares[:4].mean())
    assert (found.aims() / WEIGHTS)[:, :4].mean() == pytest.approx(expected, rel=0.1)
    assert found.aims()[:, 4:] == pytest.approx(WEIGHTS[:, 4:], abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e3 / 3])
@pytest.mark.parametrize("samples", [8, 300])
def test_inputs_that_never_change_leave_weights_as_they_are(samples, value):
    """Their mean is the bias' business; what float32 sums leave of their spread is none."""
    x, _ = both(samples)
    constant = np.full_like(x, value)
    found = paired(x, constant, is_centred=True)
    assert not found.inputs.squares.any()
    assert (found.aims() == WEIGHTS).all()


@pytest.mark.parametrize("samples", [8, 300])
def test_large_means_do_not_drown_what_varies(samples):
    x, x_quantized = both(samples)
    found, moved = paired(x, x_quantized, is_centred=True), paired(x + 1000, x_quantized + 1000, is_centred=True)
    assert moved.aims() == pytest.approx(found.aims(), abs=0.02)


@pytest.mark.parametrize("is_original", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("samples", [8, 300])
def test_what_is_not_finite_is_told(samples, value, is_original):
    x, x_quantized = both(samples)
    assert paired(x, x_quantized).is_finite
    (x if is_original else x_quantized)[2, 3] = value
    with np.errstate(invalid="ignore"):
        assert not paired(x, x_quantized).is_finite
        assert not paired(x, x_quantized, is_centred=True).is_finite


@pytest.mark.parametrize(
    ("inputs", "seen", "used"),
    [(9, 10**6, 4096), (9, 100, 100), (800, 10**6, 6400), (4608, 10**6, 1618), (66560, 10**6, 7), (10**6, 5, 1)],
)
def test_how_many_samples_are_enough(inputs, seen, used):
    assert samples_of(inputs, seen) == used
