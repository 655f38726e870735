"""How a network is rounded is chosen on images that took no part, and always can be."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from halved import MODULE

from autonuq.compress import ways
from autonuq.compress.candidate import Candidate
from autonuq.compress.in_order import NetworkBuilder
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.ways import Way, built_at, choose_way, divergent_size, plan_of_size
from autonuq.errors import QuantizationError
from autonuq.quant import cores
from autonuq.quant.curve import Curve
from autonuq.quant.points import OperatingPoints

CONV = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: {items} dim: 3 dim: 8 dim: 8 }} }} }}
layer {{ name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param {{ num_output: 8 kernel_size: 3 }} }}
layer {{ name: "relu" type: "ReLU" bottom: "a" top: "a" }}
layer {{ name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param {{ num_output: 8 kernel_size: 3 }} }}
{middle}
layer {{ name: "fc" type: "InnerProduct" bottom: "{last}" top: "fc" inner_product_param {{ num_output: 6 }} }}
{end}
"""
SOFTMAX = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
HALVED = """layer { name: "half" type: "Python" bottom: "b" top: "half"
python_param { module: "layers_of_ways" layer: "Halved" } }"""


@pytest.fixture(autouse=True)
def small_networks_count(monkeypatch):
    monkeypatch.setattr(ways, "_FEW", 0)


def net(items=8, middle="", last="b", end=SOFTMAX):
    return CONV.format(items=items, middle=middle, last=last, end=end)


def test_the_least_divergence_at_equal_size_is_chosen_every_time(tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, net(), passes=6)
    told = []
    one, other = (choose_way(model, record, passes, told.append) for _ in range(2))
    assert one.way == other.way
    assert [tried.divergence for tried in one.tried] == [tried.divergence for tried in other.tried]
    assert one.way == min(one.tried, key=lambda tried: tried.at_equal_size).way
    assert len(told) == 2 * len(one.tried) and all("nats at" in text for text in told)
    assert any(not tried.way.side for tried in one.tried)  # today's way is among them
    assert all(np.isfinite(tried.divergence) and tried.ratio > 1 for tried in one.tried)
    for name, costs in one.costs.items():
        assert (costs == other.costs[name]).all()
        assert np.linalg.eigvalsh(costs)[0] > 0
    assert not one.unknown


def test_a_network_without_a_softmax(tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, net(end=""))
    found = choose_way(model, record, passes)
    assert {tried.way.temperature for tried in found.tried} == {Way.temperature}  # which means nothing there
    assert len(found.tried) > 2 and all(np.isfinite(tried.divergence) for tried in found.tried)


