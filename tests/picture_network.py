"""A small classifier of coloured pictures, whose BatchNorm has seen them; and those pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from autonuq.graph.files import fill_weights, parse_graph, write_caffemodel
from autonuq.graph.lowering import lower
from autonuq.graph.model import Array, Graph
from autonuq.runtime.session import Session

NETWORK = """
name: "pictures"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 16 kernel_size: 3 pad: 1 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" batch_norm_param { use_global_stats: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 4 stride: 4 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
        inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
MEAN, SCALE = 127.5, 1 / 127.5  # of RGB


COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60), (60, 200, 200), (200, 60, 200))
"""Of the six classes."""


def write_picture_network(folder: Path, count: int = 64) -> None:
    """Write net.prototxt, net.caffemodel, pictures/ and, with labels, val/ and images.npz."""
    rng = np.random.default_rng(4)
    labels = np.arange(count) % len(COLOURS)
    pictures = np.clip(rng.normal(np.array(COLOURS)[labels, None, None], 45, (count, 16, 16, 3)), 0, 255).astype(
        np.uint8
    )
    images = ((pictures.transpose(0, 3, 1, 2) - MEAN) * SCALE).astype(np.float32)
    (folder / "net.prototxt").write_text(NETWORK)
    graph = fill_weights(parse_graph(NETWORK.encode(), folder / "net.prototxt"), rng)
    seen = _values(graph, images, "conv", 1)
    graph = _with_blobs(graph, bn=(seen.mean((0, 2, 3)), seen.var((0, 2, 3)), np.ones(1, np.float32)))
    pooled = _values(graph, images, "pool", 4).reshape(count, -1)
    wanted = 8.0 * np.eye(len(COLOURS))[labels]
    weights = np.linalg.lstsq(pooled.T @ pooled + np.eye(pooled.shape[1]), pooled.T @ wanted, rcond=None)[0].T
    fc = (weights.astype(np.float32), np.zeros(len(COLOURS), np.float32))
    write_caffemodel(_with_blobs(graph, fc=fc), folder / "net.caffemodel")
    np.savez(folder / "images.npz", images=images, labels=labels)
    for name in ("pictures", "val"):
        (folder / name).mkdir()
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    lines = "".join(f"{number:03}.png {label}\n" for number, label in enumerate(labels))
    (folder / "val" / "labels.txt").write_text(lines)


def _values(graph: Graph, images: Array, blob: str, last: int) -> Array:
    """Return a blob of every image."""
    session = Session(lower(graph, outputs=[blob], last=last))
    return np.concatenate([session.run({"data": images[at : at + 4]})[blob] for at in range(0, len(images), 4)])


def _with_blobs(graph: Graph, **blobs: tuple[Array, ...]) -> Graph:
    layers = tuple(layer.with_(blobs=blobs.get(layer.name, layer.blobs)) for layer in graph.layers)
    return Graph(graph.name, layers, graph.path)
