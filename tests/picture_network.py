"""A small classifier of pictures, trained by nobody, whose BatchNorm has seen its pictures; and those pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from autonuq.graph.files import fill_weights, parse_graph, write_caffemodel
from autonuq.graph.lowering import lower
from autonuq.runtime.net import Net
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


def write_picture_network(folder: Path, count: int = 64) -> None:
    """Write net.prototxt, net.caffemodel, pictures/ and, labelled by the network, val/ and images.npz."""
    rng = np.random.default_rng(4)
    tints = rng.integers(40, 216, (count, 1, 1, 3))
    pictures = np.clip(rng.normal(tints, 45, (count, 16, 16, 3)), 0, 255).astype(np.uint8)
    images = ((pictures.transpose(0, 3, 1, 2) - MEAN) * SCALE).astype(np.float32)
    (folder / "net.prototxt").write_text(NETWORK)
    graph = fill_weights(parse_graph(NETWORK.encode(), folder / "net.prototxt"), rng)
    session = Session(lower(graph, outputs=["conv"], last=1))
    seen = np.concatenate([session.run({"data": images[at : at + 4]})["conv"] for at in range(0, count, 4)])
    blobs = {"bn": (seen.mean((0, 2, 3)), seen.var((0, 2, 3)), np.ones(1, np.float32))}
    layers = tuple(layer.with_(blobs=blobs.get(layer.name, layer.blobs)) for layer in graph.layers)
    write_caffemodel(type(graph)(graph.name, layers, graph.path), folder / "net.caffemodel")
    net = Net(folder / "net.prototxt", folder / "net.caffemodel")
    labels = net.forward_all(data=images)["prob"].argmax(1)
    np.savez(folder / "images.npz", images=images, labels=labels)
    for name in ("pictures", "val"):
        (folder / name).mkdir()
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    lines = "".join(f"{number:03}.png {label}\n" for number, label in enumerate(labels))
    (folder / "val" / "labels.txt").write_text(lines)
