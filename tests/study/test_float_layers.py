"""Layers that int8 is not good enough for stay float, and nothing else does."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import jsonschema
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import autonuq as nuq
from autonuq.cli.documents import SCHEMAS
from autonuq.compress.outputs import unpack
from autonuq.compress.packed_file import load_packed
from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import ModelPair, load_caffemodel, load_graph, write_caffemodel
from autonuq.records import CONFIDENCE, FLOAT_LAYERS, INT8, LAYERS, METRIC_CHANGE, ORIGINAL_METRIC, OUTPUT_ERROR
from autonuq.study.locate import load_study, task_as_stored
from autonuq.study.rehearsal import Rehearsal
from autonuq.study.run import StudyRun, resume
from autonuq.study.study_file import load_task
from autonuq.study.task import Task
from autonuq.study.workers import work

# One row of `wide` is huge, and its output always negative: the ReLU behind it hides it from everything but the scale,
# under which all the other rows become 0.
NETWORK = """
name: "fragile"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 16 dim: 2 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "wide" type: "InnerProduct" bottom: "pool" top: "wide" inner_product_param { num_output: 24 } }
layer { name: "relu2" type: "ReLU" bottom: "wide" top: "wide" }
layer { name: "fc" type: "InnerProduct" bottom: "wide" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
EVALUATOR = '''
import os, time
from pathlib import Path

import numpy as np

import autonuq as nuq

HERE = Path(__file__).parent


class Top1(nuq.Evaluator):
    """Knows the right answers from a file, and logs its calls."""

    limit = 0.1

    def __init__(self, evaluate_batch_num):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        data = np.load(HERE / "images.npz")
        self.images, self.labels = data["images"], data["labels"]

    def eval_model(self, model_file, weights_file, batch_num):
        content = Path(model_file).read_bytes() + Path(weights_file).read_bytes()
        with (HERE / "calls.log").open("a") as log:
            log.write(f"{Path(model_file).name} {hash(content)}\\n")
        time.sleep(float(os.environ.get("PAUSE_S", 0)))
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        return self.metric(net.forward_all(data=self.images)["prob"])

    def metric(self, found):
        right = found.argmax(1) == self.labels
        return nuq.Score(right.mean(), samples=right)

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < self.limit


class Exact(Top1):
    """Accepts nothing but the very same outputs."""

    def metric(self, found):
        if not hasattr(self, "original"):
            self.original = found
        return -float(np.abs(found - self.original).sum())

    def is_satisfied(self, original_metric, new_metric):
        return new_metric == original_metric
'''
STUDY = """
name = "fragile"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
[evaluator]
class = "evaluate.py:Top1"
evaluate_batch_num = 1
[search]
trials = 6
"""


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    """Write a network with a layer that int8 breaks, its evaluator and its study; return the study file."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # the log's hashes are of several processes
    (tmp_path / "net.prototxt").write_text(NETWORK)
    graph, rng = load_graph(tmp_path / "net.prototxt"), np.random.default_rng(0)
    wide = rng.normal(size=(24, 72))
    wide[5] = -1e4 * np.abs(wide[5])
    blobs = {
        "conv": [rng.normal(size=(8, 2, 3, 3)), np.zeros(8)],
        "wide": [wide, np.zeros(24)],
        "fc": [rng.normal(size=(10, 24)), np.zeros(10)],
    }
    layers = [layer.with_(blobs=[b.astype(np.float32) for b in blobs.get(layer.name, [])]) for layer in graph.layers]
    write_caffemodel(graph.with_layers(layers), tmp_path / "net.caffemodel")
    images = rng.normal(size=(128, 2, 8, 8)).astype(np.float32)
    net = nuq.Net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    np.savez(tmp_path / "images.npz", images=images, labels=net.forward_all(data=images)["prob"].argmax(1))
    (tmp_path / "evaluate.py").write_text(EVALUATOR)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def with_floats(study, value):
    study.write_text(study.read_text() + f"float_layers = {json.dumps(value)}\n")
    return study


def exact(study):
    study.write_text(study.read_text().replace(":Top1", ":Exact"))
    return study


def scored(study):
    """Return the networks that the evaluator ran: the file's name and a hash of model and weights."""
    return [tuple(line.split()) for line in (study.parent / "calls.log").read_text().splitlines()]


def task_of(study, **changes):
    return replace(load_task(study), **changes)


def told_by(study, **options):
    told = []
    found = StudyRun(load_task(study), told.append).run(exists=False, **options)
    return found, told


def test_the_layer_that_int8_breaks_stays_float(fragile):
    study, told = told_by(fragile)
    found = study.record().float_layers
    assert found.layers == ("wide",) and not found.hopeless
    assert found.measure == OUTPUT_ERROR
    assert [cost.layer for cost in found.costs][0] == "wide"
    assert found.costs[0].cost > 10 * found.costs[1].cost
    assert found.say().startswith("1 layer stays float: wide, because with every layer at int8 the limit is not kept (")
    assert [step for step in told if step.stage == "float"][-1].message == found.say()
    assert len(study.record().trials) == 6
    assert study.best.levels.keys() == {"conv", "fc"}
    assert not any("wide" in name for trial in study.optuna.trials for name in trial.params)


def test_what_stays_float_counts_four_bytes_a_weight(fragile):
    study, _ = told_by(fragile)
    record = study.record()
    (layer,) = [layer for layer in record.layers if layer.name == "wide"]
    assert (layer.treatment, layer.rates_bytes) == ("float", (4 * 24 * 72,))
    assert layer.reason.startswith("stays float: with every layer at int8")
    sizes = {row.layer.name: row.size_bytes for row in record.layer_rows(record.best)}
    assert sizes["wide"] == 4 * 24 * 72
    assert study.best.size_bytes == sum(sizes.values())
    assert study.best.ratio == 4 * (8 * 2 * 9 + 24 * 72 + 10 * 24) / study.best.size_bytes


def test_the_first_trial_is_the_network_that_was_found(fragile):
    study, _ = told_by(fragile)
    first = study.record().trials[0]
    assert (first.number, first.state, first.origin, first.satisfied) == (0, "complete", INT8, True)
    assert first.points == {"conv": 0, "fc": 0}
    assert first.metric is not None and first.duration_s is not None and first.started
    assert study.optuna.trials[0].state == TrialState.COMPLETE
    assert [trial.origin for trial in study.record().trials[1:]].count(INT8) == 0
    log = (fragile.parent / "out/fragile/fragile.log").read_text()
    assert "trial 0 ratio" in log and "[int8;" in log


def test_no_network_is_scored_twice_and_none_too_many(fragile):
    study, _ = told_by(fragile)
    networks = [one for one in scored(fragile) if one[0] == "model.prototxt"]
    plans = {tuple(trial.points.items()) for trial in study.record().trials}
    assert len(networks) == len(set(networks))
    # all at int8, two of the bisection of three layers at most; what was found is the first trial's
    assert len(plans) + 1 <= len(networks) <= len(plans) + 3


def test_int8_that_is_good_enough_is_the_first_trial_and_nothing_stays_float(task):
    task = replace(task, n_trials=4)
    record = StudyRun(task).run(exists=False).record()
    assert record.float_layers.layers == () and record.float_layers.say() == ""
    assert [trial.origin for trial in record.trials] == [INT8, *["sampler"] * 3]
    assert len(task.evaluator.calls) == 2 + len({tuple(trial.points.items()) for trial in record.trials})


def test_int8_alone_is_chosen_only_where_nothing_else_satisfies(task):
    record = StudyRun(replace(task, n_trials=6)).run(exists=False).record()
    assert record.trials[0].satisfied and record.best.number != 0
    others = [replace(trial, satisfied=False) for trial in record.trials[1:]]
    assert replace(record, trials=(record.trials[0], *others)).best.number == 0


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_other_samplers_search_what_is_left(fragile, sampler):
    fragile.write_text(fragile.read_text() + f'sampler = "{sampler}"\n')
    study, _ = told_by(fragile)
    assert study.record().float_layers.layers == ("wide",)
    assert study.record().trials[0].origin == INT8
    assert study.record().counts.complete == 6 and study.best.levels.keys() == {"conv", "fc"}


def test_everything_that_is_exported_holds_the_layer_float(fragile):
    study = nuq.tune_file(fragile)
    folder = fragile.parent / "out/fragile"
    run = StudyRun(load_task(fragile))
    run.export(study, formats=("caffe", "pycaffe", "weights", "packed", "onnx", "onnx-codebook"))
    weights = dict(load_caffemodel(fragile.parent / "net.caffemodel"))["wide"][0].values
    for name in ("fake_quant", "deploy", "pycaffe", "weights_only"):
        stored = dict(load_caffemodel(folder / f"fragile_{name}_weights.caffemodel"))["wide"][0].values
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored.reshape(weights.shape), weights)
        graph = load_graph(folder / f"fragile_{name}_model.prototxt")
        assert not any("wide" in layer.name and "quant" in layer.name for layer in graph.layers)
    assert 'key: "wide"' not in (folder / "fragile_record.txt").read_text()
    assert json.loads((folder / "fragile_quant.json").read_text())["layers"].keys() == {"conv", "fc"}
    unpacked = unpack(load_packed(folder / "fragile.nuq"), f"{folder}/again")
    assert unpacked.weights.read_bytes() == (folder / "fragile_fake_quant_weights.caffemodel").read_bytes()
    evaluator = load_evaluator("evaluate.py:Top1", fragile.parent, 1)
    assert evaluator.eval_model(str(unpacked.model), str(unpacked.weights), 1) == study.best.metric
    assert (folder / "fragile.onnx").stat().st_size > weights.nbytes


