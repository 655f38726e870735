"""Several workers on one study: local ones through joblib, and those that join from elsewhere."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import joblib
import pytest

from autonuq.errors import EvaluatorError, StudyError
from autonuq.records import INT8
from autonuq.runtime.device import selection
from autonuq.storage.lease import WorkerSession
from autonuq.study import dispatch, workers
from autonuq.study.artifacts import Artifacts
from autonuq.study.locate import load_study
from autonuq.study.run import StudyRun
from autonuq.study.study_file import load_task
from autonuq.study.workers import work

CLI = [sys.executable, "-c", "from autonuq.cli import main; main()"]


def start(study, *arguments):
    command = [*CLI, arguments[0], str(study), *arguments[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=study.parent, text=True, start_new_session=True, **pipes)


def scored(study):
    """Return the log's (process, weights) of scored plans."""
    lines = [line.split() for line in (study.parent / "calls.log").read_text().splitlines()]
    return [(pid, weights) for pid, name, weights in lines if name == "model.prototxt"]


def check_complete(study, url, total, *, stopped=0):
    """Check that every trial is finished once and no plan was scored twice, and return the trials.

    As many scorings as workers were stopped in the middle of one come on top.
    """
    trials = load_study("tiny", url).record().trials
    assert [trial.number for trial in trials if trial.state == "complete"] == list(range(total))
    assert all("satisfied" in trial.constraints for trial in load_study("tiny", url).optuna.get_trials()[:total])
    counts = Counter(weights for _, weights in scored(study))
    assert sum(counts.values()) - len(counts) <= stopped
    return trials[:total]


def task_of(study, **changes):
    return replace(load_task(study).made(), **changes)


def test_jobs_run_in_processes_of_their_own(logging_study):
    task, told = task_of(logging_study), []
    study = StudyRun(task, told.append).run(exists=False, jobs=2)
    trials = check_complete(logging_study, task.storage, 14)
    assert trials[0].origin == INT8  # was scored when the study was prepared, as the original network was
    pids = {int(trial.worker.rpartition(":")[2]) for trial in trials[1:]}
    assert len(pids) == 2
    assert os.getpid() not in pids
    steps = [step for step in told if step.stage == "trial"]
    assert [step.done for step in steps] == list(range(1, 15))
    assert sorted(step.trial.number for step in steps) == list(range(14))
    assert steps[-1].best.ratio == study.best.ratio


