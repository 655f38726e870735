"""Run a few layers given as prototxt text, with weights given as arrays."""

import numpy as np
import pytest

from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower
from autonuq.runtime.session import Session


def run_layers(folder, text, feeds, weights=None, shapes=True):
    """Return every blob of the network after one pass; an Input layer is made for every feed."""
    inputs = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {dim}" for dim in values.shape)
        + " } } }\n"
        for name, values in feeds.items()
    )
    path = folder / "net.prototxt"
    path.write_text(inputs + text)
    graph = load_graph(path)
    weights = weights or {}
    graph = graph.with_layers(
        layer.with_(blobs=[np.float32(blob) for blob in weights[layer.name]]) if layer.name in weights else layer
        for layer in graph.layers
    )
    expected = infer_shapes(graph)
    lowered = lower(graph, outputs=[blob for blob in expected if blob not in feeds])
    session = Session(lowered, threads=1)
    found = session.run({name: np.float32(feeds[name]) for name in session.inputs})
    if shapes:
        assert {name: values.shape for name, values in found.items()} == {name: expected[name] for name in found}
    assert all(values.dtype == np.float32 for values in found.values())
    return found


@pytest.fixture
def run(tmp_path):
    """Give `run_layers` a folder."""
    return lambda *args, **kwargs: run_layers(tmp_path, *args, **kwargs)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
