"""The example of many workers, on servers and clusters of our own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import free_port

from autonuq import load_study

ROOT = Path(__file__).parent.parent.parent
JOB = ROOT / "examples" / "many_workers" / "kubernetes.yaml"


@pytest.fixture
def example(tmp_path):
    """Copy the examples and return the folder of this one."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("out"))
    return tmp_path / "examples" / "many_workers"


@pytest.fixture
def environment(tmp_path):
    """Return variables with which `autonuq` and `dask` are commands, as they are where the package is installed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = {"autonuq": "from autonuq.cli import main; main()", "dask": "from dask.__main__ import main; main()"}
    for name, call in calls.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{call}" "$@"\n')
        (programs / name).chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def check_study(name, storage, trials):
    record = load_study(name, storage).record()
    assert [trial.state for trial in record.trials] == ["complete"] * trials


@pytest.mark.postgres
@pytest.mark.slow
def test_many_workers(postgresql, example, environment):
    call = [example / "run.sh", postgresql.url, "2", "8"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    check_study("many_workers", postgresql.url, 8)
    assert (example / "out" / "timeline.html").exists()


def job():
    """Return the command of a pod, and what it gives the variables of its environment."""
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load(JOB.read_text())
    spec = document["spec"]
    assert (document["kind"], spec["completionMode"]) == ("Job", "Indexed")
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    [worker] = pod["containers"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in worker["volumeMounts"]} == volumes
    assert worker["env"][0]["valueFrom"]["fieldRef"]["fieldPath"].endswith("job-completion-index']")
    return [*worker["command"], *worker["args"]]


def started(call, example, **variables):
    output = (example / f"output{len(list(example.glob('output*')))}.txt").open("w")
    return subprocess.Popen(call, cwd=example, env=variables, stdout=output, stderr=output)


def check_both(processes, example):
    codes = [process.wait(timeout=500) for process in processes]
    assert codes == [0, 0], [path.read_text() for path in example.glob("output*")]


@pytest.mark.slow
def test_a_job_of_kubernetes(example, environment, tmp_path):
    """Its own command, by two pods; a journal and a folder are in the places of PostgreSQL and S3."""
    storage, processes = f"journal://{tmp_path}/pods.journal", []
    for pod in ("1", "0"):  # the one that waits comes first
        places = {
            "/examples/many_workers": str(example),
            "$(JOB_COMPLETION_INDEX)": pod,
            "$(STORAGE)": storage,
            "s3://bucket/lenet": str(tmp_path / "shared"),
            "/work/out": str(tmp_path / f"pod{pod}"),
        }
        call = [word for word in job()]
        for name, value in places.items():
            call = [word.replace(name, value) for word in call]
        assert not any("$(" in word for word in call)
        (example / "study.toml").write_text((example / "study.toml").read_text().replace("trials = 40", "trials = 6"))
        processes.append(started(call, example, **environment))
    check_both(processes, example)
    check_study("many_workers", storage, 6)


@pytest.mark.slow
def test_an_array_of_slurm(example, environment, tmp_path):
    """As Slurm runs it: a copy elsewhere, in the folder where it was submitted, under the task's number."""
    text = (example / "slurm.sh").read_text()
    assert "#SBATCH --array=0-" in text
    shutil.copy(example / "slurm.sh", tmp_path / "slurm_script")
    (example / "study.toml").write_text((example / "study.toml").read_text().replace("trials = 40", "trials = 6"))
    storage = f"journal://{tmp_path}/array.journal"
    variables = {**environment, "SLURM_SUBMIT_DIR": str(example)}
    call = ["bash", tmp_path / "slurm_script", storage]
    check_both([started(call, example, **variables, SLURM_ARRAY_TASK_ID=task) for task in ("1", "0")], example)
    check_study("many_workers", storage, 6)
    assert started(call, example, **variables, SLURM_ARRAY_TASK_ID="0").wait(timeout=500) == 0, "it goes on"


@pytest.mark.engines
def test_a_cluster_of_dask(example, environment):
    pytest.importorskip("distributed")
    call = [example / "dask.sh", "--trials", "6"]
    environment |= {"DASK_PORT": str(free_port())}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    check_study("many_workers", f"journal://{example}/out/many_workers/study.journal", 6)
