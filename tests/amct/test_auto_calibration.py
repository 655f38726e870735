"""accuracy_based_auto_calibration on the tiny network: its files, its search, its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

import autonuq.amct as amct
from autonuq.amct.auto_calibration import AutoCalibrationEvaluatorBase
from autonuq.errors import EvaluatorError, QuantizationError, StudyError
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph, write_caffemodel
from autonuq.graph.record import load_record
from autonuq.runtime.net import Net

IMAGES = np.random.default_rng(5).standard_normal((4, 4, 2, 8, 8), np.float32)
FILES = "tiny.prototxt", "tiny.caffemodel"


class Evaluator(AutoCalibrationEvaluatorBase):
    """Mean probability error to the original; `blocked` layers must not be quantized."""

    def __init__(self, blocked=()):
        super().__init__(self)
        self.blocked, self.calls = set(blocked), []

    def calibration(self, model_file, weights_file):
        self.calls.append("calibration")
        net = Net(model_file, weights_file, 1)
        for images in IMAGES[:2]:
            net.forward(data=images)

    def evaluate(self, model_file, weights_file):
        self.calls.append("evaluate")
        return {layer.name for layer in load_graph(model_file).layers}

    def metric_eval(self, original_metric, new_metric):
        broken = {name for name in self.blocked if f"{name}_0_quant_layer" in new_metric}
        return not broken, np.float32(len(broken))


@pytest.fixture
def calibrate(tiny):
    amct.create_quant_config("config.json", *FILES, None, 2, True)

    def run(evaluator, **options):
        amct.accuracy_based_auto_calibration(*FILES, evaluator, "config.json", "tmp/record.txt", "out/tiny", **options)
        return {name: json.loads((tiny / path).read_text()) for name, path in JSONS.items()}

    return run


JSONS = {
    "ranking": "out/accuracy_based_auto_calibration_ranking_information.json",
    "final": "out/accuracy_based_auto_calibration_final_config.json",
    "history": "amct_log/accuracy_based_auto_calibration_record.json",
}


def test_all_layers_stay_quantized_where_that_satisfies(tiny, calibrate):
    evaluator = Evaluator()
    files = calibrate(evaluator)
    assert evaluator.calls == ["evaluate", "calibration", "evaluate"]
    names = {path.name for path in (tiny / "out").iterdir()}
    assert names == {
        *(f"accuracy_based_auto_calibration_{kind}.json" for kind in ("ranking_information", "final_config")),
        *(f"tiny_{kind}" for kind in ("fake_quant_model.prototxt", "fake_quant_weights.caffemodel")),
        *(f"tiny_{kind}" for kind in ("deploy_model.prototxt", "deploy_weights.caffemodel")),
        *(f"tiny_{kind}" for kind in ("quant.json", "nuq_layer_record.txt")),
    }
    assert files["history"] == [
        {"roll_back_config": {"conv": True, "pool": True, "fc": True}, "metric_eval": [True, 0.0]}
    ]
    assert files["final"] == json.loads((tiny / "config.json").read_text())
    assert all(0.9 < cosine <= 1 for _, cosine in files["ranking"])
    assert [cosine for _, cosine in files["ranking"]] == sorted(cosine for _, cosine in files["ranking"])
    assert list(load_record("tmp/record.txt")) == ["conv", "pool", "fc"]


def test_the_most_sensitive_layers_become_float_first(tiny, calibrate):
    order = [name for name, _ in calibrate(Evaluator())["ranking"]]
    files = calibrate(Evaluator(blocked=order[:1]))
    enabled = {name: files["final"][name]["quant_enable"] for name in order}
    assert enabled == {order[0]: False, order[1]: True, order[2]: True}
    assert set(load_record("tmp/record.txt")) == set(order[1:])
    assert f'"{order[0]}_0_quant_layer"' not in (tiny / "out/tiny_deploy_model.prototxt").read_text()
    assert [probe["metric_eval"][0] for probe in files["history"]] == [False, True]
    final = load_record("tmp/record.txt")
    amct.convert_model(*FILES, "tmp/record.txt", "out/again")
    assert set(final) == {name for name, is_on in enabled.items() if is_on}


def test_nothing_is_written_where_every_layer_must_be_float(tiny, calibrate):
    evaluator = Evaluator()
    order = [name for name, _ in calibrate(evaluator)["ranking"]]
    for path in (tiny / "out").glob("tiny_*"):
        path.unlink()
    with pytest.warns(UserWarning, match="every layer had to stay float"):
        files = calibrate(Evaluator(blocked=order))
    assert not list((tiny / "out").glob("tiny_*"))
    assert not any(files["final"][name]["quant_enable"] for name in order)


CHAIN = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 6 kernel_size: 3 } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "c2" type: "Convolution" bottom: "c1" top: "c2" convolution_param { num_output: 6 kernel_size: 3 } }
layer { name: "r2" type: "ReLU" bottom: "c2" top: "c2" }
layer { name: "pool" type: "Pooling" bottom: "c2" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "c3" type: "Convolution" bottom: "pool" top: "c3" convolution_param { num_output: 8 kernel_size: 1 } }
layer { name: "r3" type: "ReLU" bottom: "c3" top: "c3" }
layer { name: "f4" type: "InnerProduct" bottom: "c3" top: "f4" inner_product_param { num_output: 12 } }
layer { name: "r4" type: "ReLU" bottom: "f4" top: "f4" }
layer { name: "f5" type: "InnerProduct" bottom: "f4" top: "f5" inner_product_param { num_output: 5 } }
"""
SHAPES = {"c1": (6, 3, 3, 3), "c2": (6, 6, 3, 3), "c3": (8, 6, 1, 1), "f4": (12, 32), "f5": (5, 12)}