def test_a_script_gets_the_same(fragile):
    folder = fragile.parent
    evaluator = load_evaluator("evaluate.py:Top1", folder, 1)
    tune = partial(nuq.tune, folder / "net.prototxt", folder / "net.caffemodel", evaluator, name="fragile", n_trials=6)
    study = tune(out=folder / "mine")
    assert study.record().float_layers.layers == ("wide",)
    told = [trial.points for trial in nuq.tune_file(fragile).record().trials]
    assert [trial.points for trial in study.record().trials] == told
    assert tune(out=folder / "named", float_layers=("wide",)).record().float_layers.layers == ("wide",)
    assert tune(out=folder / "never", float_layers="never").best is None
    again = resume(folder / "named", evaluator=evaluator, trials=7)
    assert len(again.record().trials) == 7 and again.best.levels.keys() == {"conv", "fc"}


def test_never_leaves_nothing_float(fragile, run_in):
    ended = run_in(fragile.parent, "tune", with_floats(fragile, "never"))
    assert ended.returncode == 8
    assert "alone at int8" not in ended.stdout
    record = load_study(fragile).record()
    assert record.float_layers.say() == "" and len(record.trials) == 6


def test_named_layers_stay_float_without_a_measurement(fragile, run_in):
    ended = run_in(fragile.parent, "tune", with_floats(fragile, ["fc", "wide"]))
    assert ended.returncode == 0, ended.stderr
    assert "2 layers stay float: fc, wide, because float_layers names them" in ended.stdout
    study = load_study(fragile)
    assert study.best.levels.keys() == {"conv"}
    record = study.record()
    assert {layer.name: layer.reason for layer in record.layers if layer.treatment == "float"} == dict.fromkeys(
        ("fc", "wide"), "stays float: float_layers names them"
    )
    assert record.trials[0].origin == "sampler"
    plans = {tuple(trial.points.items()) for trial in record.trials}
    assert len(scored(fragile)) == 2 + len(plans)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["wied"], "'float_layers' names 'wied', but the network has no such layer. Did you mean 'wide'?"),
        (["relu"], "'float_layers' names 'relu', which is not quantized anyway"),
        ("wide", "'search.float_layers' must be one of auto, never or a list of layer names. Got 'wide' instead."),
        ("Auto", "Did you mean 'auto'?"),
        ([1], "'search.float_layers' must hold names of layers"),
        (True, "'search.float_layers' must be text or a list"),
    ],
)
@pytest.mark.parametrize("command", ["check", "tune"])
def test_what_means_nothing_is_refused(fragile, run_in, command, value, words):
    ended = run_in(fragile.parent, command, with_floats(fragile, value))
    assert ended.returncode == 6
    assert words in " ".join((ended.stdout + ended.stderr).split())
    assert not (fragile.parent / "out").exists()


