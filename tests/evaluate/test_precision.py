"""Average precision and its jackknife: hand-made values, finite differences, delete-one, resampling."""

import numpy as np
import pytest

from autonuq.evaluate.builtin.precision import mean_precision, rank_precision


def weighted_area(scores, right, images, objects, weights):
    """The area in plain words: precision behind each group of equal scores, the best from there on, per object."""
    thresholds = np.unique(scores)[::-1]
    points = []
    for threshold in thresholds:
        kept = scores >= threshold
        points.append((weights[images[kept]] @ right[kept], max(weights[images[kept]].sum(), 1e-9)))
    hits = np.array([hit for hit, _ in points])
    precision = np.array([hit / count for hit, count in points])
    best = np.array([precision[place:].max() for place in range(len(points))])
    return float(np.diff(hits, prepend=0) @ best / (weights @ objects))


def random_case(seed, pictures=40, ties=False):
    random = np.random.default_rng(seed)
    objects = random.poisson(1.5, pictures)
    objects[0] += 1
    images = np.repeat(np.arange(pictures), random.poisson(3, pictures))
    scores = random.random(len(images))
    if ties:
        scores = scores.round(1)
    right = random.random(len(images)) < scores
    for image in range(pictures):  # an object is found once at most
        own = np.flatnonzero((images == image) & right)
        right[own[objects[image] :]] = False
    return scores, right, images, objects


def found(right, objects=3):
    """Detections by falling score, each in its own picture."""
    right = np.array(right, bool)
    return rank_precision(
        np.linspace(1, 0.1, len(right)), right, np.arange(len(right)), np.array([objects, 0, 0, 0, 0])
    )


@pytest.mark.parametrize(
    ("right", "area"),
    [
        ([1, 1, 1], 1.0),
        ([1, 0, 1], (1 + 2 / 3) / 3),
        ([0, 1, 1], (2 / 3 + 2 / 3) / 3),  # the envelope: 1/2 before 2/3 counts as 2/3
        ([0, 0, 0], 0.0),
        ([], 0.0),
        ([1, 1, 1, 0, 0], 1.0),  # what comes when all is found costs nothing
    ],
)
def test_areas_by_hand(right, area):
    assert found(right).area == pytest.approx(area, abs=1e-15)
    assert abs(found(right).influence.mean()) < 1e-12


def test_recalls_by_hand():
    # one of two objects found at once: precision 1 up to recall 0.5, of 51 recalls from 0 to 0.5
    assert found([1], objects=2).at_recalls == pytest.approx(51 / 101)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_influence_is_the_derivative(seed, ties):
    case = random_case(seed, ties=ties)
    own, count = rank_precision(*case), len(case[-1])
    assert own.area == pytest.approx(weighted_area(*case, np.ones(count)), abs=1e-12)
    step, here = 1e-6, weighted_area(*case, np.ones(count))
    sides = [
        [(weighted_area(*case, 1 + sign * step * unit) - here) * sign * count / step for unit in np.eye(count)]
        for sign in (1, -1)
    ]
    # where precisions tie for the best there is a kink, and the derivative is one between those to its sides
    assert (own.influence <= np.max(sides, axis=0) + 1e-3).all()
    assert (own.influence >= np.min(sides, axis=0) - 1e-3).all()
    assert np.isclose(*sides, atol=1e-3).mean() > 0.25
    assert abs(own.influence.mean()) < 1e-12


def test_influence_comes_close_to_leaving_one_picture_out():
    case = random_case(0, pictures=400)
    own, count = rank_precision(*case), len(case[-1])
    pseudo = np.array(
        [count * own.area - (count - 1) * weighted_area(*case, 1.0 - unit) for unit in np.eye(count)[:60]]
    )
    scores = own.area + own.influence
    assert np.corrcoef(pseudo, scores[:60])[0, 1] > 0.99
    assert np.abs(pseudo - scores[:60]).max() < 0.1 * np.ptp(scores)


def test_spread_is_that_of_resampled_pictures():
    case = random_case(1, pictures=300)
    own, random = rank_precision(*case), np.random.default_rng(0)
    areas = [weighted_area(*case, random.multinomial(300, np.ones(300) / 300).astype(float)) for _ in range(200)]
    assert own.influence.std() / np.sqrt(300) == pytest.approx(np.std(areas), rel=0.15)


def test_mean_of_samples_is_the_value():
    classes = [rank_precision(*random_case(seed)) for seed in range(3)]
    for at_recalls in (False, True):
        mean = mean_precision(classes, at_recalls=at_recalls)
        assert mean.samples.mean() == pytest.approx(mean.value, abs=1e-12)
    assert mean_precision(classes).value == pytest.approx(np.mean([own.area for own in classes]))
