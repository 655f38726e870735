"""A script in the shape of AMCT's sample runs on `autonuq.amct` and gets all its files."""

import json
import sys
import warnings

import numpy as np
import pytest

import autonuq
import autonuq.amct as amct
from autonuq.amct.auto_nuq import AutoNuqEvaluatorBase
from autonuq.errors import EvaluatorError, ModelError, QuantizationError, StudyError
from autonuq.graph.files import load_graph, write_caffemodel
from autonuq.graph.record import load_record
from autonuq.runtime.net import Net
from autonuq.storage.open import default_url
from autonuq.study.locate import load_study


class AutoNuqEvaluator(AutoNuqEvaluatorBase):
    """Agreement with the float network's decisions, written as AMCT's sample writes it."""

    def __init__(self, evaluate_batch_num, limit=0.1):
        super().__init__(self)
        self.evaluate_batch_num = evaluate_batch_num
        self.limit = limit
        self.labels = None
        self.images = np.random.default_rng(5).standard_normal((8, 4, 2, 8, 8), np.float32)

    def eval_model(self, model_file, weights_file, batch_num):
        net = Net(model_file, weights_file, 1)
        labels = [net.forward(data=images)["prob"].argmax(1) for images in self.images[:batch_num]]
        self.labels = self.labels or labels
        return np.mean([(a == b).mean() for a, b in zip(labels, self.labels, strict=False)])

    def is_satisfied(self, original_metric, new_metric):
        return bool(original_metric - new_metric < self.limit)


@pytest.fixture
def files(tiny):
    return str(tiny / "tiny.prototxt"), str(tiny / "tiny.caffemodel")


@pytest.fixture
def config(tiny, files):
    cfg = tiny / "quant.cfg"
    cfg.write_text("batch_num: 2\ncommon_config { nuq_quantize { num_steps: 32 num_of_iteration: 0 } }\n")
    path = str(tiny / "config.json")
    with pytest.warns(UserWarning, match="pool"):
        amct.create_quant_config(path, *files, [], 1, True, str(cfg))
    return path


