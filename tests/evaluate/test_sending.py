"""Evaluators in processes that have the installed packages and nothing else."""

import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin import BuiltinSettings, DataSettings, TransformSettings, make_builtin
from autonuq.evaluate.builtin.settings import Drop
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.evaluate.sending import dumps_by_value
from autonuq.graph.files import ModelPair

ROOT = Path(__file__).parent.parent.parent
EVALUATOR = """
import helper

class Counting:
    def __init__(self, evaluate_batch_num):
        self.evaluate_batch_num = evaluate_batch_num
    def eval_model(self, model_file, weights_file, batch_num):
        return helper.count() + batch_num
    def is_satisfied(self, original_metric, new_metric):
        return True
"""
LOOK = """
import pickle, sys
evaluator = pickle.load(sys.stdin.buffer)
print(evaluator.eval_model("", "", 1), evaluator.evaluate_batch_num)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "helper.py").write_text("def count():\n    return 41\n")
    (tmp_path / "counting.py").write_text(EVALUATOR)
    yield tmp_path
    for name in ("helper", "counting"):
        sys.modules.pop(name, None)


def looked_at(content, tmp_path_factory):
    """Call an evaluator in a process that starts in an empty folder."""
    command = [sys.executable, "-c", LOOK]
    return subprocess.run(
        command,
        input=content,
        capture_output=True,
        cwd=tmp_path_factory.mktemp("empty"),
        env={"PYTHONPATH": str(ROOT)},
    )


def test_one_of_a_file_is_made_anew_from_what_was_sent(folder, tmp_path_factory):
    content = dumps_by_value(load_evaluator("counting.py:Counting", folder, 3))
    assert looked_at(content, tmp_path_factory).stdout == b"42 3\n"
    (folder / "helper.py").write_text("def count():\n    return 0\n")  # changed since: not what the study began with
    assert looked_at(content, tmp_path_factory).stdout == b"42 3\n"
    for path in folder.glob("*.py"):
        path.unlink()
    done = looked_at(content, tmp_path_factory)
    assert done.stdout == b"42 3\n", done.stderr


def test_a_link_to_a_file_is_followed(folder, tmp_path_factory):
    (folder / "link.py").symlink_to(folder / "counting.py")
    content = dumps_by_value(load_evaluator("link.py:Counting", folder, 3))
    assert looked_at(content, tmp_path_factory).stdout == b"42 3\n"
    for path in folder.glob("*.py"):
        path.unlink()
    assert looked_at(content, tmp_path_factory).stdout == b"42 3\n"


def test_one_of_a_module_is_sent_with_what_it_uses(folder, tmp_path_factory):
    sys.path.insert(0, str(folder))
    content = dumps_by_value(load_evaluator("counting:Counting", folder, 3))
    assert looked_at(content, tmp_path_factory).stdout == b"42 3\n"
    assert b"41" not in dumps_by_value(np.linalg.norm), "installed packages are named, not sent"
    assert not cloudpickle.list_registry_pickle_by_value(), "other pickles stay as they are"


def test_an_object_is_sent_with_its_class(folder, tmp_path_factory):
    sys.path.insert(0, str(folder))
    import counting

    content = dumps_by_value(counting.Counting(5))
    assert looked_at(content, tmp_path_factory).stdout == b"42 5\n"


def test_data_that_are_not_there_are_named(folder, tmp_path_factory):
    source = folder / "counting.py"
    source.write_text(
        EVALUATOR.replace("self.evaluate_batch_num =", "open(__file__ + '.dat'); self.evaluate_batch_num =")
    )
    (folder / "counting.py.dat").write_text("")
    content = dumps_by_value(load_evaluator("counting.py:Counting", folder, 3))
    (folder / "counting.py.dat").unlink()
    done = looked_at(content, tmp_path_factory)
    assert b"counting.py:Counting cannot be constructed: FileNotFoundError" in done.stderr


def test_a_built_in_one_reads_the_same_data_or_refuses(tiny):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((8, 2, 8, 8), np.float32), rng.integers(0, 10, 8)
    np.savez(tiny / "data.npz", images=images, labels=labels)
    data = DataSettings(kind="npz", path=tiny / "data.npz", layout="NCHW")
    settings = BuiltinSettings(
        kind="top1", data=data, calibration=data, transform=TransformSettings(), drop=Drop(), batch_size=4
    )
    evaluator = make_builtin(settings, ModelPair(tiny / "tiny.prototxt", tiny / "tiny.caffemodel"))
    content = pickle.dumps(evaluator)
    assert len(content) < 4096, "the images stay where they are"
    assert pickle.loads(content).fingerprint() == evaluator.fingerprint()
    np.savez(tiny / "data.npz", images=images, labels=labels[::-1])
    with pytest.raises(EvaluatorError, match="data.npz: these are not the data that the study was started with"):
        pickle.loads(content)