def test_check_accepts_names(fragile):
    checks = {check.name: check for check in Rehearsal(load_task(with_floats(fragile, ["wide"]))).run()}
    assert {check.state for check in checks.values()} == {"passed"}
    assert checks["quantization"].detail.startswith("2 layers to int8")
    assert checks["int8 batch"].detail.endswith(": satisfied")


def test_check_says_what_the_study_will_do(fragile):
    checks = {check.name: check for check in Rehearsal(load_task(fragile)).run()}
    assert "not satisfied; where all batches say so, too, the study finds layers" in checks["int8 batch"].detail


def test_where_nothing_helps_every_layer_is_in_the_table(fragile, run_in):
    ended = run_in(fragile.parent, "tune", exact(fragile))
    assert ended.returncode == 8
    table = [line.split() for line in ended.stdout.splitlines()]
    for name, size in (("conv", "576"), ("wide", "6,912"), ("fc", "960")):
        assert any({name, size} <= set(line) for line in table), name
    assert "nothing helps" in ended.stdout
    record = load_study(fragile).record()
    assert record.float_layers.hopeless and record.float_layers.layers == ()
    assert [(trial.origin, trial.satisfied) for trial in record.trials] == [(INT8, False)]
    before = len(scored(fragile))
    assert run_in(fragile.parent, "resume", fragile).returncode == 8
    assert len(scored(fragile)) == before
    status = run_in(fragile.parent, "status", fragile, "--json")
    assert json.loads(status.stdout)["float_layers"]["hopeless"] is True


