"""Small quantized networks: random weights, activation ranges from one pass over random images."""

from dataclasses import replace

import numpy as np

from autonuq.compress.candidate import Candidate
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.lowering import lower
from autonuq.runtime.session import Session


def with_random_weights(graph, seed=0):
    """Give every layer weights that keep the size of its input."""
    rng, shapes = np.random.default_rng(seed), infer_shapes(graph)

    def blobs(layer):
        normal = [rng.standard_normal(shape, np.float32) for shape in blob_shapes(graph, layer, shapes)]
        return [values / np.float32(np.sqrt(values[0].size)) for values in normal]

    return graph.with_layers(layer.with_(blobs=blobs(layer)) for layer in graph.layers)


def quantized_candidate(graph, *, asymmetric=True, seed=0):
    """Quantize a graph with weights; the codes of each layer's input span all values of one random pass."""
    model = quantize(graph, default_config(graph, activation_offset=asymmetric))
    factors = {}
    for index, layer in enumerate(model.graph.layers):
        if layer.name in model.factors:
            values = inputs_of(model.graph, index, seed)
            low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
            step = (high - low) / 255 if asymmetric else max(-low, high) / 127
            offset = round(-128 - low / step) if asymmetric else 0
            factors[layer.name] = replace(model.factors[layer.name], scale_d=step, offset_d=offset)
    return Candidate(replace(model, factors=factors))


def inputs_of(graph, index, seed=0):
    """Return what a layer's first bottom holds in a random pass when the layer is reached."""
    blob = graph.layers[index].bottoms[0]
    lowered = lower(graph, outputs=[blob], last=index - 1)
    feeds = random_feeds(graph, seed)
    return Session(lowered).run({name: feeds[name] for name in lowered.inputs})[blob]


def random_feeds(graph, seed=0):
    """Return random values for every input."""
    rng = np.random.default_rng(seed + 1)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in graph.inputs.items()}