def write_chain(spoilt):
    """Write a network; to int8, each spoilt layer is lost.

    Its weights of an input that is always 0 are huge: they change no output, but the scale that reaches them leaves
    nothing of the others.
    """
    rng = np.random.default_rng(9)
    blobs = {}
    for name, shape in SHAPES.items():
        weights, bias = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), rng.standard_normal(shape[0]) / 10
        dead = slice(0, 4) if name == "f4" else slice(0, 1)  # c3's first channel is four values
        weights[:, dead] = 1000 if name in spoilt else 0
        if name != "f5":
            weights[0] = bias[0] = 0
        blobs[name] = [weights.astype(np.float32), bias.astype(np.float32)]
    Path("chain.prototxt").write_text(CHAIN)
    graph = load_graph("chain.prototxt")
    layers = [layer.with_(blobs=blobs.get(layer.name, [])) for layer in graph.layers]
    write_caffemodel(graph.with_layers(layers), Path("chain.caffemodel"))


class OutputError(AutoCalibrationEvaluatorBase):
    """How far the outputs are from the original's, which is 0."""

    limit = 0.1

    def __init__(self):
        super().__init__()
        self.images = np.random.default_rng(4).standard_normal((3, 4, 3, 8, 8), np.float32)
        self.images[:, :, 0] = 0
        self.original = None

    def calibration(self, model_file, weights_file):
        net = Net(model_file, weights_file, 1)
        for images in self.images[:2]:
            net.forward(data=images)

    def evaluate(self, model_file, weights_file):
        net = Net(model_file, weights_file, 1)
        outputs = np.concatenate([net.forward(data=images)["f5"].copy() for images in self.images])
        self.original = outputs if self.original is None else self.original
        return float(np.abs(outputs - self.original).mean() / np.abs(self.original).mean())

    def metric_eval(self, original_metric, new_metric):
        return new_metric - original_metric < self.limit, new_metric - original_metric


@pytest.mark.parametrize("spoilt", [("c2", "f4"), ("c1", "c3", "f5"), ("c1", "c2", "c3", "f4")], ids=",".join)
def test_as_many_layers_become_float_as_it_takes(tmp_path, spoilt):
    write_chain(spoilt)
    files, evaluator = ("chain.prototxt", "chain.caffemodel"), OutputError()
    amct.create_quant_config("config.json", *files, None, 2, True)
    amct.accuracy_based_auto_calibration(*files, evaluator, "config.json", "record.txt", "out/chain")
    found = {name: json.loads(Path(path).read_text()) for name, path in JSONS.items()}
    order = [name for name, _ in found["ranking"]]
    assert set(order[: len(spoilt)]) == set(spoilt)
    chosen = {name: found["final"][name]["quant_enable"] for name in order}
    assert chosen == {name: name not in spoilt for name in order}
    history = [(probe["roll_back_config"], probe["metric_eval"]) for probe in found["history"]]
    tried = {tuple(quantized[name] for name in order): verdict for quantized, verdict in history}
    assert len(tried) == len(history) <= 4  # no network twice: all of six layers, and the bisection
    satisfied, loss = tried[tuple(chosen.values())]
    assert satisfied
    assert not tried[True, *[True] * (len(order) - 1)][0]
    saved = evaluator.evaluate("out/chain_fake_quant_model.prototxt", "out/chain_fake_quant_weights.caffemodel")
    assert saved == loss < evaluator.limit
    assert set(load_record("record.txt")) == set(order) - set(spoilt)
    for kind in ("fake_quant", "deploy"):
        text = Path(f"out/chain_{kind}_model.prototxt").read_text()
        assert {name for name in order if f'"{name}_dequant_layer"' in text} == set(order) - set(spoilt)
    stored = load_caffemodel(Path("out/chain_deploy_weights.caffemodel"))
    assert {name for name in SHAPES if stored[name][0].values.dtype == np.float32} == set(spoilt)