def test_where_nothing_helps_workers_end_too(fragile):
    StudyRun(load_task(exact(fragile))).run(exists=False, jobs=2)
    work(load_task(fragile))
    assert len(load_study(fragile).record().trials) == 1


def test_status_and_report_say_it(fragile, run_in):
    assert run_in(fragile.parent, "tune", fragile).returncode == 0
    document = json.loads(run_in(fragile.parent, "status", fragile, "--json").stdout)
    jsonschema.validate(document, SCHEMAS["status"])
    assert document["float_layers"]["layers"] == ["wide"]
    assert "1 layer stays float: wide" in " ".join(run_in(fragile.parent, "status", fragile).stdout.split())
    page = (fragile.parent / "out/fragile/report.html").read_text()
    assert "<h2>Float layers</h2>" in page and "1 layer stays float: wide" in page


def test_another_caffe_measures_by_the_metric(fragile):
    fragile.write_text(fragile.read_text() + "[quantization]\npython_layers = true\n")
    study, told = told_by(fragile)
    found = study.record().float_layers
    assert (found.layers, found.measure) == (("wide",), METRIC_CHANGE)
    assert any("scoring every layer alone" in step.message for step in told)
    networks = [one for one in scored(fragile) if one[0] == "model.prototxt"]
    assert len(networks) == len(set(networks))


