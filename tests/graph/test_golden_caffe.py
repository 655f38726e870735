"""Every blob that real BVLC Caffe recorded, computed again."""

from pathlib import Path

import numpy as np
import pytest

from autonuq.graph.files import load_graph
from autonuq.graph.lowering import lower
from autonuq.runtime.net import Net
from autonuq.runtime.session import Session

HERE = Path(__file__).parents[1] / "golden" / "caffe"
CASES = sorted(path.stem for path in HERE.glob("*.npz"))


def recorded(case):
    """Return inputs and recorded blobs of a case."""
    with np.load(HERE / f"{case}.npz") as file:
        parts = {kind: {} for kind in ("in", "out", "blob")}
        for key in file.files:
            kind, name = key.split(":", 1)
            parts[kind][name] = file[key]
    return parts["in"], parts["out"] | parts["blob"]


def assert_recorded(found, wanted, name):
    """Compare with Caffe's values: 1e-5 of the largest, and 1e-4 of each that is not lost among rounding errors."""
    assert found.shape == wanted.shape, name
    largest = float(np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * largest, err_msg=name)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * largest, err_msg=name)


def test_all_cases_are_there():
    assert len(CASES) == 20


@pytest.mark.parametrize("case", CASES)
def test_net_gives_what_caffe_recorded(case):
    inputs, wanted = recorded(case)
    net = Net(HERE / f"{case}.prototxt", HERE / f"{case}.caffemodel")
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    net.forward()
    for name, values in wanted.items():
        assert_recorded(net.blobs[name].data, values, name)


@pytest.mark.parametrize("case", CASES)
def test_session_gives_all_blobs_in_one_run(case):
    inputs, wanted = recorded(case)
    graph = load_graph(HERE / f"{case}.prototxt", HERE / f"{case}.caffemodel")
    made = [name for name in wanted if name not in inputs]
    session = Session(lower(graph, outputs=made), threads=1)
    found = session.run({name: inputs[name] for name in session.inputs})
    for name in made:
        assert_recorded(found[name], wanted[name], name)
