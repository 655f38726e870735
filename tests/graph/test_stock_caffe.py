"""The Python layers that stand for AMCT's: the same numbers in our runtime, in a stand-in of Caffe, on Python 2.7."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import autonuq as nuq
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph import stock_caffe
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.record import load_record
from autonuq.quant.config import ActivationSettings
from autonuq.quant.range_search import ifmr
from autonuq.quant.stream import ValueStream
from autonuq.runtime.moments import load_moments

SOURCE = Path(stock_caffe.__file__).parent / "hosted/autonuq_layers.py"


class Blob:
    """As much of a Caffe blob as a Python layer may use."""

    def __init__(self, data):
        self.data = np.array(data, np.float32)

    @property
    def shape(self):
        return self.data.shape

    def reshape(self, *dims):
        self.data = np.zeros(dims, np.float32)


@pytest.fixture
def layers(monkeypatch):
    """Import the file with nothing but a stand-in of Caffe's `Layer`."""
    caffe = ModuleType("caffe")
    caffe.Layer = type("Layer", (), {"param_str": ""})
    monkeypatch.setitem(sys.modules, "caffe", caffe)
    spec = importlib.util.spec_from_file_location("stand_alone", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, layer, *bottoms, passes=1):
    """Execute a Python layer of a network as Caffe does: set up once, then reshape and forward."""
    made = getattr(module, layer.message.python_param.layer)()
    made.param_str = layer.message.python_param.param_str
    below, above = [Blob(bottom) for bottom in bottoms], [Blob(0) for _ in layer.tops]
    made.setup(below, above)
    for _ in range(passes):
        made.reshape(below, above)
        made.forward(below, above)
    return [top.data for top in above]


def model_of(tiny, **changes):
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    config = default_config(graph, batch_num=2)
    settings = {
        name: replace(layer, activation=replace(layer.activation, **changes)) for name, layer in config.layers.items()
    }
    return quantize(graph, replace(config, layers=settings))


def calibration(model, folder, images, *, python_layers):
    """Calibrate in our runtime and return the record's file."""
    folder.mkdir()
    pair, record = ModelPair(folder / "m.prototxt", folder / "m.caffemodel"), folder / "record.txt"
    write_calibration_model(model, pair, record, model.weights, python_layers=python_layers)
    net = nuq.Net(pair.model, pair.weights)
    for batch in images:
        net.forward(data=batch)
    return record


IMAGES = np.random.default_rng(4).standard_normal((3, 4, 2, 8, 8), np.float32)


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_calibration_leaves_the_record_and_the_moments_of_the_engine(tiny, algorithm, asymmetric):
    model = model_of(tiny, algorithm=algorithm, asymmetric=asymmetric, max_percentile=0.99, num_of_bins=1024)
    ours = calibration(model, tiny / "ours", IMAGES, python_layers=False)
    python = calibration(model, tiny / "python", IMAGES, python_layers=True)
    assert load_record(python) == load_record(ours)
    assert calibrated(model, python).factors["fc"].scale_d
    one, other = (load_moments(record, model.graph.by_name["conv"])[0] for record in (python, ours))
    assert one.samples == other.samples
    np.testing.assert_allclose(one.sums, other.sums, rtol=1e-5, atol=1e-5 * np.abs(other.sums).max())
    np.testing.assert_allclose(one.totals, other.totals, rtol=1e-5, atol=1e-5 * np.abs(other.totals).max())
    one, other = (load_moments(record, model.graph.by_name["fc"])[0] for record in (python, ours))
    np.testing.assert_allclose(one.rows, other.rows, rtol=1e-5, atol=1e-5)


def quantized(tiny, *, shift=()):
    model = calibrated(model := model_of(tiny), calibration(model, tiny / "calibration", IMAGES, python_layers=False))
    factors = {
        name: replace(found, shift_bit=shift * len(found.scale_w) if name in model.weights else ())
        for name, found in model.factors.items()
    }
    return replace(model, factors=factors)


