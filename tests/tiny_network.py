"""A small network, an evaluator that needs no data, and a study of them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from autonuq.graph.files import load_graph, write_caffemodel

TINY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" batch_norm_param { use_global_stats: true } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

EVALUATOR = '''
"""Agreement of the network's decisions with recorded ones."""
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

import autonuq as nuq


class Agreement(nuq.Evaluator):
    limit = 0.1

    def __init__(self, evaluate_batch_num=8):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        self.images = np.random.default_rng(5).standard_normal((8, 4, 2, 8, 8), np.float32)
        self.calls = []

    def eval_model(self, model_file, weights_file, batch_num):
        self.calls.append((Path(model_file).name, batch_num))
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        labels = [net.forward(data=images)["prob"].argmax(1) for images in self.images[:batch_num]]
        if not hasattr(self, "labels"):
            self.labels = labels
        return float(np.mean([a == b for a, b in zip(labels, self.labels)]))

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < self.limit
'''


def write_tiny(folder: Path, names: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write tiny.prototxt, tiny.caffemodel and evaluate.py, with other names for some layers and their blobs."""
    text = TINY
    for name, other in names.items():
        text = text.replace(f'"{name}"', f'"{other}"')
    (folder / "tiny.prototxt").write_text(text)
    (folder / "evaluate.py").write_text(EVALUATOR)
    rng = np.random.default_rng(3)
    blobs = {
        "conv": [rng.laplace(scale=0.2, size=(8, 2, 3, 3))],
        "bn": [rng.normal(size=8), rng.uniform(50, 100, 8), np.array([99.0])],
        "scale": [rng.uniform(0.5, 2, 8), rng.normal(size=8)],
        "fc": [rng.laplace(scale=0.1, size=(10, 128)), rng.normal(size=10)],
    }
    blobs = {names.get(name, name): values for name, values in blobs.items()}
    graph = load_graph(folder / "tiny.prototxt")
    layers = [
        layer.with_(blobs=[blob.astype(np.float32) for blob in blobs.get(layer.name, [])]) for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), folder / "tiny.caffemodel")


def write_tiny_study(folder: Path) -> Path:
    """Write study.toml, for what `write_tiny` wrote, and return its path."""
    path = folder / "study.toml"
    path.write_text(
        'name = "tiny"\n'
        '[model]\nprototxt = "tiny.prototxt"\nweights = "tiny.caffemodel"\n'
        '[evaluator]\nclass = "evaluate.py:Agreement"\nevaluate_batch_num = 8\n'
        "[search]\ntrials = 8\n"
    )
    return path
