"""Calibrated networks with random weights, for smooth pictures."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import ModelPair, load_graph, write_caffemodel
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.runtime.inputs import load_inputs, request_inputs


@pytest.fixture
def calibrate():
    """Write a network and calibrate it: (folder, prototxt, passes=4, seed=0) -> (model, record file, passes)."""
    return _calibrated


def _with_weights(graph, seed=0):
    """Fill a graph with weights under which signals keep their size."""
    rng, shapes = np.random.default_rng(seed), infer_shapes(graph)
    layers = []
    for one in graph.layers:
        blobs = blob_shapes(graph, one, shapes)
        filled = [rng.laplace(size=shape) / np.prod(shape[1:]) ** 0.5 for shape in blobs[:1]]
        filled += [rng.normal(scale=0.1, size=shape) for shape in blobs[1:]]
        layers.append(one.with_(blobs=[blob.astype(np.float32) for blob in filled]))
    return graph.with_layers(layers)


def _passes_of(graph, count, seed=1):
    """Smooth pictures: neighbours go together, so that errors can cancel."""
    rng, shapes = np.random.default_rng(seed), infer_shapes(graph)
    return [
        {name: _picture(rng.standard_normal(shapes[name])) for name in ("data", "other") if name in shapes}
        for _ in range(count)
    ]


def _picture(noise):
    rough = noise.cumsum(axis=2).cumsum(axis=3)
    centred = rough - rough.mean(axis=(2, 3), keepdims=True)
    return (centred / centred.std(axis=(2, 3), keepdims=True)).astype(np.float32)


def _calibrated(folder, text, passes=4, seed=0):
    """Write a network, calibrate it on random inputs; return (model, record file, passes)."""
    source = ModelPair(folder / "net.prototxt", folder / "net.caffemodel")
    source.model.write_text(text)
    write_caffemodel(_with_weights(load_graph(source.model), seed), source.weights)
    graph = load_graph(source.model, source.weights)
    model, record = quantize(graph, default_config(graph, batch_num=passes)), folder / "record.txt"
    pair = ModelPair(folder / "modified.prototxt", folder / "modified.caffemodel")
    write_calibration_model(model, pair, record, model.weights)
    request_inputs(record)
    net = nuq.Net(pair.model, pair.weights)
    for one in _passes_of(graph, passes):
        net.forward(**one)
    return calibrated(model, record), record, load_inputs(record)