def start(study, command, pause_s):
    return subprocess.Popen(
        [sys.executable, "-c", "from autonuq.cli import main; main()", command, str(study)],
        cwd=study.parent,
        env={**os.environ, "PAUSE_S": str(pause_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 4], ids=["int8", "bisection"])
def test_killed_while_it_measures(fragile, moment):
    process = start(fragile, "tune", 1)
    deadline = time.monotonic() + 90
    while not (fragile.parent / "calls.log").exists() or len(scored(fragile)) < moment:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    study = load_study(fragile)
    assert LAYERS not in study.optuna.user_attrs and not study.optuna.trials
    killed = scored(fragile)
    assert len(killed) == moment

    resumed = start(fragile, "resume", 0)
    _, messages = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, messages
    assert load_study(fragile).record().float_layers.layers == ("wide",)
    networks = scored(fragile)
    assert len(networks) == len(set(networks)) + 1  # the one that was killed in the middle, and nothing else
    assert networks[moment] == killed[-1]
    left = {path.name for path in (fragile.parent / "out/fragile").rglob("*") if path.is_dir()}
    assert not left & {"trial0", "scratch"}


def test_two_workers_see_the_same_float_layers(fragile):
    study, _ = told_by(fragile, jobs=2)
    assert study.record().float_layers.layers == ("wide",)
    assert all("wide" not in trial.points for trial in study.record().trials)
    workers = {trial.worker for trial in study.record().trials}
    assert len(workers) >= 2


@pytest.mark.parametrize("value", ["auto", ["wide"]], ids=["found", "named"])
def test_a_worker_elsewhere_takes_them_from_the_study(fragile, value):
    task = replace(load_task(with_floats(fragile, value)), n_trials=4)
    first = StudyRun(task).run(exists=False)
    first.optuna.set_user_attr("autonuq:target_trials", 8)
    gone = ModelPair(fragile.parent / "gone.prototxt", fragile.parent / "gone.caffemodel")
    elsewhere = replace(task, source=gone, out=fragile.parent / "elsewhere", artifacts=task.artifacts_location)
    record = work(elsewhere).record()
    assert len(record.trials) == 8
    assert all(trial.points.keys() == {"conv", "fc"} for trial in record.trials)
    one = record.trials[-1]
    assert one.size_bytes == sum(row.size_bytes for row in record.layer_rows(one))


def test_a_resumed_study_keeps_what_was_decided(fragile):
    StudyRun(load_task(fragile)).run(exists=False)
    before = len(scored(fragile))
    study = StudyRun(task_of(fragile, n_trials=7)).run(exists=True)
    assert study.record().float_layers.layers == ("wide",)
    assert len(scored(fragile)) <= before + 1
    with pytest.raises(StudyError, match="was not started with float_layers = 'never': 1 layer stays float: wide"):
        StudyRun(task_of(fragile, n_trials=8, float_layers="never")).run(exists=True)
    with pytest.raises(StudyError, match="another quantization"):
        StudyRun(task_of(fragile, n_trials=8, float_layers=["conv"])).run(exists=True)


def test_a_study_of_an_earlier_version_leaves_nothing_float(fragile):
    study = optuna.create_study()
    task = load_task(fragile)
    assert task_as_stored(task, study) == task  # nothing was measured yet
    for key, value in ((ORIGINAL_METRIC, 0.9), (CONFIDENCE, task.confidence)):
        study.set_user_attr(key, value)
    assert task_as_stored(task, study) == replace(task, float_layers="never")
    named = replace(task, float_layers=["wide"])  # the fingerprint will tell
    assert task_as_stored(named, study) == named
    study.set_user_attr(FLOAT_LAYERS, "")
    assert task_as_stored(task, study) == task


class Broken:
    """An evaluator whose calls of some numbers fail; stands for another one otherwise."""

    def __init__(self, evaluator, failing):
        self._evaluator, self._failing, self._count = evaluator, failing, 0

    def __getattr__(self, name):
        return getattr(self._evaluator, name)

    def eval_model(self, *arguments):
        self._count += 1
        if self._count in self._failing:
            raise ZeroDivisionError
        return self._evaluator.eval_model(*arguments)


def test_a_passing_trouble_leaves_nothing_float(task):
    study = StudyRun(replace(task, evaluator=Broken(task.evaluator, {3}))).run(exists=False)
    assert study.record().float_layers.say() == ""
    assert [trial.state for trial in study.record().trials] == ["complete"] * 3


def test_a_network_that_cannot_even_be_scored_at_int8(fragile):
    own = load_evaluator("evaluate.py:Top1", fragile.parent, 1)
    study = StudyRun(task_of(fragile, evaluator=Broken(own, {3, 4}))).run(exists=False)
    found = study.record().float_layers
    assert found.layers == ("wide",)
    assert "ZeroDivisionError" in found.reason


def test_an_evaluator_that_always_fails_ends_the_study(fragile):
    own = load_evaluator("evaluate.py:Top1", fragile.parent, 1)
    with pytest.raises(EvaluatorError, match="3 trials in a row failed.*ZeroDivisionError"):
        StudyRun(task_of(fragile, evaluator=Broken(own, set(range(3, 99))))).run(exists=False)


def test_the_original_must_satisfy(fragile):
    text = (fragile.parent / "evaluate.py").read_text()
    (fragile.parent / "evaluate.py").write_text(text.replace("limit = 0.1", "limit = 0.0"))
    with pytest.raises(EvaluatorError, match="not even the original network"):
        StudyRun(load_task(fragile)).run(exists=False)


def test_default_is_one(fragile):
    assert Task.float_layers == "auto" == load_task(fragile).float_layers