@pytest.mark.parametrize("shift", [(), (3,)], ids=["plain", "shift"])
def test_every_blob_is_the_engines(tiny, layers, shift):
    model = quantized(tiny, shift=shift)
    amct, python = (ModelPair(tiny / f"{name}.prototxt", tiny / f"{name}.caffemodel") for name in ("amct", "python"))
    write_fake_quant(Candidate(model), amct)
    write_fake_quant(Candidate(model), python, python_layers=True)
    assert (tiny / "autonuq_layers.py").read_text() == SOURCE.read_text()
    theirs, ours = nuq.Net(amct.model, amct.weights), nuq.Net(python.model, python.weights)
    for net in (theirs, ours):
        net.forward(data=IMAGES[0])
    for name in ours.blobs:
        one, other = ours.blobs[name].data, theirs.blobs[name].data
        if name in ("fc", "prob") and not shift:  # theirs is a sum of integers, ours one of floats
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(one).max(), err_msg=name)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)
    found = {layer.name: layer for layer in load_graph(python.model).layers if layer.type == "Python"}
    assert set(found) == {"conv_0_quant_layer", "pool_0_quant_layer", "fc_0_quant_layer"} | (
        {"conv_dequant_layer", "fc_dequant_layer"} if shift else set()
    )
    if not shift:  # in place, a blob holds what stands behind the last layer
        for name in ("conv_0_quant_layer", "fc_0_quant_layer"):
            bottom = ours.blobs[found[name].bottoms[0]].data
            np.testing.assert_array_equal(run(layers, found[name], bottom)[0], theirs.blobs[name].data)


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_calibration_layers_run_with_nothing_of_ours(tiny, layers, algorithm):
    model = model_of(tiny, algorithm=algorithm, num_of_bins=1024)
    ours = calibration(model, tiny / "ours", [IMAGES[0]] * 2, python_layers=False)
    other = calibration(model, tiny / "other", [], python_layers=True)  # no pass: only the files
    observer = load_graph(tiny / "other/m.prototxt").by_name[f"conv_0_{algorithm}_layer"]
    run(layers, observer, IMAGES[0], passes=1)
    assert load_record(other)["conv"].scale_d is None
    run(layers, observer, IMAGES[0], passes=2)
    assert load_record(other)["conv"] == load_record(ours)["conv"]


SAMPLES = {
    "gauss": lambda rng: rng.standard_normal(30_000),
    "clipped": lambda rng: np.clip(4 * rng.standard_normal(30_000), 0, 6),
    "heavy": lambda rng: rng.standard_t(2, 30_000),
    "negative": lambda rng: -rng.exponential(1, 30_000),
    "constant": lambda rng: np.full(30_000, -0.7),
    "growing": lambda rng: rng.standard_normal(30_000) * np.geomspace(1e-4, 1e4, 30_000),
}


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "symmetric"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_python_layers_let_values_go_and_find_the_range_of_all(layers, monkeypatch, sample, with_offset):
    values = SAMPLES[sample](np.random.default_rng(0)).astype(np.float32)
    everything = ValueStream()
    everything.update(values)
    settings = ActivationSettings(max_percentile=0.999, min_percentile=0.999)
    expected = ifmr(everything, settings=settings, with_offset=with_offset)
    monkeypatch.setattr(layers, "TAIL", 100)
    layer = layers.IFMR()
    layer.settings = asdict(settings) | {"with_offset": with_offset}
    for batch in np.array_split(values, 7):
        layer.take(batch)
    assert layer.kept.size == 2 * layers.TAIL
    assert layer.counts.size <= layers.BINS + 1
    scale, offset = layer.find_range()
    assert (float(scale), int(offset)) == (expected.scale, expected.offset)


@pytest.mark.parametrize("shift", [1, 4])
def test_a_shift_rounds_twice_and_stays_int16(layers, shift):
    layer = stock_caffe._python(load_graph_layer("DeQuant"), {"scale": [0.5, 0.25], "shift": [shift] * 2})
    codes = np.array([[[3], [-3]], [[2.0**20], [-(2.0**20)]]], np.float32)
    power = 2.0**shift
    rounded = np.sign(codes) * np.clip(np.floor(np.abs(codes) / power + 0.5), 0, None)
    expected = np.clip(rounded, -(2**15), 2**15 - 1) * power
    scale = np.array([0.5, 0.25], np.float32).reshape(2, 1)
    np.testing.assert_array_equal(run(layers, layer, codes * scale)[0], expected * scale)


def test_halves_are_rounded_away_from_zero(layers):
    halves = np.array([[-1.5, -0.5, 0.5, 1.5, 126.5, 300, np.float32(0.49999997)]], np.float32)
    layer = stock_caffe._python(load_graph_layer("Quant"), {"factor": 1.0, "offset": 0})
    assert run(layers, layer, halves)[0].tolist() == [[-2, -1, 1, 2, 127, 127, 0]]


