"""What a layer costs alone: the blobs that are compared, and how."""

from dataclasses import replace

import numpy as np
import pytest

from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.quantized import default_config, quantize
from autonuq.compress.sensitivity import OutputErrors, error_share, telling_blobs
from autonuq.graph.files import ModelPair, load_graph
from autonuq.runtime.inputs import load_inputs, request_inputs
from autonuq.runtime.net import Net

ENDS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3 } }
"""


@pytest.mark.parametrize(
    ("end", "blobs"),
    [
        ("", ("fc",)),
        ('layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }', ("fc",)),
        ('layer { name: "prob" type: "Softmax" bottom: "fc" top: "fc" }', ("fc",)),
        (
            'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" } '
            'layer { name: "best" type: "ArgMax" bottom: "prob" top: "best" }',
            ("fc",),
        ),
        (
            'layer { name: "relu" type: "ReLU" bottom: "fc" top: "relu" } '
            'layer { name: "prob" type: "Sigmoid" bottom: "fc" top: "prob" }',
            ("relu", "fc"),
        ),
    ],
    ids=["plain", "softmax", "in place", "decision", "two ends"],
)
def test_what_is_compared(tmp_path, end, blobs):
    (tmp_path / "net.prototxt").write_text(ENDS + end)
    assert telling_blobs(load_graph(tmp_path / "net.prototxt")) == blobs


def test_error_share_is_between_none_and_all():
    ones, nothing = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert error_share([ones], [ones]) == 0
    assert error_share([nothing], [nothing]) == 0
    assert error_share([nothing], [ones]) == 1
    assert error_share([ones, ones], [ones, nothing]) == pytest.approx(1 / 3)
    assert error_share([ones], [np.full_like(ones, np.nan)]) == 1
    assert error_share([ones], [np.full_like(ones, np.inf)]) == 1
    assert error_share([ones], [ones[:1]]) == 1


@pytest.fixture
def calibrated_tiny(tiny, monkeypatch):
    """Calibrate the tiny network over six passes of four images, inputs of sixteen kept."""
    monkeypatch.setattr("autonuq.runtime.inputs.MOST_IMAGES", 16)
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    model, record = quantize(graph, default_config(graph, batch_num=6)), tiny / "record.txt"
    pair = ModelPair(tiny / "modified.prototxt", tiny / "modified.caffemodel")
    write_calibration_model(model, pair, record, model.weights)
    request_inputs(record)
    images = np.random.default_rng(0).normal(size=(6, 4, 2, 8, 8)).astype(np.float32)
    net = Net(pair.model, pair.weights)
    for batch in images:
        net.forward(data=batch)
    return calibrated(model, record), record, images


def test_whole_passes_are_kept_until_there_are_enough_images(calibrated_tiny):
    _, record, images = calibrated_tiny
    kept = load_inputs(record)
    assert len(kept) == 4
    for inputs, batch in zip(kept, images, strict=False):
        np.testing.assert_array_equal(inputs["data"], batch)


def test_inputs_are_kept_only_where_they_are_asked_for(tiny):
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    pair = ModelPair(tiny / "modified.prototxt", tiny / "modified.caffemodel")
    write_calibration_model(quantize(graph, default_config(graph)), pair, tiny / "record.txt", ())
    Net(pair.model, pair.weights).forward(data=np.zeros((4, 2, 8, 8)))
    assert load_inputs(tiny / "record.txt") == []


def test_each_layer_is_measured_alone(calibrated_tiny, tmp_path):
    model, record, _ = calibrated_tiny
    errors = OutputErrors(Candidate(model), load_inputs(record), tmp_path)
    found = {name: errors.measure(name) for name in model.factors}
    assert found.keys() == {"conv", "pool", "fc"}
    assert all(0 < share < 0.05 for share in found.values())
    fc = model.weights["fc"]
    coarse = replace(model, weights={**model.weights, "fc": replace(fc, codes=fc.codes // 32 * 32)})
    worse = OutputErrors(Candidate(coarse), load_inputs(record), tmp_path)
    assert worse.measure("fc") > 10 * found["fc"]
    assert worse.measure("conv") == pytest.approx(found["conv"])
