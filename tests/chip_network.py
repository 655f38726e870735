"""A network of which a chip's compiler marks one layer: the others are small, grouped or fully connected."""

import numpy as np

from autonuq.graph.files import expected_blobs, load_graph, write_caffemodel

NETWORK = """
name: "chip"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 8 dim: 8 } } }
layer { name: "small" type: "Convolution" bottom: "data" top: "small"
        convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "small" top: "small" }
layer { name: "pool" type: "Pooling" bottom: "small" top: "pool" pooling_param { pool: AVE kernel_size: 4 stride: 4 } }
layer { name: "large" type: "Convolution" bottom: "pool" top: "large"
        convolution_param { num_output: 32 kernel_size: 3 pad: 1 } }
layer { name: "grouped" type: "Convolution" bottom: "large" top: "grouped"
        convolution_param { num_output: 32 kernel_size: 1 group: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "grouped" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
MARK_BYTES = 3_000
"""Where `predict_mark` takes this for the size from which on a layer is marked, `large` alone is: 4,608 weights."""

# The same at the real size: 294,912 weights on a 7 x 7 map are marked on every chip.
REAL = (
    NETWORK.replace("dim: 4 dim: 2 dim: 8 dim: 8", "dim: 1 dim: 8 dim: 28 dim: 28")
    .replace("num_output: 16", "num_output: 128")
    .replace("num_output: 32 kernel_size: 3 pad: 1 }", "num_output: 256 kernel_size: 3 pad: 1 }")
)


def write_chip_network(folder, name="tiny", text=NETWORK):
    """Write name.prototxt and name.caffemodel with random weights to a folder."""
    path, rng = folder / f"{name}.prototxt", np.random.default_rng(7)
    path.write_text(text)
    graph = load_graph(path)
    layers = []
    for layer in graph.layers:
        shapes = expected_blobs(graph)[layer.name]
        blobs = [rng.laplace(scale=1 / np.prod(shape[1:]) ** 0.5, size=shape) for shape in shapes]
        layers.append(layer.with_(blobs=[blob.astype(np.float32) for blob in blobs]))
    write_caffemodel(graph.with_layers(layers), folder / f"{name}.caffemodel")