def load_graph_layer(kind):
    from autonuq.graph import caffe_pb2
    from autonuq.graph.model import Layer

    return Layer(caffe_pb2.LayerParameter(name="layer", type=kind, bottom=["x"], top=["y"]))


def test_a_study_whose_evaluator_runs_stock_caffe(tiny, monkeypatch):
    """It has the same record; its layers are rounded alone, for stock Caffe hands over no inputs."""
    monkeypatch.syspath_prepend(str(tiny))
    from evaluate import Agreement

    class Stock(Agreement):
        def eval_model(self, model_file, weights_file, batch_num):
            assert not {layer.type for layer in load_graph(model_file).layers} & {"Quant", "DeQuant", "IFMR", "HFMG"}
            assert importlib.util.find_spec("autonuq_layers") or "trial" not in str(model_file)
            return super().eval_model(model_file, weights_file, batch_num)

    found = []
    for name, evaluator, python_layers in (("amct", Agreement, False), ("stock", Stock, True)):
        study = nuq.tune(
            tiny / "tiny.prototxt", tiny / "tiny.caffemodel", evaluator(), out=tiny / name, n_trials=3,
            python_layers=python_layers,
        )  # fmt: skip
        record = load_record(tiny / name / "calibration/record.txt")
        first, *others = study.record().trials
        found.append(record)
        assert study.record().rounding.in_order != python_layers
        assert all(trial.state == "complete" and trial.ratio > first.ratio for trial in others)
    assert found[0] == found[1]


def test_a_record_of_others_keeps_its_entries(tmp_path, layers):
    path = tmp_path / "record.txt"
    path.write_text('record {\n  key: "a"\n  value {\n    scale_d: 9\n    scale_w: 0.5\n    offset_w: 0\n  }\n}\n')
    for key in ('"a"', '"gr\\303\\266\\303\\237e\\"1"'):
        layers.write_factors(str(path), key, [("scale_d", f"{np.float32(0.1):.9g}"), ("offset_d", -128)])
    records = load_record(path)
    assert list(records) == ["a", 'größe"1']
    assert records["a"].scale_w == (0.5,)
    assert records["a"].scale_d == records['größe"1'].scale_d == np.float32(0.1)


def test_bad_values_are_refused_with_the_layers_name(tiny, layers):
    model = model_of(tiny)
    with pytest.raises(nuq.RuntimeFailure, match='conv_0_ifmr_layer.*the input of layer "conv" is not finite'):
        calibration(model, tiny / "nan", IMAGES * np.nan, python_layers=True)


def test_the_file_is_python_2_and_needs_numpy_and_caffe_only():
    tree = ast.parse(SOURCE.read_text())
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert sorted(imports) == ["caffe", "io", "json", "numpy", "os"]
    assert [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)] == ["__future__"]
    newer = (
        ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.Nonlocal, ast.AsyncFunctionDef, ast.Starred, ast.MatMult,
        ast.YieldFrom,
    )  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Starred):  # of a call, at the end: Python 2 has it
            continue
        assert not isinstance(node, newer), ast.unparse(node)
        if isinstance(node, ast.FunctionDef):
            assert not (node.args.kwonlyargs or node.args.posonlyargs or node.returns)
            assert not any(argument.annotation for argument in node.args.args)
        if isinstance(node, ast.Raise):
            assert node.cause is None


@pytest.mark.skipif(not shutil.which("python2.7"), reason="there is no Python 2.7")
def test_python_2_compiles_it():
    code = "import io, sys; compile(io.open(sys.argv[1], encoding='utf-8').read().encode('utf-8'), 'layers', 'exec')"
    found = subprocess.run(["python2.7", "-c", code, str(SOURCE)], capture_output=True, text=True)
    if "command not found" in found.stderr:
        pytest.skip("python2.7 is a name without a program")
    assert found.returncode == 0, found.stderr


def test_real_pycaffe_gives_our_numbers(tiny, monkeypatch):
    caffe = pytest.importorskip("caffe")
    model = quantized(tiny)
    pair = ModelPair(tiny / "p.prototxt", tiny / "p.caffemodel")
    write_fake_quant(Candidate(model), pair, python_layers=True)
    monkeypatch.syspath_prepend(str(tiny))
    net = caffe.Net(str(pair.model), str(pair.weights), caffe.TEST)
    net.blobs["data"].data[...] = IMAGES[0]
    ours = nuq.Net(pair.model, pair.weights).forward(data=IMAGES[0])["prob"]
    np.testing.assert_allclose(net.forward()["prob"], ours, rtol=1e-4)
