"""A pair of files as a trial scores it: folded, activations calibrated, weights int8 codes times their scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import autonuq as nuq
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate, Made
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import QuantizedModel, default_config, quantize
from autonuq.graph.files import ModelPair, load_graph, write_model
from autonuq.graph.model import Array


def shaped_net(pair: ModelPair, batch: int) -> nuq.Net:
    """Return a net for a number of images."""
    net = nuq.Net(pair.model, pair.weights)
    (blob,) = net.inputs
    net.blobs[blob].reshape(batch, *net.blobs[blob].shape[1:])
    net.reshape()
    return net


def calibrate(pair: ModelPair, images: Array, folder: Path) -> QuantizedModel:
    """Quantize a pair and find the ranges of its activations on some images, in one pass."""
    graph = load_graph(pair.model, pair.weights)
    model = quantize(graph, default_config(graph, batch_num=1))
    observed, record = ModelPair(folder / "modified.prototxt", folder / "modified.caffemodel"), folder / "record.txt"
    write_calibration_model(model, observed, record, ())
    net = shaped_net(observed, len(images))
    net.forward(**{net.inputs[0]: images})
    return calibrated(model, record)


def write_pairs(model: QuantizedModel, pair: ModelPair, folder: Path) -> dict[str, list[ModelPair]]:
    """Write the fake-quant pair, and of it and of the plain pair a second one of the same structure.

    In the second ones every layer's output channels have changed places.
    """
    turned = {
        name: Made(np.roll(found.codes, 1, axis=0), next(iter(model.graph.by_name[name].blobs[1:]), None))
        for name, found in model.weights.items()
    }
    quantized = [ModelPair(folder / "quant.prototxt", folder / f"quant{index}.caffemodel") for index in range(2)]
    for candidate, written in zip((Candidate(model), Candidate(model, made=turned)), quantized, strict=True):
        write_fake_quant(candidate, written)
    plain, second = load_graph(pair.model, pair.weights), replace(pair, weights=folder / "second.caffemodel")
    write_model(
        plain.with_layers(
            layer.with_(blobs=[np.roll(layer.blobs[0], 1, axis=0), *layer.blobs[1:]]) if layer.blobs else layer
            for layer in plain.layers
        ),
        folder / "second.prototxt",
        second.weights,
    )
    return {"plain": [pair, second], "fake-quant": quantized}