def suffixes(folder, prefix):
    return {path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*") if path.is_file()}


def test_all_outputs(tiny, files, config):
    evaluator = AutoNuqEvaluator(8)
    record_file = tiny / "tmp" / "record.txt"
    amct.auto_nuq(*files, evaluator, config, str(record_file), str(tiny / "results" / "Tiny"), n_trials=6)
    assert suffixes(tiny / "results", "Tiny") == {
        "_fake_quant_model.prototxt",
        "_fake_quant_weights.caffemodel",
        "_deploy_model.prototxt",
        "_deploy_weights.caffemodel",
        "_nuq_layer_record.txt",
        "_quant.json",
    }
    names = (tiny / "results/Tiny_nuq_layer_record.txt").read_text().split(";")
    assert set(names) <= {"conv", "fc"}
    assert names != [""]
    record = load_record(record_file)
    assert list(record) == ["conv", "pool", "fc"]
    assert (record["conv"].channels, record["conv"].height, len(record["conv"].scale_w)) == (2, 8, 8)
    assert record["pool"].offset_d == -128  # it reads what a ReLU makes
    assert "cluster" not in record_file.read_text()
    assert set(json.loads((tiny / "results/Tiny_quant.json").read_text())["layers"]) == {"conv", "pool", "fc"}
    fake = [str(tiny / f"results/Tiny_fake_quant_{kind}") for kind in ("model.prototxt", "weights.caffemodel")]
    assert evaluator.is_satisfied(1.0, evaluator.eval_model(*fake, 8))


def test_layers_of_the_fake_quant_model_have_amcts_names(tiny, files, config):
    amct.auto_nuq(*files, AutoNuqEvaluator(8), config, str(tiny / "r.txt"), str(tiny / "T"), n_trials=2)
    text = (tiny / "T_fake_quant_model.prototxt").read_text()
    for name in ("conv_0_quant_layer", "conv_dequant_layer", "fc_0_quant_layer", "pool_dequant_layer"):
        assert f'name: "{name}"' in text
    assert '"bn"' not in text


@pytest.fixture
def call(tiny, files, config, monkeypatch, capsys):
    """Return a function that calls auto_nuq with an evaluator and returns the deploy weights and what was said."""
    monkeypatch.setenv("AMCT_LOG_LEVEL", "INFO")

    def run(evaluator, n_trials=3):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            amct.auto_nuq(*files, evaluator, config, str(tiny / "r.txt"), str(tiny / "T"), n_trials=n_trials)
        said = [str(warning.message) for warning in warned] + capsys.readouterr().err.splitlines()
        return (tiny / "T_deploy_weights.caffemodel").read_bytes(), "\n".join(said)

    return run


def counted(evaluator):
    """Let an evaluator count its calls."""
    evaluator.calls = 0
    inner = evaluator.eval_model

    def eval_model(*arguments):
        evaluator.calls += 1
        return inner(*arguments)

    evaluator.eval_model = eval_model
    return evaluator


def test_a_finished_call_searches_nothing_again_and_gives_the_same(tiny, call):
    first, said = call(AutoNuqEvaluator(8))
    assert "goes on" not in said
    (tiny / "T_deploy_weights.caffemodel").unlink()
    evaluator = counted(AutoNuqEvaluator(8))
    again, said = call(evaluator)
    assert again == first
    assert evaluator.calls == 1  # the original network: whether its score is what it was
    assert "all of 3 trials had been made" in said
    assert not list(tiny.glob("T_study_*"))
    _, said = call(AutoNuqEvaluator(8), n_trials=4)
    assert "goes on with 3 of 4 trials" in said


def change_weights(tiny):
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    fc = graph.by_name["fc"]
    changed = fc.with_(blobs=[fc.blobs[0] * np.float32(1.25), fc.blobs[1]])
    layers = [changed if layer.name == "fc" else layer for layer in graph.layers]
    write_caffemodel(graph.with_layers(layers), tiny / "tiny.caffemodel")


def change_config(tiny):
    document = json.loads((tiny / "config.json").read_text())
    document["batch_num"] = 1
    (tiny / "config.json").write_text(json.dumps(document))


class OtherEvaluator(AutoNuqEvaluator):
    """The same under another name."""


class OtherData(AutoNuqEvaluator):
    def __init__(self, evaluate_batch_num, metric=1.0):
        super().__init__(evaluate_batch_num)
        self.metric = metric

    def eval_model(self, model_file, weights_file, batch_num):
        return super().eval_model(model_file, weights_file, batch_num) * self.metric


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "change", "second", "what"),
    [
        (AutoNuqEvaluator(8), change_weights, AutoNuqEvaluator(8), "weights"),
        (AutoNuqEvaluator(8), change_config, AutoNuqEvaluator(8), "quantization"),
        (AutoNuqEvaluator(8), None, OtherEvaluator(8), "evaluator"),
        (AutoNuqEvaluator(8, limit=0.5), None, AutoNuqEvaluator(8), "the limit of is_satisfied"),
        (OtherData(8), None, OtherData(8, 0.5), "the score of the original network"),
    ],
    ids=["weights", "config", "evaluator", "limit", "data"],
)
def test_another_study_under_the_same_path_is_kept(tiny, call, run_in, first, change, second, what):
    call(first)
    before = load_study(tiny / "T_study").record()
    if change is not None:
        change(tiny)
    (tiny / "T_study_1").mkdir()  # somebody else's
    _, said = call(second)
    assert f"the study that was in {tiny}/T_study is kept in {tiny}/T_study_2" in said
    assert f"{what} changed since; its 3 trials are there" in said
    assert load_study(tiny / "T_study_2").record() == before
    assert len(load_study(tiny / "T_study").record().trials) == 3
    shown = json.loads(run_in(tiny, "status", "T_study_2", "--json").stdout)
    assert shown["trials"]["complete"] == 3
    if change is not None:
        return
    resumed = autonuq.resume(tiny / "T_study_2", evaluator=type(first)(8))
    assert resumed.record().trials == before.trials


def test_a_study_that_cannot_be_read_is_kept(tiny, call):
    (tiny / "T_study").mkdir()
    (tiny / "T_study" / "study.journal").write_text("no journal\n")
    _, said = call(AutoNuqEvaluator(8))
    assert "T_study_1, and a new one is begun: it cannot be gone on with" in said
    assert (tiny / "T_study_1" / "study.journal").read_text() == "no journal\n"


