"""Wide layers fit, and what does not fit is refused before anything is spent."""

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

import autonuq as nuq
from autonuq.compress.quantized import default_config, quantize
from autonuq.errors import StudyError
from autonuq.graph.files import load_graph, write_model
from autonuq.runtime.memory import _left_to_the_group, available_memory
from autonuq.study import resources
from autonuq.study.rehearsal import Rehearsal
from autonuq.study.resources import check_resources, needs_of
from autonuq.study.run import StudyRun

WIDE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 256 dim: 14 dim: 14 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


class Agreement(nuq.Evaluator):
    def eval_model(self, model_file, weights_file, batch_num):
        net, rng = nuq.Net(model_file, weights_file), np.random.default_rng(0)
        batches = [net.forward(data=rng.random((4, 256, 14, 14), np.float32))["prob"] for _ in range(batch_num)]
        return float(np.mean([batch[:, 0].mean() for batch in batches]))

    def is_satisfied(self, original_metric, new_metric):
        return abs(original_metric - new_metric) < 0.05


@pytest.mark.slow
def test_a_layer_of_fifty_thousand_inputs_is_tuned(tmp_path):
    """Second moments of 50,176 inputs would take 10 GB."""
    model, weights = tmp_path / "wide.prototxt", tmp_path / "wide.caffemodel"
    model.write_text(WIDE)
    graph, rng = load_graph(model), np.random.default_rng(0)
    fc = graph.by_name["fc"].with_(blobs=(rng.standard_normal((10, 50176), np.float32) / 200, np.zeros(10, np.float32)))
    write_model(graph.with_layers([graph.layers[0], fc, graph.layers[2]]), model, weights)
    study = nuq.tune(model, weights, Agreement(evaluate_batch_num=2), out=tmp_path / "out", n_trials=2, batch_num=3)
    assert study.best.ratio > 8
    needs = needs_of(quantize(load_graph(model, weights), default_config(load_graph(model, weights), batch_num=3)))
    assert needs.layers[0].inputs_bytes == 4 * 12 * 50176
    assert needs.memory_bytes < 1e9
    assert not list((tmp_path / "out/calibration").glob("modified*"))


def test_what_does_not_fit_is_refused_with_the_layer_and_the_remedy(task, monkeypatch):
    task = replace(task, evaluator=None)
    needs = needs_of(resources_model := StudyRun(task).model)
    assert resources_model.weights
    check_resources(task, needs)
    monkeypatch.setattr(resources, "available_memory", lambda: 2e8)
    with pytest.raises(StudyError, match=r"needs about 0\.3 GB of memory.*only 0\.2 GB of memory are free"):
        check_resources(task, needs)
    monkeypatch.setattr(resources, "available_memory", lambda: None)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 10, 0))
    with pytest.raises(
        StudyError, match=r"only 0\.0 GB of disk are free in .*; leave layer '.*' float \(skip_layers\)"
    ):
        check_resources(task, needs)


def test_neither_tune_nor_check_begin_with_what_does_not_fit(task, monkeypatch):
    monkeypatch.setattr(resources, "available_memory", lambda: 1e6)
    with pytest.raises(StudyError, match="of memory are free"):
        StudyRun(task).run(exists=False)
    assert not task.out.exists()
    checks = {check.name: check for check in Rehearsal(task).run()}
    assert checks["memory and disk"].state == "failed"
    assert "of memory are free" in checks["memory and disk"].detail


def test_the_memory_of_a_container_is_its_own_and_cached_files_count_as_free(tmp_path):
    assert available_memory() > 1e6
    assert _left_to_the_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_to_the_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 600\nfile_mapped 5\n")
    assert _left_to_the_group(tmp_path) == 700