def test_a_bias_that_cannot_be_deployed_ends_the_search_at_once(tmp_path):
    write_chain(("c2",))
    graph = load_graph("chain.prototxt", "chain.caffemodel")
    weights, bias = graph.by_name["f5"].blobs
    layers = [layer.with_(blobs=(weights, bias + 1e9)) if layer.name == "f5" else layer for layer in graph.layers]
    write_caffemodel(graph.with_layers(layers), Path("chain.caffemodel"))

    class Counts(OutputError):
        verdicts = 0

        def metric_eval(self, original_metric, new_metric):
            self.verdicts += 1
            return super().metric_eval(original_metric, new_metric)

    evaluator = Counts()
    amct.create_quant_config("config.json", "chain.prototxt", "chain.caffemodel", None, 2, True)
    with pytest.raises(QuantizationError, match="layer 'f5': the bias does not fit int32 .*; skip this layer"):
        amct.accuracy_based_auto_calibration(
            "chain.prototxt", "chain.caffemodel", evaluator, "config.json", "record.txt", "out/chain"
        )
    assert evaluator.verdicts == 2  # on the original, and on all layers quantized: beside such a bias c2 counts nothing
    assert not list(Path("out").iterdir())


def test_own_sensitivity_decides_the_order(calibrate):
    class Loudest:
        def compare(self, data, other):
            return -float(np.abs(data).max())

    ranking = calibrate(Evaluator(), sensitivity=Loudest())["ranking"]
    assert ranking == sorted(ranking, key=lambda item: item[1])
    assert all(value <= 0 for _, value in ranking)


def test_a_strategy_that_stops_too_early_writes_nothing(tiny, calibrate):
    class GivesUp:
        def initialize(self, ranking_info):
            self.kept = dict.fromkeys(ranking_info, True)

        def update_quant_config(self, metric_eval):
            return {"stop_flag": True, "roll_back_config": self.kept}

    with pytest.raises(StudyError, match="the strategy stopped at a network that does not satisfy"):
        calibrate(Evaluator(blocked=["conv"]), strategy=GivesUp())
    assert not list(tiny.glob("out/t*"))


class Raises(Evaluator):
    def calibration(self, model_file, weights_file):
        raise KeyError("images")


class NoPair(Evaluator):
    def metric_eval(self, original_metric, new_metric):
        return True


class Elsewhere(Evaluator):
    def calibration(self, model_file, weights_file):
        """Fill the record as another Caffe would, which leaves no samples."""
        super().calibration(model_file, weights_file)
        folder = next(path for path in Path("out").glob("autonuq-*/0/*.samples"))
        for path in folder.iterdir():
            path.unlink()


class OnePass(Evaluator):
    def calibration(self, model_file, weights_file):
        Net(model_file, weights_file, 1).forward(data=IMAGES[0])


@pytest.mark.parametrize(
    ("evaluator", "options", "error", "message"),
    [
        (Raises(), {}, EvaluatorError, "calibration raised KeyError: 'images'"),
        (NoPair(), {}, EvaluatorError, r"metric_eval must return \(bool, loss as a number\). Got True instead"),
        (object(), {}, EvaluatorError, "object has no method 'calibration'"),
        (Elsewhere(), {}, QuantizationError, "layer 'conv': there is no sample of its inputs"),
        (OnePass(), {}, QuantizationError, "layer 'conv': has no activation factors .* needs 2 forward passes"),
        (Evaluator(), {"strategy": "Greedy"}, ValueError, "'strategy' parameter .* must be 'BinarySearch' or"),
        (Evaluator(), {"sensitivity": 1}, ValueError, "'sensitivity' parameter .* must be 'CosineSimilarity' or"),
    ],
    ids=["raises", "no-pair", "no-methods", "no-samples", "one-pass", "strategy", "sensitivity"],
)
def test_refusals(tiny, calibrate, evaluator, options, error, message):
    with pytest.raises(error, match=message):
        calibrate(evaluator, **options)
    assert not list(tiny.glob("out/t*"))  # neither outputs nor the scratch folder


def test_an_original_that_does_not_satisfy_is_refused(calibrate):
    class Never(Evaluator):
        def metric_eval(self, original_metric, new_metric):
            return False, 1.0

    with pytest.raises(EvaluatorError, match="is not satisfied by the original network itself"):
        calibrate(Never())
