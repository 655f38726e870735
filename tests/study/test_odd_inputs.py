"""Studies of networks and images that say little: each ends well, and says what it could not know."""

from dataclasses import replace

import numpy as np
import pytest

from autonuq.errors import QuantizationError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import load_graph, write_caffemodel
from autonuq.study.locate import open_study
from autonuq.study.run import StudyRun

IMAGES = "np.random.default_rng(5).standard_normal((8, 4, 2, 8, 8), np.float32)"


def change_images(task, code):
    """Give the evaluator other images."""
    folder = task.source.model.parent
    text = (folder / "evaluate.py").read_text()
    assert IMAGES in text
    (folder / "evaluate.py").write_text(text.replace(IMAGES, code))
    return replace(task, evaluator=load_evaluator("evaluate.py:Agreement", folder, 8))


def change_blobs(task, name, change):
    """Give a layer other weights and biases."""
    graph = load_graph(task.source.model, task.source.weights)
    layers = [
        layer.with_(blobs=[change(blob).astype(np.float32) for blob in layer.blobs]) if layer.name == name else layer
        for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), task.source.weights)
    return task


def one_image(task):
    model = task.source.model
    model.write_text(model.read_text().replace("dim: 4 dim: 2", "dim: 1 dim: 2"))
    return change_images(task, IMAGES.replace("(8, 4, 2", "(8, 1, 2"))


def without_first_outputs(blob):
    changed = blob.copy()
    changed[: len(blob) // 2] = 0
    return changed


def million_fold(blob):
    return 1e6 * blob


ODD = {
    "one image": one_image,
    "zeros": lambda task: change_images(task, f"0 * {IMAGES}"),
    "constant": lambda task: change_images(task, f"0 * {IMAGES} + np.float32(0.5)"),
    "a dead input channel": lambda task: change_images(task, f"{IMAGES} * np.float32([1, 0])[:, None, None]"),
    "dead outputs": lambda task: change_blobs(task, "conv", without_first_outputs),
    "no weights": lambda task: change_blobs(task, "conv", np.zeros_like),
    "no results": lambda task: change_blobs(task, "fc", np.zeros_like),
    "saturated": lambda task: change_blobs(task, "fc", million_fold),
    "huge": lambda task: change_blobs(
        change_blobs(task, "conv", lambda blob: 1e6 * blob), "fc", lambda blob: 1e6 * blob
    ),
}
UNKNOWN = {
    "one image": {"fc"},
    "zeros": {"conv", "fc"},
    "constant": {"fc"},  # for the padding, the other one's inputs are not
    "no weights": {"fc"},
    "no results": {"conv"},
    "saturated": {"conv", "fc"},
    "huge": {"conv", "fc"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_a_study_ends_and_says_what_is_not_known(kind, task):
    told = []
    study = StudyRun(ODD[kind](replace(task, n_trials=3)), told.append).run(exists=False)
    record = study.record()
    assert [trial.state for trial in record.trials] == ["complete"] * len(record.trials) and record.trials
    assert all(np.isfinite(layer.distortions).all() for layer in record.layers)
    assert record.rounding.way
    assert record.rounding.unknown.keys() == UNKNOWN.get(kind, set())
    said = " ".join(str(step) for step in told if step.stage == "ways")
    assert all(f"'{layer}'" in said and reason in said for layer, reason in record.rounding.unknown.items())


def test_a_bias_that_the_device_cannot_hold_ends_the_study_before_its_trials(task):
    """The deploy pair is written when it ends; that is not the time to learn of it."""
    task = replace(change_blobs(task, "fc", lambda blob: blob + 1e9 * (blob.ndim == 1)), float_layers="never")
    with pytest.raises(QuantizationError, match="layer 'fc': the bias does not fit int32"):
        StudyRun(task).run(exists=False)
    assert [trial.state for trial in open_study(task.name, task.storage).record().trials] == []
