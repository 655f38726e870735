"""A network built in order is one network everywhere, and nearer to the original than its layers rounded alone."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from halved import MODULE
from targets import counted_with

import autonuq as nuq
from autonuq.compress.candidate import Candidate
from autonuq.compress.formats import export, onnx_file, weights_only_pair
from autonuq.compress.in_order import NetworkBuilder
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.outputs import deploy_pair, fake_quant_pair, packed_path, unpack
from autonuq.compress.packed_file import load_packed
from autonuq.compress.quantized import quantize
from autonuq.graph.files import ModelPair, load_caffemodel, load_graph, write_model
from autonuq.graph.gradients import computable_layers
from autonuq.graph.lowering import lower
from autonuq.quant.codecs import make_codec
from autonuq.quant.points import Tuning
from autonuq.runtime.integers import integer_plan
from autonuq.runtime.session import Session

IMAGES = 8  # of a pass


def layer(name, kind, bottoms, parameters="", tops=None):
    blobs = "".join(f' bottom: "{bottom}"' for bottom in bottoms.split())
    blobs += "".join(f' top: "{top}"' for top in (tops or name).split())
    return f'layer {{ name: "{name}" type: "{kind}"{blobs} {parameters} }}\n'


def data(name="data", channels=3, size=8):
    shape = f"input_param {{ shape {{ dim: {IMAGES} dim: {channels} dim: {size} dim: {size} }} }}"
    return layer(name, "Input", "", shape)


def conv(name, bottoms, outputs=8, more="", tops=None):
    parameters = f"convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 {more} }}"
    return layer(name, "Convolution", bottoms, parameters, tops)


def relu(name):
    return layer(f"{name}_relu", "ReLU", name, tops=name)


def dense(name, bottom, outputs=6):
    return layer(name, "InnerProduct", bottom, f"inner_product_param {{ num_output: {outputs} }}")


def softmax(bottom, top="prob"):
    return layer("prob", "Softmax", bottom, tops=top)


TRUNK = data() + conv("a", "data") + relu("a") + conv("b", "a") + relu("b")
NETWORKS = {
    "chain": TRUNK + dense("fc", "b") + softmax("fc"),
    "no bias": data()
    + conv("a", "data")
    + relu("a")
    + conv("b", "a", more="bias_term: false")
    + relu("b")
    + dense("fc", "b"),
    "softmax in place": TRUNK + dense("fc", "b") + softmax("fc", "fc"),
    "no softmax": TRUNK + dense("fc", "b"),
    "two ends": TRUNK + dense("fc", "b") + dense("box", "b", 4) + softmax("fc"),
    "grouped": TRUNK + conv("g", "b", more="group: 2") + relu("g") + dense("fc", "g") + softmax("fc"),
    "depthwise": TRUNK
    + conv("dw", "b", more="group: 8")
    + relu("dw")
    + conv("pw", "dw", 12)
    + dense("fc", "pw")
    + softmax("fc"),
    "deconvolution": TRUNK
    + layer("up", "Deconvolution", "b", "convolution_param { num_output: 5 kernel_size: 4 stride: 2 pad: 1 }")
    + relu("up")
    + conv("c", "up", 2),
    "concat": TRUNK
    + conv("left", "b", 4)
    + conv("right", "b", 6)
    + relu("left")
    + layer("both", "Concat", "left right")
    + conv("c", "both")
    + dense("fc", "c")
    + softmax("fc"),
    "residual": TRUNK
    + conv("c", "b")
    + layer("sum", "Eltwise", "b c")
    + relu("sum")
    + conv("d", "sum")
    + layer("sum2", "Eltwise", "sum d")
    + layer("pool", "Pooling", "sum2", "pooling_param { pool: AVE kernel_size: 2 stride: 2 }")
    + dense("fc", "pool")
    + softmax("fc"),
    "two inputs": data()
    + data("other", 2)
    + conv("a", "data")
    + conv("a2", "other")
    + layer("sum", "Eltwise", "a a2")
    + relu("sum")
    + conv("b", "sum")
    + dense("fc", "b")
    + softmax("fc"),
    "several bottoms": TRUNK + conv("c", "a b", tops="c1 c2") + layer("sum", "Eltwise", "c1 c2") + dense("fc", "sum"),
    "shared weights": TRUNK
    + conv("c", "b", more='} param { name: "w" } param { name: "v"')
    + relu("c")
    + conv("d", "c", more='} param { name: "w" } param { name: "v"')
    + dense("fc", "d"),
    "constants": TRUNK
    + layer("ones", "DummyData", "", f"dummy_data_param {{ shape {{ dim: {IMAGES} dim: 8 dim: 8 dim: 8 }} }}")
    + layer("sum", "Eltwise", "b ones")
    + dense("fc", "sum")
    + softmax("fc"),
    "python": TRUNK
    + conv("c", "b")
    + layer("half", "Python", "c", 'python_param { module: "layers_in_order" layer: "Halved" }')
    + conv("d", "half")
    + dense("fc", "d")
    + softmax("fc"),
}


def plan_of(points, share=0.5):
    return {name: int(share * (len(found.curve.rates_bytes) - 1)) for name, found in points.items()}


def candidate_of(model, record, codec="entropy", share=0.5):
    model = counted_with(model, codec)
    points = dict(build_network_points(model, record, tuning=Tuning(steps=10)))
    return Candidate(model, points, plan_of(points, share))


@pytest.fixture(params=NETWORKS)
def network(request, tmp_path, monkeypatch, calibrate, python_layers_run):
    """Calibrate one of the networks and build a plan of it: (candidate, what was built, passes)."""
    (tmp_path / "layers_in_order.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, record, passes = calibrate(tmp_path, NETWORKS[request.param])
    candidate = candidate_of(model, record)
    return candidate, NetworkBuilder(model, passes).build(candidate), passes


def values_of(pair, blobs, passes):
    """Run a written pair over some passes; for each blob its values in each pass."""
    net = nuq.Net(pair.model, pair.weights)
    found = {blob: [] for blob in blobs}
    for one in passes:
        net.forward(**one)
        for blob in blobs:
            found[blob].append(net.blobs[blob].data.astype(np.float64))
    return found


def divergence_at(kind, original, changed):
    """The module's definition, written out for each item: KL of the softmax, or squares over variances."""
    if kind == "softmax":
        logs = [value - np.log(np.exp(value).sum(axis=1, keepdims=True)) for value in (original, changed)]
        return (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    axes = (0, *range(2, original.ndim))
    squares = np.square((original - changed) / original.std(axis=axes, keepdims=True))
    return 0.5 * squares.mean(axis=tuple(range(1, original.ndim)))


HEADS = {
    "no bias": {"fc": "squares"},
    "no softmax": {"fc": "squares"},
    "several bottoms": {"fc": "squares"},
    "shared weights": {"fc": "squares"},
    "deconvolution": {"c": "squares"},
    "two ends": {"fc": "softmax", "box": "squares"},
    "python": {"c": "squares"},
}


def without_softmax(pair, path):
    """Write a network whose logits are still there at the end."""
    graph = load_graph(pair.model, pair.weights)
    found = ModelPair(path.with_suffix(".prototxt"), path.with_suffix(".caffemodel"))
    write_model(graph.with_layers(layer for layer in graph.layers if layer.name != "prob"), found.model, found.weights)
    return found


def test_what_is_built_is_what_is_written(network, tmp_path, request):
    """The divergences are those of the fake-quant pair against the original, computed by the definition."""
    _, built, passes = network
    heads = HEADS.get(request.node.callspec.params["network"], {"fc": "softmax"})
    export(built.candidate, str(tmp_path / "out/net"), ("caffe",))
    pairs = (
        ModelPair(tmp_path / "net.prototxt", tmp_path / "net.caffemodel"),
        fake_quant_pair(str(tmp_path / "out/net")),
    )
    one, other = (
        values_of(without_softmax(pair, tmp_path / f"open{index}"), heads, passes) for index, pair in enumerate(pairs)
    )
    expected = np.zeros(len(passes))
    for blob, kind in heads.items():
        found = divergence_at(kind, np.concatenate(one[blob]), np.concatenate(other[blob]))
        expected += found.reshape(len(passes), -1).mean(axis=1)
    errors = np.sort(np.abs(np.array(built.divergences) / expected - 1))
    assert errors[:-1].max() < 1e-4
    assert errors[-1] < 2e-2  # in one pass an activation may lie so between two steps that its rounding differs
    assert np.isfinite(built.divergences).all() and len(built.divergences) == len(passes)


def test_building_is_deterministic(network):
    candidate, built, passes = network
    builder = NetworkBuilder(candidate.model, passes)
    builder.build(candidate.with_plan({}))  # another plan, which leaves nothing behind for the next one
    again = builder.build(candidate)
    assert again.divergences == built.divergences
    assert again.candidate.made.keys() == built.candidate.made.keys()
    for name, made in built.candidate.made.items():
        assert (again.candidate.made[name].codes == made.codes).all()
        assert (again.candidate.made[name].bias is None) == (made.bias is None)
        assert made.bias is None or (again.candidate.made[name].bias == made.bias).all()


def test_exports_hold_the_network_that_was_built(network, tmp_path, request):
    """The packed file unpacks to the fake-quant pair, the deploy pair has its codes, the ONNX its results."""
    _, built, passes = network
    name, prefix = request.node.callspec.params["network"], str(tmp_path / "out/net")
    formats = ("caffe", "deploy", "packed", "weights", *(() if name == "python" else ("onnx",)))
    candidate = built.candidate
    export(candidate, prefix, formats)
    scored = load_graph(*as_files(fake_quant_pair(prefix)))
    network_file = load_packed(packed_path(prefix))
    unpacked = load_graph(*as_files(unpack(network_file, str(tmp_path / "again/net"))))
    deployed = load_caffemodel(deploy_pair(prefix).weights)
    plain = load_graph(*as_files(weights_only_pair(prefix)))
    for one in candidate.model.weights:
        layer = candidate.model.graph.by_name[one]
        wanted = candidate.blobs(layer)
        for graph in (scored, unpacked, plain):
            for blob, expected in zip(graph.by_name[one].blobs, wanted, strict=True):
                np.testing.assert_array_equal(blob, expected)
        codes, *biases = (blob.values for blob in deployed[one])
        np.testing.assert_array_equal(codes, candidate.codes(one).ravel())
        step = np.asarray(candidate.factors[one].scale_w, np.float32) * candidate.factors[one].scale_d
        for bias, expected in zip(biases, wanted[1:], strict=True):
            assert np.abs(bias * step - expected).max() <= 0.51 * np.max(step)
    if "onnx" in formats:
        session = onnxruntime.InferenceSession(str(onnx_file(prefix)), providers=["CPUExecutionProvider"])
        outputs = [entry.name for entry in session.get_outputs()]
        ours = values_of(fake_quant_pair(prefix), outputs, passes[:1])
        for blob, found in zip(outputs, session.run(None, passes[0]), strict=True):
            assert np.abs(found - ours[blob][0]).mean() < 0.02 * np.abs(ours[blob][0]).max()


def as_files(pair):
    return pair.model, pair.weights


def test_what_a_layer_keeps(network, request):
    """Only layers behind others are made anew; what a Python layer comes before keeps its codes and biases."""
    candidate, built, _ = network
    name, made = request.node.callspec.params["network"], built.candidate.made
    assert not {"a", "a2"} & made.keys()
    if name == "python":
        assert made.keys() == {"b", "c"}
    if name == "several bottoms":
        assert "c" not in made and "fc" in made
    for grouped in {"g", "dw", "up"} & made.keys():
        assert (made[grouped].codes == candidate.codes(grouped)).all()
        assert not (made[grouped].bias == candidate.biases(candidate.model.graph.by_name[grouped])[0]).all()
    if name == "no bias":
        assert made["b"].bias is None
    for one in candidate.model.weights.keys() - made.keys():
        assert (built.candidate.codes(one) == candidate.codes(one)).all()
    assert built.candidate.plan == candidate.plan and built.candidate.factors == candidate.factors


def test_biases_take_up_the_mean(network):
    """In the network that was built, an output's mean is what it was: as far as the layer's bias is the last to say."""
    candidate, built, passes = network
    graph = candidate.model.graph
    for name, made in built.candidate.made.items():
        blob = graph.by_name[name].tops[0]
        if made.bias is None or any(layer.tops == (blob,) == layer.bottoms for layer in graph.layers):
            continue
        original, quantized = (
            np.concatenate([session_value(each, blob, one) for one in passes])
            for each in (graph, built.candidate.fake_quant_graph())
        )
        axes = (0, *range(2, original.ndim))
        assert quantized.mean(axis=axes) == pytest.approx(original.mean(axis=axes), abs=5e-3 * original.std())


def session_value(graph, blob, feeds):
    computable = graph.with_layers(computable_layers(graph))
    session = Session(lower(computable, outputs=[blob], plan=integer_plan(computable)))
    return session.run({name: feeds[name] for name in session.inputs})[blob].astype(np.float64)


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("name", ["chain", "residual", "concat"])
def test_it_is_nearer_to_the_original_than_layers_rounded_alone(name, share, tmp_path, calibrate):
    """On pictures that took no part, and in no more bytes."""
    model, record, passes = calibrate(tmp_path, NETWORKS[name], passes=24)
    candidate = candidate_of(model, record, share=share)
    judging = range(16, 24)
    built = NetworkBuilder(model, passes, range(16)).build(candidate)
    one, other = (
        np.concatenate([session_value(graph, "fc", passes[index]) for index in judging])
        for graph in (model.graph, candidate.fake_quant_graph())
    )
    assert built.divergence(judging) < divergence_at("softmax", one, other).mean()
    assert size_of(built.candidate) < 1.02 * size_of(candidate)


def size_of(candidate):
    codes = [candidate.codes(name) for name in candidate.model.weights]
    return sum(make_codec("entropy", own.shape).size_bytes(own) for own in codes)


EXACT = (
    data(channels=3, size=4)
    + layer("a", "Convolution", "data", "convolution_param { num_output: 4 kernel_size: 1 }")
    + relu("a")
    + layer("b", "Convolution", "a", "convolution_param { num_output: 4 kernel_size: 1 }")
    + relu("b")
    + dense("fc", "b", 5)
    + softmax("fc")
)


def whole_numbers(graph):
    """Make every weight -2, 0 or 1, the first of each output -2, every bias 0."""
    rng, layers = np.random.default_rng(4), []
    for one in graph.layers:
        if one.blobs:
            weights = rng.choice([-2.0, 0.0, 1.0], one.blobs[0].shape)
            weights[:, 0] = -2
            one = one.with_(blobs=[weights.astype(np.float32), 0 * one.blobs[1]])
        layers.append(one)
    return graph.with_layers(layers)


def test_what_is_exact_stays_what_it_is(tmp_path, calibrate):
    """With weights and inputs on their grids, both networks are one, and nothing moves."""
    model, record, passes = calibrate(tmp_path, EXACT)
    model = replace(quantize(whole_numbers(model.graph), model.config), factors=model.factors)
    scales = {name: tuple(uniform.scale.tolist()) for name, uniform in model.weights.items()}
    model = replace(
        model,
        factors={
            name: replace(found, scale_d=1.0, offset_d=0, scale_w=scales[name]) for name, found in model.factors.items()
        },
    )
    passes = [{"data": np.clip(np.rint(one["data"]), -2, 2)} for one in passes]
    candidate = candidate_of(model, record, share=0)
    built = NetworkBuilder(model, passes).build(candidate)
    assert built.divergences == pytest.approx([0] * len(passes), abs=1e-9)
    for name, made in built.candidate.made.items():
        assert (made.codes == candidate.codes(name)).all()
        assert made.bias == pytest.approx(model.graph.by_name[name].blobs[1], abs=1e-5)


def test_what_is_not_finite_keeps_its_codes(tmp_path, calibrate):
    """A pass that overflows makes no layer's moments, and the divergence of that network is without end."""
    model, record, passes = calibrate(tmp_path, NETWORKS["chain"])
    passes = [{"data": np.where(np.abs(one["data"]) > 0.5, np.float32(np.inf), one["data"])} for one in passes]
    candidate = candidate_of(model, record)
    built = NetworkBuilder(model, passes).build(candidate)
    assert built.divergence(range(len(passes))) == np.inf
    assert all(np.isfinite(made.bias).all() for made in built.candidate.made.values())


@pytest.mark.parametrize("kind", ["zeros", "constant", "dead channels"])
def test_inputs_that_say_nothing(kind, tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, NETWORKS["chain"])
    changed = [one["data"].copy() for one in passes]
    for one in changed:
        if kind == "dead channels":
            one[:, 1:] = 0
        else:
            one[:] = 0 if kind == "zeros" else 0.5
    candidate = candidate_of(model, record)
    built = NetworkBuilder(model, [{"data": one} for one in changed]).build(candidate)
    assert np.isfinite(built.divergences).all()
    assert all(np.isfinite(made.bias).all() for made in built.candidate.made.values())


def test_without_a_grid_of_its_own_a_layer_keeps_its_levels(tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, NETWORKS["chain"])
    candidate = candidate_of(model, record, "fixed")
    built = NetworkBuilder(model, passes).build(candidate)
    assert built.candidate.made.keys() == {"b", "fc"}
    for name, made in built.candidate.made.items():
        levels = candidate.points[name].curve.codebooks[candidate.plan[name]].levels
        assert set(np.unique(made.codes)) <= set(levels.tolist())
        assert make_codec("fixed", made.codes.shape).size_bytes(made.codes) > 0


def test_one_pass_and_one_image_are_enough(tmp_path, calibrate):
    model, record, passes = calibrate(tmp_path, NETWORKS["chain"])
    candidate = candidate_of(model, record)
    built = NetworkBuilder(model, passes[:1], range(1)).build(candidate)
    assert built.candidate.made.keys() == {"b", "fc"} and len(built.divergences) == 1
    text = NETWORKS["chain"].replace(f"dim: {IMAGES} dim: 3", "dim: 1 dim: 3")
    (tmp_path / "one").mkdir()
    model, record, passes = calibrate(tmp_path / "one", text, passes=1)
    built = NetworkBuilder(model, passes).build(candidate_of(model, record))
    assert np.isfinite(built.divergences).all()