SCRIPT = """
import os

import autonuq as nuq

{evaluator}

if __name__ == "__main__":
    options = {{"storage": "journal://my.journal", "jobs": 2}}
    nuq.tune("tiny.prototxt", "tiny.caffemodel", Agreement(), out="one", n_trials=2, **options)
    os.mkdir("elsewhere")
    os.chdir("elsewhere")  # joblib's processes stay where they are
    options["storage"] = "journal://../my.journal"
    study = nuq.resume("one", evaluator=Agreement(), trials=4, **options)
    print(study.record().counts.complete, os.listdir())
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_typed_in", [False, True])
def test_jobs_of_a_script_with_its_own_evaluator_that_goes_to_another_folder(tiny, is_typed_in):
    script = SCRIPT.format(evaluator=(tiny / "evaluate.py").read_text())
    (tiny / "script.py").write_text(script)
    command = [sys.executable, "-c", script] if is_typed_in else [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tiny, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("4 []\n", 0), done.stderr


def test_the_backend_of_a_parallel_config_is_used(logging_study):
    task = task_of(logging_study)
    with joblib.parallel_config(backend="threading"):
        StudyRun(task).run(exists=False, jobs=2)
    trials = check_complete(logging_study, task.storage, 14)
    assert {int(trial.worker.rpartition(":")[2]) for trial in trials} == {os.getpid()}


@pytest.mark.slow
def test_a_configuration_warns_once_however_many_jobs(logging_study):
    folder = logging_study.parent
    (folder / "quant.cfg").write_text("common_config { nuq_quantize { num_steps: 32 num_of_iteration: 0 } }\n")
    logging_study.write_text(logging_study.read_text() + '[quantization]\ncfg = "quant.cfg"\n')
    process = start(logging_study, "tune", "--jobs", "2")
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert messages.count("warning: ") == 1
    assert "UserWarning" not in messages
    check_complete(logging_study, task_of(logging_study).storage, 14)


def test_a_failing_evaluator_stops_all_jobs(logging_study):
    source = logging_study.parent / "evaluate.py"
    source.write_text(
        source.read_text().replace("time.sleep", '1 / (Path(model_file).name != "model.prototxt"); time.sleep')
    )
    with pytest.raises(EvaluatorError, match="3 trials in a row failed.*ZeroDivisionError"):
        StudyRun(task_of(logging_study)).run(exists=False, jobs=2)


def wait_until(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker_processes(study):
    return {int(pid) for pid, _ in scored(study)} if (study.parent / "calls.log").exists() else set()


@pytest.mark.slow
def test_a_killed_job_is_replaced(logging_study, monkeypatch):
    monkeypatch.setenv("PAUSE_S", "0.1")
    process = start(logging_study, "tune", "--jobs", "2")
    wait_until(lambda: len(worker_processes(logging_study) - {process.pid}) == 2)  # the parent scores int8 itself
    os.kill((worker_processes(logging_study) - {process.pid}).pop(), signal.SIGKILL)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    check_complete(logging_study, task_of(logging_study).storage, 14, stopped=2)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("timeout", ["", "timeout = 60"], ids=["", "isolated"])
def test_killed_with_its_jobs_it_leaves_none_behind(logging_study, monkeypatch, timeout):
    text = logging_study.read_text().replace("evaluate_batch_num = 8", f"evaluate_batch_num = 8\n{timeout}")
    logging_study.write_text(text)
    monkeypatch.setenv("PAUSE_S", "0.5")
    process = start(logging_study, "tune", "--jobs", "2")
    wait_until(lambda: len(worker_processes(logging_study) - {process.pid}) >= 2 + bool(timeout))
    workers = worker_processes(logging_study) - {process.pid}
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, workers)))
    monkeypatch.setenv("PAUSE_S", "0")
    assert start(logging_study, "resume").wait(timeout=120) == 0
    check_complete(logging_study, task_of(logging_study).storage, 14, stopped=2)


@pytest.mark.slow
@pytest.mark.parametrize("under", ["", "nohup"])
def test_a_closed_terminal(logging_study, monkeypatch, under):
    import pty

    monkeypatch.setenv("PAUSE_S", "0.5")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
        os.chdir(logging_study.parent)
        command = [*([under] if under else []), *CLI, "tune", "study.toml", "--jobs", "2"]
        os.execvp(command[0], command)
    wait_until(lambda: len(worker_processes(logging_study) - {child}) == 2)
    os.close(terminal)
    workers = worker_processes(logging_study) - {child}
    _, status = os.waitpid(child, 0)
    wait_until(lambda: not any(map(is_alive, workers)))
    trials = load_study("tiny", task_of(logging_study).storage).record().trials
    assert not [trial for trial in trials if trial.state == "running"]
    finished = sum(trial.state == "complete" for trial in trials)
    assert finished == 14 if under else finished < 14
    assert os.waitstatus_to_exitcode(status) == (0 if under else 130)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["the group", "the parent alone"])
def test_interrupt_with_jobs(logging_study, monkeypatch, to):
    monkeypatch.setenv("PAUSE_S", "0.2")
    process = start(logging_study, "tune", "--jobs", "2")
    wait_until(lambda: (logging_study.parent / "calls.log").exists() and len(scored(logging_study)) >= 4)
    if to == "the parent alone":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "autonuq resume" in messages
    assert "Traceback" not in messages
    assert "ratio" in output
    assert (logging_study.parent / "out/tiny/tiny_deploy_model.prototxt").exists()
    assert not list((logging_study.parent / "out/tiny").glob("trial*"))
    record = load_study("tiny", task_of(logging_study).storage).record()
    assert not [trial for trial in record.trials if trial.state in ("running", "failed")]
    assert start(logging_study, "resume").wait(timeout=120) == 0
    check_complete(logging_study, task_of(logging_study).storage, 14, stopped=2)


@pytest.fixture
def elsewhere(logging_study, tmp_path_factory):
    """Make another machine's folder: the study file, the evaluator and its data, but no network."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("study.toml", "evaluate.py", "images.npz"):
        shutil.copy(logging_study.parent / name, folder)
    return folder / "study.toml"