@pytest.fixture
def halved(tmp_path, monkeypatch):
    """Put the module of the Python layer where it is found."""
    (tmp_path / "layers_of_ways.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("layers_of_ways", None)


@pytest.mark.usefixtures("python_layers_run")
def test_layers_whose_gradients_are_unknown_are_said(tmp_path, calibrate, halved):
    """What lies behind a layer in Python has none; what lies before it aims at its input."""
    model, record, passes = calibrate(tmp_path, net(middle=HALVED, last="half"))
    found = choose_way(model, record, passes)
    assert found.unknown.keys() == {"fc"} and all(found.unknown.values())
    assert found.costs.keys() == ({"a", "b", "fc"} if found.way.side else set())
    if found.way.side:  # all of its weights cost as much as those of one of the others, or between
        whole = [
            np.sum(found.costs[name] * ways._energy(model.graph.by_name[name], record)) for name in ("a", "b", "fc")
        ]
        assert min(whole[:2]) <= whole[2] * (1 + 1e-9) and whole[2] <= max(whole[:2]) * (1 + 1e-9)


@pytest.mark.usefixtures("python_layers_run")
def test_where_no_gradient_is_known_all_outputs_are_equal(tmp_path, calibrate, halved):
    text = net(middle=HALVED.replace('"b"', '"data"').replace("half", "first"), last="b")
    text = text.replace('bottom: "data" top: "a"', 'bottom: "first" top: "a"')
    first = text.index('layer { name: "first"')
    at = text.index('layer { name: "a"')
    moved = text[first : text.index("} }", first) + 3]
    model, record, passes = calibrate(tmp_path, text[:at] + moved + text[at:].replace(moved, ""))
    found = choose_way(model, record, passes)
    assert not found.way.side and not found.costs
    assert found.unknown.keys() == {"a", "b", "fc"}


@pytest.mark.parametrize(("items", "count", "compared"), [(8, 1, True), (1, 1, False), (1, 2, True)])
def test_few_passes_and_few_images(items, count, compared, tmp_path, calibrate):
    """One pass is split by its images; one image alone is not enough to compare anything."""
    model, record, passes = calibrate(tmp_path, net(items=items), passes=count)
    found = choose_way(model, record, passes)
    assert bool(found.tried) == compared
    assert found.way.side or compared
    points = dict(build_network_points(model, record, costs=found.costs, tuning=found.way.tuning))
    assert all(np.isfinite(one.curve.distortions).all() for one in points.values())


@pytest.mark.parametrize("kind", ["zeros", "constant", "dead channels"])
def test_inputs_that_say_little(kind, tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, net())
    for one in passes:
        one["data"][:, slice(1, None) if kind == "dead channels" else slice(None)] = 0.5 if kind == "constant" else 0
    found = choose_way(model, record, passes)
    points = dict(build_network_points(model, record, costs=found.costs, tuning=found.way.tuning))
    assert all(np.isfinite(one.curve.distortions).all() for one in points.values())
    assert kind == "dead channels" or all(found.unknown.values())


def silenced(model, name, value):
    """Give a layer weights and biases of one value."""
    layers = [
        layer.with_(blobs=[np.full_like(blob, value) for blob in layer.blobs]) if layer.name == name else layer
        for layer in model.graph.layers
    ]
    return replace(model, graph=model.graph.with_layers(layers))


def test_zero_gradients_are_said(tmp_path, calibrate):
    """The last layer's weights are 0: what the others do changes nothing."""
    model, record, passes = calibrate(tmp_path, net())
    found = choose_way(silenced(model, "fc", 0.0), record, passes)
    assert {"a", "b"} <= found.unknown.keys()
    assert all("gradient is zero" in found.unknown[name] for name in ("a", "b"))
    assert not {"a", "b"} & found.costs.keys()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_that_are_not_finite_are_said(tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, net())
    found = choose_way(silenced(model, "fc", 3e38), record, passes)
    assert {"a", "b"} <= found.unknown.keys()
    assert not found.costs or np.isfinite(list(found.costs.values())[0]).all()


def points_of(*curves):
    found = {}
    for name, (rates, losses) in zip("ab", curves, strict=False):
        found[name] = OperatingPoints(
            Curve(name, np.array(rates), np.array(losses)), np.zeros((len(rates), 1), np.int8)
        )
    return found


def test_plans_of_a_size():
    points = points_of(([100, 50, 10], [0.0, 1.0, 9.0]), ([100, 50, 10], [0.0, 0.1, 0.9]))
    sizes = [
        sum(points[name].curve.rates_bytes[point] for name, point in plan_of_size(points, size).items())
        for size in (500, 200, 150, 100, 60, 20, 1)
    ]
    assert sizes == [200, 200, 150, 60, 60, 20, 20]
    assert plan_of_size(points, 150) == {"a": 0, "b": 1}


def test_the_size_that_ways_are_compared_at_diverges_as_is_aimed_at(tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, net(), passes=6)
    candidate = Candidate(model, dict(build_network_points(model, record, tuning=Way().tuning)))
    builder, judging = NetworkBuilder(model, passes, range(3)), range(3, 6)
    size = divergent_size(builder, candidate, judging)
    real, divergence = built_at(builder, candidate, size, judging)
    assert 0 < real < 1.2 * size
    assert 0.004 < divergence < 0.1


def test_of_a_small_network_nothing_is_compared(tmp_path, calibrate, monkeypatch):
    monkeypatch.setattr(ways, "_FEW", 1 << 13)
    found = choose_way(*calibrate(tmp_path, net()))
    assert not found.tried and found.way == Way() and found.costs.keys() == {"a", "b", "fc"}


def test_the_choice_is_the_same_on_any_number_of_cores(tmp_path, calibrate, monkeypatch):
    model, record, passes = calibrate(tmp_path, net(), passes=6)
    found, told = [], []
    for count in (1, 3):
        monkeypatch.setattr(cores, "available_cores", lambda count=count: count)
        told.append([])
        found.append(choose_way(model, record, passes, told[-1].append))
    one, three = found
    assert told[0] == told[1]
    assert (one.way, one.tried) == (three.way, three.tried)
    assert {name: costs.tobytes() for name, costs in one.costs.items()} == {
        name: costs.tobytes() for name, costs in three.costs.items()
    }


def test_an_error_of_one_half_is_seen(tmp_path, calibrate, monkeypatch):
    model, record, passes = calibrate(tmp_path, net(), passes=6)
    monkeypatch.setattr(cores, "available_cores", lambda: 3)

    def broken(*_):
        raise QuantizationError("broken", layer="b")

    monkeypatch.setattr(NetworkBuilder, "_rounded", broken)
    with pytest.raises(QuantizationError, match="broken"):
        choose_way(model, record, passes)
