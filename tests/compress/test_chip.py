"""What ATC would do, predicted without ATC, against what it did to the published ResNet-50."""

import math

import numpy as np

from autonuq.compress.chip import view_on_chip
from autonuq.graph.files import load_graph
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.passes import capabilities
from autonuq.settings.mapping import load_marks

STAGE_5 = [
    *(f"res5a_branch{branch}" for branch in ("1", "2a", "2b", "2c")),
    *(f"res5{block}_branch{branch}" for block in "bc" for branch in ("2a", "2b", "2c")),
]


def random_weights(graph):
    rng, shapes, layers = np.random.default_rng(0), infer_shapes(graph), []
    for layer in graph.layers:
        blobs = [
            rng.standard_normal(shape, np.float32) / math.prod(shape[1:]) ** 0.5
            for shape in blob_shapes(graph, layer, shapes)
        ]
        if layer.type == "BatchNorm":
            blobs = [blobs[0], np.abs(blobs[1]) + 1, np.ones(1, np.float32)]
        layers.append(layer.with_(blobs=[blob.astype(np.float32) for blob in blobs]))
    return graph.with_layers(layers)


def test_resnet50_on_ascend310_is_the_published_mapping(shared):
    graph = load_graph(shared / "models/resnet50-shape/deploy.prototxt")
    views = view_on_chip(random_weights(graph), "ascend310")
    marked = [name for name, view in views.items() if view.mark.is_marked]
    assert sorted(marked) == sorted(STAGE_5)
    published = load_marks(shared / "data/amct/resnet50_om_model.json", capabilities(graph)).layers
    assert sorted(published) == sorted(marked)
