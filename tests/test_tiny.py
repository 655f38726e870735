"""The whole pipeline on a network of three layers: tune, export, and what the exported files say."""

import json

import numpy as np
import pytest

import autonuq as nuq
from autonuq.compress.outputs import unpack
from autonuq.compress.packed_file import load_packed
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import load_caffemodel, load_graph


@pytest.fixture
def tuned(tiny):
    evaluator = load_evaluator("evaluate.py:Agreement", tiny, 8)
    study = nuq.tune(
        tiny / "tiny.prototxt", tiny / "tiny.caffemodel", evaluator, out=tiny / "out", name="tiny", n_trials=8
    )
    return tiny, evaluator, study


def test_study_finds_a_satisfied_plan(tuned):
    _, evaluator, study = tuned
    assert study.best.ratio > 4
    assert evaluator.is_satisfied(1.0, study.best.metric)
    assert set(study.best.levels) == {"conv", "fc"}
    assert study.optuna.best_trial.value >= study.best.ratio  # Optuna takes every measurement at its word
    assert all("satisfied" in trial.constraints for trial in study.optuna.trials)


def test_evaluator_ran_baseline_calibration_and_one_pass_a_plan(tuned):
    _, evaluator, study = tuned
    record = study.record()
    plans = {tuple(trial.points.items()) for trial in record.trials}
    assert evaluator.calls[0] == ("tiny.prototxt", 8)
    assert evaluator.calls[1] == ("modified_model.prototxt", 1)
    assert evaluator.calls[2:] == [("model.prototxt", 8)] * len(plans)


def test_exported_fake_quant_pair_scores_what_the_study_recorded(tuned):
    folder, evaluator, study = tuned
    prefix = f"{folder}/out/tiny"
    metric = evaluator.eval_model(f"{prefix}_fake_quant_model.prototxt", f"{prefix}_fake_quant_weights.caffemodel", 8)
    assert metric == study.best.metric


def test_exported_weights_use_the_levels_that_the_study_names(tuned):
    folder, _, study = tuned
    deploy = dict(load_caffemodel(folder / "out" / "tiny_deploy_weights.caffemodel"))
    for name, levels in study.best.levels.items():
        weights, bias = deploy[name]
        assert weights.values.dtype == np.int8
        assert bias.values.dtype == np.int32
        assert len(np.unique(weights.values)) <= levels
    factors = deploy["conv_dequant_layer"][0].values
    assert factors.dtype == np.uint64
    fake = load_graph(folder / "out/tiny_fake_quant_model.prototxt", folder / "out/tiny_fake_quant_weights.caffemodel")
    scale = fake.by_name["conv_dequant_layer"].blobs[0]
    assert (factors.astype(np.uint32).view(np.float32) == scale).all()


def test_other_files(tuned):
    folder, _, study = tuned
    info = json.loads((folder / "out/tiny_quant.json").read_text())
    assert info["layers"]["conv"]["folded"] == ["bn", "scale"]
    chosen = {name for name, layer in info["layers"].items() if layer["weights"] == "nuq"}
    assert set((folder / "out/tiny_nuq_layer_record.txt").read_text().split(";")) == chosen
    assert 'key: "conv"' in (folder / "out/tiny_record.txt").read_text()


def test_packed_file_is_the_fake_quant_pair(tuned):
    folder, _, study = tuned
    network = load_packed(folder / "out/tiny.nuq")
    assert network.origin == f"study {study.name}, trial {study.best.trial}: {study.record().say_best()}"
    unpacked = unpack(network, f"{folder}/unpacked")
    assert unpacked.model.read_bytes() == (folder / "out/tiny_fake_quant_model.prototxt").read_bytes()
    assert unpacked.weights.read_bytes() == (folder / "out/tiny_fake_quant_weights.caffemodel").read_bytes()


def test_sizes_are_what_the_codec_writes(tuned):
    from autonuq.quant.codecs import make_codec

    folder, _, study = tuned
    deploy = dict(load_caffemodel(folder / "out" / "tiny_deploy_weights.caffemodel"))
    codes = [deploy[name][0].values.reshape(deploy[name][0].shape) for name in study.best.levels]
    written = sum(len(make_codec("entropy", values.shape).encode(values)) for values in codes)
    assert written == study.best.size_bytes
    packed = load_packed(folder / "out/tiny.nuq").layers
    assert sum(len(layer.stream) for layer in packed.values()) == study.best.size_bytes
    assert study.best.ratio == pytest.approx(4 * (8 * 2 * 9 + 10 * 128) / written)
