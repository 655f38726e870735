"""A study survives being killed or interrupted at any moment, and refuses to go on with something else."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph import caffe_pb2
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.model import Layer
from autonuq.records import FINGERPRINT, LEASE
from autonuq.storage.lease import WorkerSession
from autonuq.study.locate import load_study
from autonuq.study.preparation import points_key
from autonuq.study.run import StudyRun

# Logs every scoring pass and takes its time over it, so that a kill lands in the middle of one.
SLOW = """
import time
from evaluate import Agreement

class Slow(Agreement):
    def eval_model(self, model_file, weights_file, batch_num):
        with open("calls.log", "a") as log:
            log.write(f"{model_file.rsplit('/', 1)[-1]}\\n")
        time.sleep(0.15)
        return super().eval_model(model_file, weights_file, batch_num)
"""


def cli(*arguments, cwd):
    return [sys.executable, "-c", "from autonuq.cli import main; main()", *arguments]


def start(study, command):
    return subprocess.Popen(
        cli(command, str(study), cwd=study.parent),
        cwd=study.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def slow_study(tiny_study):
    (tiny_study.parent / "slow.py").write_text(SLOW)
    tiny_study.write_text(
        tiny_study.read_text().replace("evaluate.py:Agreement", "slow.py:Slow").replace("trials = 8", "trials = 12")
    )
    return tiny_study


def calls(study):
    log = study.parent / "calls.log"
    return log.read_text().split() if log.exists() else []


def storage_of(study):
    return f"journal://{study.parent}/out/tiny/study.journal"


def wait_for_calls(process, study, count):
    deadline = time.monotonic() + 60
    while len(calls(study)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=pytest.mark.slow) for moment in (1, 2, 3, 6)],
    ids=["baseline", "calibration", "first trial", "fourth trial"],
)
def test_kill_and_resume(slow_study, moment):
    process = start(slow_study, "tune")
    wait_for_calls(process, slow_study, moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = load_study("tiny", storage_of(slow_study)).record()
    finished = {trial.number: trial for trial in before.trials if trial.state == "complete"}
    assert len(finished) == max(0, moment - 3)

    resumed = start(slow_study, "resume")
    _, messages = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, messages
    after = load_study("tiny", storage_of(slow_study)).record()
    assert [trial.state for trial in after.trials if trial.state != "waiting"] == ["complete"] * 12
    for number, trial in finished.items():  # what is believed of it changes with every other trial
        believed = {"probability": None, "scatter": None}
        assert replace(after.trials[number], **believed) == replace(trial, **believed)
    plans = {tuple(trial.points.items()) for trial in after.trials if trial.state == "complete"}
    scored = calls(slow_study)
    killed_twice = {1: "tiny.prototxt", 2: "modified_model.prototxt"}.get(moment, "model.prototxt")
    expected = {"tiny.prototxt": 1, "modified_model.prototxt": 1, "model.prototxt": len(plans)}
    expected[killed_twice] += 1  # the one that was killed in the middle, and nothing else
    assert {name: scored.count(name) for name in expected} == expected


def test_interrupt_writes_the_best_so_far(slow_study):
    process = start(slow_study, "tune")
    wait_for_calls(process, slow_study, 6)
    process.send_signal(signal.SIGINT)
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "autonuq resume" in messages
    assert (slow_study.parent / "out/tiny/tiny_deploy_model.prototxt").exists()
    assert "ratio" in output
    states = [trial.state for trial in load_study("tiny", storage_of(slow_study)).record().trials]
    assert "running" not in states
    assert "failed" not in states


@pytest.mark.slow
def test_killed_trial_directories_do_not_stay(slow_study):
    process = start(slow_study, "tune")
    wait_for_calls(process, slow_study, 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start(slow_study, "resume").communicate(timeout=120)
    assert not list((slow_study.parent / "out/tiny").glob("trial*"))


def test_resume_goes_on_to_the_total(task):
    StudyRun(task).run(exists=False)
    study = StudyRun(replace(task, n_trials=5)).run(exists=True)
    assert sum(trial.state == "complete" for trial in study.record().trials) == 5


def test_same_seed_gives_the_same_trials(task):
    first = StudyRun(replace(task, n_trials=14)).run(exists=False).record()
    again = replace(task, out=task.out / "again", storage=f"sqlite:///{task.out}/again.db", n_trials=14)
    second = StudyRun(again).run(exists=False).record()
    assert [trial.points for trial in first.trials] == [trial.points for trial in second.trials]


def test_study_that_exists_is_not_started_again(task):
    StudyRun(task).run(exists=False)
    with pytest.raises(StudyError, match="exists already.*autonuq resume"):
        StudyRun(task).run(exists=False)


def test_study_that_does_not_exist_cannot_be_resumed(task):
    StudyRun(task).run(exists=False)
    with pytest.raises(StudyError, match="study 'other'.*it holds tiny.*autonuq tune"):
        StudyRun(replace(task, name="other")).run(exists=True)


def other_weights(task, folder):
    path = task.source.weights
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of fc
    path.write_bytes(data)
    return task


def other_evaluator(task, folder):
    source = folder / "evaluate.py"
    source.write_text(source.read_text().replace("limit = 0.1", "limit = 0.2"))
    return replace(task, evaluator=load_evaluator("evaluate.py:Agreement", folder, 8))


def other_batches(task, folder):
    return replace(task, evaluator=load_evaluator("evaluate.py:Agreement", folder, 4))


def other_prototxt(task, folder):
    task.source.model.write_text(task.source.model.read_text() + "\n# changed\n")
    return task


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (other_weights, "weights"),
        (other_prototxt, "prototxt"),
        (other_evaluator, "evaluator"),
        (other_batches, "evaluator"),
        (lambda task, folder: replace(task, batch_num=2), "quantization"),
        (lambda task, folder: replace(task, codec="fixed"), "codec"),
    ],
    ids=["weights", "prototxt", "evaluator", "batches", "config", "codec"],
)
def test_resume_refuses_what_differs(task, tiny, change, word):
    StudyRun(task).run(exists=False)
    with pytest.raises(StudyError, match=f"was started with another {word};"):
        StudyRun(change(task, tiny)).run(exists=True)


def with_scale_behind_fc(task):
    graph = load_graph(task.source.model, task.source.weights)
    message = caffe_pb2.LayerParameter(name="late", type="Scale", bottom=["fc"], top=["fc"])
    late = Layer(message, (np.linspace(0.5, 2, 10, dtype=np.float32),))
    write_model(graph.with_layers([*graph.layers[:-1], late, graph.layers[-1]]), *astuple(task.source))
    return task


def test_resume_refuses_a_study_of_a_version_that_folded_less(task):
    run = StudyRun(with_scale_behind_fc(task))
    study = run.run(exists=False).optuna
    older = {key: value for key, value in run.fingerprint.items() if key != "folding"}
    assert points_key(older) != points_key(run.fingerprint)
    study.set_user_attr(FINGERPRINT, older)
    with pytest.raises(StudyError, match="was started with another folding;"):
        StudyRun(task).run(exists=True)


def test_a_folding_that_older_versions_had_too_is_no_part_of_the_fingerprint(task):
    assert list(StudyRun(task).fingerprint) == ["prototxt", "weights", "quantization", "codec", "evaluator"]


def test_lost_points_are_built_again_only_as_they_were(task, monkeypatch):
    """The calibration is repeated: what it left for the points went when they were built."""
    study = StudyRun(task).run(exists=False)
    shutil.rmtree(task.points_folder)
    assert StudyRun(replace(task, n_trials=4)).run(exists=True).record().layers == study.record().layers
    assert not (task.out / "calibration/record.txt.moments").exists()
    shutil.rmtree(task.points_folder)
    monkeypatch.setattr("autonuq.compress.operating_points.load_moments", lambda record, layer: ())
    with pytest.raises(StudyError, match="were lost and cannot be built again"):
        StudyRun(replace(task, n_trials=5)).run(exists=True)


class Broken:
    """Fails on the plans whose number of calls is listed."""

    evaluate_batch_num = 8

    def __init__(self, inner, failures, how):
        self.inner, self.failures, self.how, self.count = inner, failures, how, 0

    def eval_model(self, model_file, weights_file, batch_num):
        metric = self.inner.eval_model(model_file, weights_file, batch_num)
        if Path(model_file).name != "model.prototxt":
            return metric
        self.count += 1
        return self.how() if self.count in self.failures else metric

    def is_satisfied(self, original_metric, new_metric):
        return self.inner.is_satisfied(original_metric, new_metric)


def raise_memory_error():
    raise MemoryError("no more")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda: float("nan"), "one finite number. Got nan"),
        (lambda: "0.9", "Got '0.9' \\(str\\)"),
        (lambda: None, "Got None"),
        (lambda: (0.9, 0.8), "Got \\(0.9, 0.8\\)"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (raise_memory_error, "MemoryError: no more"),
        (lambda: sys.exit(3), "SystemExit"),
    ],
    ids=["nan", "string", "none", "tuple", "exception", "memory", "exit"],
)
def test_a_failed_trial_has_its_reason_and_the_study_goes_on(task, how, reason):
    import re

    study = StudyRun(replace(task, evaluator=Broken(task.evaluator, {2}, how), n_trials=4)).run(exists=False)
    trials = study.record().trials
    assert [trial.state for trial in trials[:4]] == ["complete", "failed", "complete", "complete"]
    assert re.search(reason, trials[1].error)


def test_three_failures_in_a_row_stop_the_study(task):
    evaluator = Broken(task.evaluator, {2, 3, 4}, lambda: 1 / 0)
    with pytest.raises(EvaluatorError, match="3 trials in a row failed.*ZeroDivisionError"):
        StudyRun(replace(task, evaluator=evaluator, n_trials=8)).run(exists=False)
    states = [trial.state for trial in load_study("tiny", task.storage).record().trials]
    assert states[:4] == ["complete", "failed", "failed", "failed"]
    assert "running" not in states


def test_baseline_that_fails_is_an_error_at_once(task):
    class Hopeless(Broken):
        def eval_model(self, model_file, weights_file, batch_num):
            raise OSError("no data")

    with pytest.raises(EvaluatorError, match="eval_model raised OSError: no data"):
        StudyRun(replace(task, evaluator=Hopeless(task.evaluator, set(), None))).run(exists=False)


def test_predicate_that_even_the_original_fails(task):
    class Strict(Broken):
        def is_satisfied(self, original_metric, new_metric):
            return new_metric > original_metric

    with pytest.raises(EvaluatorError, match="not even the original"):
        StudyRun(replace(task, evaluator=Strict(task.evaluator, set(), None))).run(exists=False)


def test_calibration_needs_the_configured_passes(task):
    from autonuq.errors import QuantizationError

    with pytest.raises(QuantizationError, match="layer 'conv'.*needs 9 forward passes"):
        StudyRun(replace(task, batch_num=9)).run(exists=False)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_orphans_of_another_process_are_queued_again(task):
    study = StudyRun(task).run(exists=False).optuna
    trial = study.ask()
    with WorkerSession() as session:
        trial.set_user_attr(LEASE, session.lease.as_attribute())
    record = StudyRun(replace(task, n_trials=4)).run(exists=True).record()
    assert record.trials[trial.number].state == "complete"