def joined(logging_study, elsewhere, **changes):
    here = task_of(logging_study)
    return replace(task_of(elsewhere), storage=here.storage, artifacts=here.artifacts_location, **changes)


@pytest.mark.parametrize("cfg", [False, True], ids=["default", "cfg"])
def test_a_worker_elsewhere_needs_only_evaluator_and_data(logging_study, elsewhere, cfg):
    here = task_of(logging_study, n_trials=4)
    if cfg:
        from autonuq.compress.quantized import default_config
        from autonuq.graph.files import load_graph

        config = default_config(load_graph(*vars(here.source).values()), batch_num=2, activation_offset=False)
        here = replace(here, config=replace(config, layers=dict(list(config.layers.items())[-1:])))
    study = StudyRun(here).run(exists=False)
    study.optuna.set_user_attr("autonuq:target_trials", 9)
    before = len(scored(logging_study))
    work(joined(logging_study, elsewhere))
    assert sum(trial.state == "complete" for trial in study.record().trials) == 9
    assert len(scored(logging_study)) == before
    assert scored(elsewhere)
    assert not list((elsewhere.parent / "out/tiny").glob("trial*"))


def test_the_command_work(logging_study, elsewhere):
    here = task_of(logging_study, n_trials=4)
    study = StudyRun(here).run(exists=False)
    study.optuna.set_user_attr("autonuq:target_trials", 7)
    options = ["--storage", here.storage, "--artifacts", here.artifacts_location]
    process = start(elsewhere, "work", *options)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert "trial 7/7" in messages
    assert sum(trial.state == "complete" for trial in study.record().trials) == 7


def test_data_that_a_worker_lacks_are_no_plans_fault(logging_study, elsewhere):
    source = logging_study.parent / "evaluate.py"
    source.write_text(source.read_text().replace("time.sleep", '(HERE / "more.bin").read_bytes(); time.sleep'))
    (source.parent / "more.bin").write_bytes(b"")
    shutil.copy(source, elsewhere.parent)
    study = StudyRun(task_of(logging_study, n_trials=4)).run(exists=False)
    study.optuna.set_user_attr("autonuq:target_trials", 9)
    with pytest.raises(EvaluatorError, match="FileNotFoundError.*more.bin"):
        work(joined(logging_study, elsewhere))
    states = [trial.state for trial in study.record().trials]
    assert states.count("complete") == 4
    assert "failed" not in states, "the trial is another worker's"


def test_another_evaluator_is_refused(logging_study, elsewhere):
    StudyRun(task_of(logging_study, n_trials=2)).run(exists=False)
    source = elsewhere.parent / "evaluate.py"
    source.write_text(source.read_text() + "\n# changed\n")
    with pytest.raises(StudyError, match="was started with another evaluator"):
        work(joined(logging_study, elsewhere))


def test_a_parcel_of_other_versions_is_not_opened(logging_study, monkeypatch):
    parcel = dispatch.dumps_parcel(dispatch.Parcel(task_of(logging_study), selection(), WorkerSession().lease))
    dispatch._opened(dispatch._versions(), parcel)
    for name in ("numpy", "Python"):
        with pytest.raises(StudyError, match=f"the worker has {name} .*, the study 0.9; install the same there"):
            dispatch._opened({**dispatch._versions(), name: "0.9"}, parcel)
    with pytest.raises(EvaluatorError, match="cannot be made on a worker: .*; what it imports must be installed"):
        dispatch._opened(dispatch._versions(), parcel[:-5])


