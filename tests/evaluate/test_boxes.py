"""Overlap, suppression and matching, against hand-made values and the rules in plain loops."""

import numpy as np
import pytest

from autonuq.evaluate.builtin.boxes import (
    Detections,
    Objects,
    match,
    overlap,
    select_detections,
    suppress_boxes,
)


def boxes_at(*corners):
    return np.array(corners, np.float32).reshape(-1, 4)


def some_boxes(random, count):
    centres, sizes = random.random((count, 2)), random.random((count, 2)) * 0.4 + 0.1
    return np.hstack([centres - sizes / 2, centres + sizes / 2]).astype(np.float32)


def detections(images, classes, scores, boxes):
    return Detections(np.array(images), np.array(classes), np.array(scores, np.float32), boxes)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        ((0, 0, 1, 1), 1.0),
        ((0.5, 0, 1.5, 1), 1 / 3),
        ((0.5, 0.5, 1.5, 1.5), 1 / 7),
        ((1, 0, 2, 1), 0.0),  # they touch
        ((1, 1, 0, 0), 0.0),  # inside out
        ((0.25, 0.25, 0.75, 0.75), 0.25),
        ((0.5, 0.5, 0.5, 0.5), 0.0),  # a point
    ],
)
def test_overlap(other, shared):
    assert overlap(boxes_at((0, 0, 1, 1)), boxes_at(other))[0] == pytest.approx(shared)


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_suppression_is_the_greedy_one(limit):
    random = np.random.default_rng(0)
    boxes, classes = some_boxes(random, 150).clip(0, 1), random.integers(0, 3, 150)
    stays = []
    for place in range(150):
        same = [other for other in stays if classes[other] == classes[place]]
        if not any(overlap(boxes[other], boxes[place]) > limit for other in same):
            stays.append(place)
    assert suppress_boxes(classes, boxes, limit, 150).tolist() == stays
    assert suppress_boxes(classes, boxes, limit, 5).tolist() == stays[:5]


def test_a_suppressed_box_suppresses_none():
    chain = boxes_at(*[(0.1 * place, 0, 0.1 * place + 0.25, 1) for place in range(6)])  # each overlaps the next
    assert suppress_boxes(np.zeros(6, int), chain, 0.3, 6).tolist() == [0, 2, 4]


def test_selection():
    inf = np.inf
    found = detections(
        [1, 0, 0, -1, 2, 0, 1, 0, 0],
        [0] * 9,
        [0.5, 0.6, 0.9, 0.9, 0.9, 0.01, np.nan, 0.7, 0.8],
        boxes_at(
            (-inf, 0, inf, 0.5),
            (0, 0, 0.5, 0.5),
            (0, 0, 0.5, 0.51),
            *[(0, 0, 1, 1)] * 4,
            (0.5, 0.5, 1, 1),
            (np.nan, 0, 1, 1),
        ),
    )
    kept = select_detections(found, min_score=0.05, nms=0.5, max_boxes=100, count=2)
    assert kept.images.tolist() == [0, 0, 1]
    assert kept.scores == pytest.approx([0.9, 0.7, 0.5])
    assert kept.boxes[2].tolist() == [0, 0, 1, 0.5]
    assert len(select_detections(found, min_score=0.05, nms=None, max_boxes=100, count=2)) == 4
    assert select_detections(found, min_score=0.05, nms=None, max_boxes=1, count=2).scores == pytest.approx([0.9, 0.5])


def plain_match(found, wanted, iou):
    taken, right, ignored = set(), np.zeros(len(found), bool), np.zeros(len(found), bool)
    for place in np.argsort(-found.scores, kind="stable"):
        shared = overlap(found.boxes[place].astype(float), wanted.boxes.astype(float))
        own = (wanted.images == found.images[place]) & (wanted.classes == found.classes[place]) & (shared >= iou)
        free = [target for target in np.flatnonzero(own & ~wanted.ignored) if target not in taken]
        if free:
            taken.add(max(free, key=lambda target: shared[target]))
            right[place] = True
        else:
            ignored[place] = (own & wanted.ignored).any()
    return right, ignored


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.2, 0.5])
def test_matching_is_the_greedy_one(seed, iou):
    random = np.random.default_rng(seed)
    found = detections(
        random.integers(0, 4, 200), random.integers(0, 2, 200), random.random(200), some_boxes(random, 200)
    )
    wanted = Objects(
        random.integers(0, 4, 60), random.integers(0, 2, 60), some_boxes(random, 60), random.random(60) < 0.2
    )
    matches, (right, ignored) = match(found, wanted, iou), plain_match(found, wanted, iou)
    assert matches.right.tolist() == right.tolist()
    assert matches.ignored.tolist() == ignored.tolist()
    assert right.any()
    assert ignored.any()


def test_nothing_matches_nothing():
    none = detections(np.zeros(0, int), np.zeros(0, int), [], boxes_at())
    one = Objects(np.zeros(1, int), np.zeros(1, int), boxes_at((0, 0, 1, 1)), np.zeros(1, bool))
    assert not len(match(none, one, 0.5).right)
    some = detections([0], [0], [0.5], boxes_at((0, 0, 1, 1)))
    assert not match(some, one.first(0), 0.5).right.any()
    assert match(some, one, 1.0).right.all()