def test_a_study_in_a_database_is_kept_whole(tiny, call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys.modules["autonuq.amct.auto_nuq"], "default_url", lambda folder: f"sqlite:///{folder}/study.db"
        )
        call(AutoNuqEvaluator(8))
    call(OtherEvaluator(8), n_trials=4)
    assert [len(load_study(tiny / name).record().trials) for name in ("T_study_1", "T_study")] == [3, 4]


def test_a_study_that_a_process_works_on_is_left_to_it(tiny, call, config):
    class Calls(AutoNuqEvaluator):
        """Calls the same with another configuration in the middle of a trial."""

        def eval_model(self, model_file, weights_file, batch_num):
            if "trial" in model_file:
                change_config(tiny)
                call(AutoNuqEvaluator(8))
            return super().eval_model(model_file, weights_file, batch_num)

    with pytest.raises(EvaluatorError, match="is at work on it, but quantization, evaluator changed since; wait"):
        call(Calls(8))


def test_without_nuq_layers_every_capable_layer_is_searched(tiny, files):
    path = str(tiny / "config.json")
    amct.create_quant_config(path, *files, None, 2, False)
    with pytest.warns(UserWarning, match="names no nuq_quantize layer"):
        amct.auto_nuq(*files, AutoNuqEvaluator(8), path, str(tiny / "r.txt"), str(tiny / "T"), n_trials=4)
    assert (tiny / "T_nuq_layer_record.txt").read_text()
    assert load_record(tiny / "r.txt")["fc"].offset_d == 0


@pytest.mark.parametrize("codec", ["entropy", "ascend"])
def test_amcts_own_choices_are_all_that_it_is_offered(tiny, files, config, codec):
    prefix = str(tiny / "T")
    amct.auto_nuq(
        *files, AutoNuqEvaluator(8), config, str(tiny / "r.txt"), prefix, n_trials=4, codec=codec, amct_levels=True
    )
    study = load_study("T", default_url(tiny / "T_study")).record()
    assert study.codec == codec
    assert {size for layer in study.layers for size in layer.curve_levels} <= {256, 32, 16}
    levels = study.layer_levels(study.best)
    for name in (tiny / "T_nuq_layer_record.txt").read_text().split(";"):
        assert levels[name] in (32, 16)


def test_skipped_layers_stay_float(tiny, files):
    path = str(tiny / "config.json")
    amct.create_quant_config(path, *files, ["conv"], 1, True)
    with pytest.warns(UserWarning):
        amct.auto_nuq(*files, AutoNuqEvaluator(8), path, str(tiny / "r.txt"), str(tiny / "T"), n_trials=3)
    assert "conv_0_quant_layer" not in (tiny / "T_fake_quant_model.prototxt").read_text()


def test_unreachable_target_writes_nothing(tiny, files, config):
    class Strict(AutoNuqEvaluator):
        def is_satisfied(self, original_metric, new_metric):
            return new_metric == original_metric and len(self.calls()) == 1

        def calls(self):
            self.count = getattr(self, "count", 0) + 1
            return range(self.count)

    with pytest.raises(StudyError, match="no plan satisfied"):
        amct.auto_nuq(*files, Strict(8), config, str(tiny / "r.txt"), str(tiny / "T"), n_trials=2)
    assert suffixes(tiny, "T") == set()


def test_unknown_layers_are_refused_by_name(tiny, files, config):
    with pytest.raises(QuantizationError, match="cnov"):
        amct.create_quant_config(str(tiny / "c.json"), *files, ["cnov"], 1, True)
    document = json.loads((tiny / "config.json").read_text())
    document["cnov"] = document.pop("conv")
    (tiny / "config.json").write_text(json.dumps(document))
    with pytest.raises(QuantizationError, match="cnov"):
        amct.auto_nuq(*files, AutoNuqEvaluator(8), config, str(tiny / "r.txt"), str(tiny / "T"))


def test_missing_model(tiny, files):
    with pytest.raises(ModelError, match="cannot be read"):
        amct.create_quant_config(str(tiny / "c.json"), files[0], str(tiny / "none.caffemodel"))
