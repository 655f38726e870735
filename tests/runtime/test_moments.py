"""Second moments that the calibration collects are those of what each row of weights meets."""

import numpy as np
import pytest

from autonuq import Net
from autonuq.compress.calibration import write_calibration_model
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import ModelPair, load_graph
from autonuq.runtime.moments import load_moments


@pytest.fixture
def calibrated(tiny):
    """Run the modified tiny network on two batches; return the record file, the images and the input of fc."""
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    pair = ModelPair(tiny / "m.prototxt", tiny / "m.caffemodel")
    write_calibration_model(quantize(graph, default_config(graph, batch_num=2)), pair, tiny / "record.txt")
    net = Net(pair.model, pair.weights)
    images = np.random.default_rng(0).standard_normal((2, 4, 2, 8, 8), np.float32)
    pooled = [net.forward(data=batch, blobs=["pool"])["pool"].copy() for batch in images]
    net.forward(data=100 * images[0])  # a later pass does nothing
    return tiny / "record.txt", images.reshape(8, 2, 8, 8), np.concatenate(pooled)


def test_inner_product(calibrated):
    record, _, pooled = calibrated
    rows = pooled.reshape(8, -1).astype(float)
    found = load_moments(record, "fc")
    assert found.samples == 8
    assert found.sums == pytest.approx(rows.T @ rows, rel=1e-4, abs=1e-4)


def test_convolution_with_padding(calibrated):
    """Against the definition: the sum over positions of outer products of zero-padded patches."""
    record, images, _ = calibrated
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((18, 18))
    for image in padded:
        for y in range(8):
            for x in range(8):
                patch = image[:, y : y + 3, x : x + 3].ravel().astype(float)
                expected += np.outer(patch, patch)
    found = load_moments(record, "conv")
    assert found.samples == 8 * 64
    assert found.sums == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_layers_without_codebook_have_none(calibrated):
    assert load_moments(calibrated[0], "pool") is None
