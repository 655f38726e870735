"""Scores that know their samples, and the paired error of a loss."""

import json
import pickle

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import EvaluatorError
from autonuq.evaluate.evaluator import score
from autonuq.evaluate.samples import Score, paired_error, samples_as_data, samples_from_data
from autonuq.graph.files import ModelPair

RNG = np.random.default_rng(1)
RIGHT = RNG.random(4000) < 0.9


def test_a_score_is_a_number_that_knows_its_samples():
    found = nuq.Score(RIGHT.mean(), samples=RIGHT)
    assert isinstance(found, float)
    assert found == RIGHT.mean()
    assert f"{found:.3f}" == f"{RIGHT.mean():.3f}"
    assert found.samples.dtype == bool
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert (again.samples == RIGHT).all()
    with pytest.raises(ValueError, match="read-only"):
        found.samples[0] = False


@pytest.mark.parametrize("samples", [[], [[1.0, 0.0]], [0.5, np.nan], [np.inf], ["a"], None])
def test_samples_are_a_row_of_finite_numbers(samples):
    with pytest.raises(ValueError, match="The 'samples' parameter of Score must be a row of finite numbers"):
        Score(0.5, samples=samples)


def test_a_score_is_the_mean_of_its_samples():
    assert Score(50.0, samples=[100.0, 0.0]) == 50.0
    with pytest.raises(ValueError, match="A Score must be the mean of its samples.*Got 50 and a mean of 0.5"):
        Score(50.0, samples=[True, False])


def test_the_error_of_a_loss_is_that_of_the_same_samples():
    after = RIGHT.copy()
    after[np.flatnonzero(RIGHT)[:40]] = False
    after[np.flatnonzero(~RIGHT)[:10]] = True
    before, new = Score(RIGHT.mean(), samples=RIGHT), Score(after.mean(), samples=after)
    differences = RIGHT.astype(float) - after
    assert paired_error(before, new) == pytest.approx(differences.std(ddof=1) / np.sqrt(4000))
    assert paired_error(before, new) < 0.4 * np.sqrt(0.9 * 0.1 / 4000)  # of either metric
    assert paired_error(before, 0.9) is None
    assert paired_error(0.9, new) is None
    with pytest.raises(EvaluatorError, match="a Score of 3 samples; of the original network there are 4000"):
        paired_error(before, Score(1.0, samples=[True, True, True]))


@pytest.mark.parametrize("samples", [RIGHT, RIGHT[:13], RNG.normal(size=999)], ids=["bool", "13 bits", "float"])
def test_samples_are_stored_and_read(samples):
    found = samples_from_data(json.loads(json.dumps(samples_as_data(samples))))
    assert found.dtype == samples.dtype
    assert np.allclose(found, samples, rtol=1e-6)


def test_an_evaluator_may_return_one():
    class Exact:
        evaluate_batch_num = 1

        def eval_model(self, model_file, weights_file, batch_num):
            return Score(0.5, samples=[True, False])

    assert score(Exact(), ModelPair("a", "b")).samples.tolist() == [True, False]
