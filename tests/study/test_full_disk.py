"""A disk that is full at any write ends a study with the file's name, and once there is room it goes on."""

import errno
import os
from dataclasses import replace

import pytest

from autonuq import atomic
from autonuq.errors import AutonuqError, WriteFailure
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.runtime.moments import moments_file, rows_file
from autonuq.study.run import StudyRun


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def trials_of(study):
    return [(one.number, one.state, one.points, one.metric, one.ratio) for one in study.record().trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    from tiny_network import write_tiny

    from autonuq.graph.files import ModelPair
    from autonuq.study.task import Task

    folder = tmp_path_factory.mktemp("undisturbed")
    write_tiny(folder)
    evaluator = load_evaluator("evaluate.py:Agreement", folder, 8)
    source = ModelPair(folder / "tiny.prototxt", folder / "tiny.caffemodel")
    task = Task("tiny", source, evaluator, folder / "out", f"sqlite:///{folder}/study.db", n_trials=3)
    return trials_of(StudyRun(task).run(exists=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["modified_model.prototxt", "record.txt", ".npz", ".npy", "index.npz", "model.prototxt", "weights.caffemodel"],
)
def test_no_room_for_a_file(name, task, undisturbed, monkeypatch):
    """Also where the evaluator's own run writes it, which is then neither a failed evaluator nor a failed trial."""
    real = atomic.replacing

    def replacing(path):
        return failing(path) if str(path).endswith(name) else real(path)

    def failing(path):
        with atomic.writing(path):
            full()

    for module in ("atomic", "runtime.inputs", "runtime.moments"):
        monkeypatch.setattr(f"autonuq.{module}.replacing", replacing)
    with pytest.raises((OSError, WriteFailure), match=f"No space left on device.*{name}|{name}.*No space left"):
        StudyRun(task).run(exists=False)
    monkeypatch.undo()
    assert trials_of(StudyRun(task).run(exists=True)) == undisturbed


def test_no_room_for_the_log(task, undisturbed, monkeypatch):
    monkeypatch.setattr("autonuq.study.trial_log.append_text", full)
    with pytest.raises(OSError, match="No space left"):
        StudyRun(task).run(exists=False)
    monkeypatch.undo()
    assert trials_of(StudyRun(task).run(exists=True)) == undisturbed


def test_what_the_evaluator_cannot_write_fails_no_trial(task, monkeypatch):
    scored = type(task.evaluator).eval_model

    def eval_model(self, model_file, weights_file, batch_num):
        if len(self.calls) == 4:
            full()
        return scored(self, model_file, weights_file, batch_num)

    monkeypatch.setattr(type(task.evaluator), "eval_model", eval_model)
    with pytest.raises(WriteFailure, match="cannot be written: No space left on device; make room there"):
        StudyRun(task).run(exists=False)
    monkeypatch.undo()
    record = StudyRun(replace(task, evaluator=load_evaluator("evaluate.py:Agreement", task.source.model.parent, 8)))
    assert [one.state for one in record.run(exists=True).record().trials] == ["complete"] * 3


def test_a_write_failure_is_a_failure_of_the_runtime():
    assert issubclass(WriteFailure, AutonuqError) and WriteFailure.exit_code == 5


def test_what_a_killed_run_left_in_the_folder_goes(task):
    StudyRun(task).run(exists=False)
    left = [task.trial_folder(0) / "model.prototxt", rows_file(moments_file(task.record_file, "conv"))]
    left += [task.record_file.parent / name for name in ("modified_model.prototxt", "modified_weights.caffemodel")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    StudyRun(task).run(exists=True)
    assert not any(path.exists() for path in left)
    assert not task.trial_folder(0).exists()
