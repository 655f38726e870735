"""A run reads its network once, quantizes it once, and hashes its files once, whoever started it."""

from collections import Counter
from functools import wraps
from pathlib import Path

import numpy as np
import pytest

import autonuq as nuq
from autonuq import amct
from autonuq.graph import files
from autonuq.study import artifacts, task


class Counting(nuq.Evaluator):
    """Knows what the float network says without reading it, so that every reading is the study's."""

    def __init__(self, source):
        super().__init__(evaluate_batch_num=1)
        self.source = Path(source)
        self.images = np.random.default_rng(5).standard_normal((4, 2, 8, 8), np.float32)
        self.labels = nuq.Net(self.source.with_suffix(".prototxt"), self.source).forward(data=self.images)["prob"]

    def eval_model(self, model_file, weights_file, batch_num):
        if Path(weights_file) == self.source:
            return 1.0
        found = nuq.Net(model_file, weights_file).forward(data=self.images)["prob"]
        return float((found.argmax(1) == self.labels.argmax(1)).mean())

    def is_satisfied(self, original_metric, new_metric):
        return True


@pytest.fixture
def counts(tiny, monkeypatch):
    """Count what is done with the float network's files."""
    counted, sources = Counter(), {str(tiny / "tiny.prototxt"), str(tiny / "tiny.caffemodel")}

    def count(module, name):
        function = getattr(module, name)

        @wraps(function)
        def counting(first, *others, **options):
            if not isinstance(first, str | Path):
                counted[name] += 1
            elif str(first) in sources:
                counted[f"{name} {Path(first).suffix}"] += 1
            return function(first, *others, **options)

        monkeypatch.setattr(module, name, counting)

    for module, name in (
        (files, "load_caffemodel"),
        (task, "file_digest"),
        (artifacts, "file_digest"),
        (task, "quantize"),
    ):
        count(module, name)
    return counted


ONCE = {"load_caffemodel .caffemodel": 1, "file_digest .caffemodel": 1, "file_digest .prototxt": 1, "quantize": 1}


def test_tune(tiny, counts):
    evaluator = Counting(tiny / "tiny.caffemodel")
    counts.clear()
    study = nuq.tune(tiny / "tiny.prototxt", tiny / "tiny.caffemodel", evaluator, out=tiny / "out", n_trials=2)
    assert study.best is not None
    assert (tiny / "out/out.nuq").exists()
    assert counts == ONCE


def test_auto_nuq(tiny, counts, working_directory):
    model, weights = str(tiny / "tiny.prototxt"), str(tiny / "tiny.caffemodel")
    amct.create_quant_config(str(tiny / "config.json"), model, weights, [], 1, True)
    evaluator = Counting(weights)
    counts.clear()
    with pytest.warns(UserWarning):
        amct.auto_nuq(model, weights, evaluator, str(tiny / "config.json"), "record.txt", "results/net", n_trials=2)
    assert (tiny / "results/net_deploy_model.prototxt").exists()
    assert counts == ONCE
