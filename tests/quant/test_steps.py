"""Static NUQ: a given number of levels, with and without second moments."""

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.quant.inputs import InputMoments
from autonuq.quant.steps import cluster_of, restrict_codes, snap_codes
from autonuq.quant.uniform import quantize_weights

RNG = np.random.default_rng(0)
WEIGHTS = RNG.laplace(size=(8, 6, 3, 3)).astype(np.float32)
UNIFORM = quantize_weights(WEIGHTS, channel_axis=0)
INPUTS = np.cumsum(RNG.standard_normal((2000, 54)), axis=1)  # neighbours go together, as in pictures
MOMENTS = (InputMoments(INPUTS.T @ INPUTS, len(INPUTS), INPUTS.sum(axis=0)),)


def output_error(restricted):
    return np.square(INPUTS @ (restricted.dequantize() - WEIGHTS).reshape(8, -1).T).sum()


@pytest.mark.parametrize("num_steps", [16, 32])
@pytest.mark.parametrize("moments", [(), MOMENTS], ids=["weights", "moments"])
def test_at_most_so_many_levels_and_zero_stays(num_steps, moments):
    found = restrict_codes(WEIGHTS, UNIFORM, num_steps, moments)
    assert len(np.unique(found.codes)) <= num_steps
    assert (found.codes == 0).any()
    assert found.codes.shape == WEIGHTS.shape
    assert (found.scale == UNIFORM.scale).all()


@pytest.mark.parametrize("num_steps", [16, 32])
def test_error_feedback_beats_rounding_on_the_output(num_steps):
    rounded, fed = (restrict_codes(WEIGHTS, UNIFORM, num_steps, moments) for moments in ((), MOMENTS))
    assert output_error(fed) < output_error(rounded) / 4


def test_layers_with_few_codes_stay_as_they_are():
    coarse = quantize_weights(np.array([[-1, 0, 1, 0.5]], np.float32), channel_axis=None)
    assert (restrict_codes(coarse.dequantize(), coarse, 16).codes == coarse.codes).all()


def test_moments_of_another_layer_are_refused():
    with pytest.raises(QuantizationError, match="has 54 inputs, but second moments of 9"):
        restrict_codes(WEIGHTS, UNIFORM, 16, (InputMoments(np.eye(9), 9, np.zeros(9)),))


def test_cluster_is_filled_up_to_its_length():
    assert cluster_of(np.array([5, -7, 5], np.int8), 16) == tuple(range(-8, 8))


def test_snapping_takes_the_nearest_level():
    levels = np.array([64, -128, 0], np.int8)
    distance = np.abs(UNIFORM.codes.astype(int)[..., None] - levels.astype(int))
    found = snap_codes(UNIFORM, levels).codes
    assert (np.abs(UNIFORM.codes.astype(int) - found) == distance.min(-1)).all()
    assert set(np.unique(found)) <= set(levels)