def test_what_cannot_be_sent_is_named(logging_study):
    task = task_of(logging_study)
    evaluator = Holding()
    with pytest.raises(EvaluatorError, match="Holding cannot be sent to workers: TypeError: cannot pickle.*lock"):
        dispatch.dumps_parcel(dispatch.Parcel(replace(task, evaluator=evaluator), selection(), WorkerSession().lease))


class Holding:
    """An evaluator with what no other process can have."""

    evaluate_batch_num = 1

    def __init__(self):
        self.lock = threading.Lock()


def test_other_versions_are_refused_by_name(logging_study, elsewhere, monkeypatch):
    StudyRun(task_of(logging_study, n_trials=2)).run(exists=False)
    monkeypatch.setattr(workers, "engine_version", lambda: "0.1")
    with pytest.raises(StudyError, match=r"onnxruntime \S+ \(here: 0.1\)"):
        work(joined(logging_study, elsewhere))


def test_artifacts_at_another_place_are_refused(logging_study, elsewhere, tmp_path):
    StudyRun(task_of(logging_study, n_trials=2)).run(exists=False)
    with pytest.raises(StudyError, match="are not this study's; name its place with --artifacts"):
        work(replace(joined(logging_study, elsewhere), artifacts=str(tmp_path / "empty")))


def test_damaged_artifacts_are_refused_by_name(logging_study, elsewhere):
    task = task_of(logging_study, n_trials=2)
    study = StudyRun(task).run(exists=False).optuna
    damaged = Path(task.artifacts_location) / hashlib.sha256(task.source.weights.read_bytes()).hexdigest()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StudyError, match="weights.caffemodel .* is damaged; remove it"):
        Artifacts(task.artifacts_location).fetch(task_of(elsewhere), study)
    damaged.unlink()
    StudyRun(replace(task, n_trials=3)).run(exists=True)
    work(joined(logging_study, elsewhere))


def test_artifacts_in_s3(logging_study, elsewhere, monkeypatch):
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        bucket = boto3.resource("s3").create_bucket(Bucket="bucket")
        study = StudyRun(task_of(logging_study, n_trials=2, artifacts="s3://bucket/nets/tiny")).run(exists=False)
        assert {item.key.rpartition("/")[0] for item in bucket.objects.all()} == {"nets/tiny"}
        study.optuna.set_user_attr("autonuq:target_trials", 4)
        work(replace(joined(logging_study, elsewhere), artifacts="s3://bucket/nets/tiny"))
        assert sum(trial.state == "complete" for trial in study.record().trials) == 4
        with pytest.raises(StudyError, match="artifacts at s3://none/x cannot be used"):
            StudyRun(task_of(logging_study, n_trials=2, artifacts="s3://none/x")).run(exists=True)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_sampler_does_not_repeat_itself(logging_study, sampler):
    """Optuna's start with the same random numbers again when a study goes on with the same seed."""
    task = task_of(logging_study, sampler=sampler, n_trials=9)
    StudyRun(task).run(exists=False)
    study = StudyRun(replace(task, n_trials=12)).run(exists=True)
    parameters = [tuple(trial.params.values()) for trial in study.optuna.get_trials()]
    assert len(set(parameters)) == len(parameters)


def test_parallel_workers_of_a_random_sampler_differ(logging_study):
    task = task_of(logging_study, sampler="random")
    with joblib.parallel_config(backend="threading"):
        study = StudyRun(task).run(exists=False, jobs=3)
    parameters = [tuple(trial.params.values()) for trial in study.optuna.get_trials()]
    assert len(set(parameters)) == len(parameters)


def test_artifacts_key_of_a_study_file(logging_study):
    from autonuq.study.study_file import load_task

    folder = logging_study.parent
    assert load_task(logging_study).artifacts == ""
    logging_study.write_text(logging_study.read_text() + 'artifacts = "shared/net"\n')
    assert load_task(logging_study).artifacts == str(folder / "shared/net")
    assert load_task(logging_study, artifacts="s3://b/p").artifacts == "s3://b/p"
    assert load_task(logging_study, artifacts="x").artifacts == str(Path("x").resolve())
