"""`check` says what speaks against the transform, and against what the original network makes of its images."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from picture_network import MEAN, SCALE, write_picture_network

from autonuq.evaluate.builtin import BuiltinSettings, DataSettings, TransformSettings, make_builtin
from autonuq.evaluate.builtin.agreement import Agreement
from autonuq.evaluate.builtin.detections import DetectionAgreement, Seen
from autonuq.evaluate.builtin.outputs import Outputs
from autonuq.evaluate.builtin.plausible import warn_of_doubts
from autonuq.graph.files import ModelPair

RIGHT = TransformSettings(channels="RGB", mean=(MEAN,), scale=SCALE)


@pytest.fixture
def doubts(tmp_path):
    """Return what is said of the classifier of pictures under a transform."""
    write_picture_network(tmp_path)
    pair = ModelPair(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")

    def said(transform, kind="agreement", data=None):
        data = data or DataSettings("folder", tmp_path / "pictures")
        if kind == "top1":
            data = replace(data, path=tmp_path / "val", labels=str(tmp_path / "val" / "labels.txt"))
        evaluator = make_builtin(BuiltinSettings(kind, data, data, transform), pair)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert warn_of_doubts(evaluator) == "what the original network makes of 32 images"
        return [str(one.message) for one in caught]

    return said


def test_nothing_is_said_of_what_is_right(doubts, tmp_path):
    assert doubts(RIGHT) == doubts(RIGHT, "top1") == doubts(RIGHT, "outputs") == []
    arrays = DataSettings("npz", tmp_path / "images.npz", layout="NCHW")  # prepared elsewhere
    assert doubts(TransformSettings(), data=arrays) == []


@pytest.mark.parametrize("kind", ["agreement", "top1", "outputs"])
def test_a_transform_that_the_network_was_not_trained_with(doubts, kind):
    said = doubts(replace(RIGHT, mean=(), scale=1.0), kind)
    assert any("the first BatchNorm layers see quite other values than in training" in one for one in said)
    assert any('scale = 0.007843, channels = "RGB"' in one for one in said)
    assert all("[evaluator.transform]" in one for one in said)


def test_one_class_for_everything(doubts):
    assert any("sees class" in one for one in doubts(replace(RIGHT, mean=(-5000.0,))))
    varied = np.arange(12)
    assert Agreement.doubt(None, [varied[:8], varied[8:]]) == ""
    assert "class 3 in each of 12 pictures" in Agreement.doubt(None, [np.full(8, 3), np.full(4, 3)])
    assert Agreement.doubt(None, [np.full(3, 3)]) == ""  # three may well be alike


def test_outputs_that_tell_nothing():
    rng = np.random.default_rng(0)
    kind = SimpleNamespace(ends=SimpleNamespace(outputs=("varying", "other")))
    varying, constant = rng.standard_normal((16, 5)), np.tile([1.0, 2.0], (16, 1)) + 1e-4 * rng.random((16, 2))
    assert Outputs.doubt(kind, [[varying, varying]]) == ""
    assert "'other' of the original network is nearly the same" in Outputs.doubt(kind, [[varying, constant]])
    ends = (varying > 0).astype(np.float64)
    assert "'varying' of the original network is saturated" in Outputs.doubt(kind, [[ends, varying]])


def test_detections_of_nothing_and_of_everything():
    kind = SimpleNamespace(how=SimpleNamespace(threshold=0.5, max_boxes=3), truth=lambda seen: None)

    def seen(*scores):
        starts = np.cumsum([0, *map(len, scores)])
        joined = np.concatenate([np.array(own, np.float32) for own in scores])
        return [Seen(starts, np.zeros(len(joined), int), joined, np.zeros((len(joined), 4)))]

    assert DetectionAgreement.doubt(kind, seen([0.9, 0.2], [])) == ""
    assert "detects nothing in 2 pictures" in DetectionAgreement.doubt(kind, seen([0.4], []))
    assert "detects 3 objects or more in each of 2" in DetectionAgreement.doubt(kind, seen([0.9] * 3, [0.8] * 3))
