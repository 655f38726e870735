"""The output side of weight errors: what it predicts is compared with the divergence that comes out."""

import numpy as np
import pytest

from autonuq.compress.output_side import collect_output_sides
from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.shapes.registry import LAYER_TYPES
from autonuq.runtime.moments import InputPatches
from autonuq.runtime.session import Session

IMAGES = 24
TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "grouped" type: "Convolution" bottom: "pool" top: "grouped"
        convolution_param { num_output: 6 kernel_size: 3 group: 3 } }
layer { name: "relu2" type: "ReLU" bottom: "grouped" top: "grouped" }
layer { name: "fc" type: "InnerProduct" bottom: "grouped" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
PIXELS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
        convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "prob" type: "Softmax" bottom: "up" top: "prob" }
"""
REGRESSION = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "tanh" type: "TanH" bottom: "fc" top: "fc" }
layer { name: "out" type: "InnerProduct" bottom: "fc" top: "out" inner_product_param { num_output: 3 } }
"""


def network(folder, text, seed=3):
    """Give a network random weights of a size that keeps the numbers near 1."""
    path = folder / "net.prototxt"
    path.write_text(text)
    graph, rng = load_graph(path), np.random.default_rng(seed)
    shapes = infer_shapes(graph)

    def filled(layer):
        wanted = LAYER_TYPES[layer.type].blobs(layer, [shapes[bottom] for bottom in layer.bottoms])
        return layer.with_(
            blobs=[rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:])) * 1.5 for shape in wanted]
        )

    return graph.with_layers(filled(layer) for layer in graph.layers)


def feeds(graph, count=IMAGES, seed=1):
    rng = np.random.default_rng(seed)
    return {
        blob: rng.standard_normal((count, *shape[1:]), np.float32) + np.float32(0.3)
        for blob, shape in graph.inputs.items()
    }


def values(graph, inputs, blob):
    shapes = {name: array.shape for name, array in inputs.items()}
    return Session(lower(graph, shapes, outputs=[blob]), threads=1).run(inputs)[blob].astype(np.float64)


def with_error(graph, name, error):
    """Add to the weights of a layer."""
    return graph.with_layers(
        layer.with_(blobs=[layer.blobs[0] + np.float32(error), *layer.blobs[1:]]) if layer.name == name else layer
        for layer in graph.layers
    )


def rows_of(layer, weights):
    """See weights as (groups, R, K), as the product does."""
    if layer.type == "Deconvolution":
        return weights.swapaxes(0, 1).reshape(1, weights.shape[1], -1)
    groups = layer.message.convolution_param.group if layer.type == "Convolution" else 1
    return weights.reshape(groups, weights.shape[0] // groups, -1)


def compensated(graph, name, error, mean):
    """Let the bias take up the mean of the error."""
    layer = graph.by_name[name]
    shift = np.einsum("grk,gk->gr", rows_of(layer, error), mean).reshape(-1)
    changed = with_error(graph, name, error)
    return changed.with_layers(
        one.with_(blobs=[one.blobs[0], one.blobs[1] - np.float32(shift)]) if one.name == name else one
        for one in changed.layers
    )


def second_moments(graph, name, inputs):
    """Return H and the mean of the inputs of a layer, float64."""
    layer = graph.by_name[name]
    bottom = values(graph, inputs, layer.bottoms[0]) if layer.bottoms[0] not in inputs else inputs[layer.bottoms[0]]
    x = InputPatches(layer, np.float32(bottom)).of_items(slice(None)).astype(np.float64)
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    return centred.swapaxes(1, 2) @ centred / x.shape[1], mean


def predicted(side, error, moments):
    return 0.5 * float(np.einsum("gij,gjk,gkl,gil->", side, error, moments, error))


def kl(original, changed, axis=1):
    return float(np.mean(np.sum(original * np.log(original / changed), axis=axis)))


@pytest.mark.parametrize(
    ("text", "layer"),
    [(TEXT, "conv"), (TEXT, "grouped"), (TEXT, "fc"), (PIXELS, "conv"), (PIXELS, "up")],
    ids=["conv", "grouped", "fc", "pixels conv", "pixels deconvolution"],
)
def test_both_sides_predict_the_divergence(tmp_path, text, layer):
    """Averaged over errors, both say what comes out: by image exactly so, by position where positions are alike."""
    graph, rng = network(tmp_path, text), np.random.default_rng(5)
    inputs = feeds(graph)
    found = collect_output_sides(graph, [inputs], draws=64, seed=2)
    assert not found.unknown and found.images == IMAGES
    side, original = found.layers[1.0][layer], values(graph, inputs, "prob")
    moments, mean = second_moments(graph, layer, inputs)
    came, said = [], []
    for _ in range(200):
        error = rng.standard_normal(graph.by_name[layer].blobs[0].shape) * 0.003
        came.append(kl(original, values(compensated(graph, layer, error, mean), inputs, "prob")))
        rows = rows_of(graph.by_name[layer], error)
        said.append([predicted(side.by_image, rows, moments), predicted(side.by_position, rows, moments)])
    by_image, by_position = np.mean(said, axis=0) / np.mean(came)
    assert by_image == pytest.approx(1, rel=0.12)
    assert by_position == pytest.approx(1, rel=0.6)
