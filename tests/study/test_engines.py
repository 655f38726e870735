"""Studies whose trials Dask's and Ray's own workers run: in folders of their own, without the study's code."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from servers import free_port, redis_url, wait_for_port  # noqa: F401

from autonuq.study.locate import load_study

pytestmark = pytest.mark.engines
CLI = [sys.executable, "-c", "from autonuq.cli import main; main()"]
NOT_THERE = ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']  # a folder looks empty to a command

EVALUATOR = '''
import time

import autonuq as nuq
import helper

PAUSE_S = 0


class Same(nuq.Evaluator):
    """Share of decisions that are the original network's."""

    def __init__(self, evaluate_batch_num=1, labels=None):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        self.images = helper.images()
        self.labels = labels

    def decided(self, model_file, weights_file):
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        return net.forward_all(data=self.images)["prob"].argmax(1)

    def eval_model(self, model_file, weights_file, batch_num):
        time.sleep(PAUSE_S)
        found = self.decided(model_file, weights_file)
        self.labels = found if self.labels is None else self.labels
        return float((found == self.labels).mean())

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1
'''
HELPER = """
import numpy as np


def images():
    return np.random.default_rng(0).standard_normal((32, 2, 8, 8), np.float32)
"""


class Cluster:
    """A scheduler or head with workers, each a process with an empty folder of its own.

    Attributes
    ----------
    backend, address : str
    prefix : list of str
        Of a command that is to reach it.
    """

    def __init__(self, backend, folder, prefix=()):
        self.backend, self.folder, self.prefix = backend, folder, list(prefix)
        self.processes = []

    def start(self, *command, **more):
        place = self.folder / f"process{len(self.processes)}"
        place.mkdir()
        output = (place / "output.txt").open("w")
        process = subprocess.Popen(
            [*self.prefix, *command], cwd=place, stdout=output, stderr=output, start_new_session=True, **more
        )
        self.processes.append(process)
        return process

    def close(self):
        for process in self.processes:
            kill_all(process)

    @property
    def options(self):
        return ["--backend", self.backend, "--scheduler", self.address]


def kill_all(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Dask(Cluster):
    def __init__(self, folder, *, workers=2, hidden=None):
        pytest.importorskip("distributed")
        super().__init__("dask", folder)
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        program = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        self.scheduler = self.start(*program, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        wait_for_port(port, self.scheduler)
        for _ in range(workers):
            self.add_worker(hidden)

    def add_worker(self, hidden=None):
        program = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--host", "127.0.0.1"]
        where = [] if hidden is None else ["unshare", "-m", *NOT_THERE, str(hidden)]
        return self.start(*where, *program, "--nthreads", "1", "--no-nanny", "--no-dashboard")


@pytest.fixture
def dask(tmp_path_factory):
    cluster = Dask(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.close()


class Ray(Cluster):
    """Ray's processes listen on every address, so that they get a network of their own, a loopback alone."""

    def __init__(self, folder):
        pytest.importorskip("ray")
        if subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
            pytest.skip("no network of its own can be made for Ray here")
        super().__init__("ray", folder)
        self.address = "127.0.0.1:6379"
        program = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus", "2"]
        options = ["--include-dashboard=false", "--node-ip-address=127.0.0.1", "--port=6379", "--disable-usage-stats"]
        network = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
        self.head = self.start(*network, *program, *options, f"--temp-dir={folder}/ray")
        self.prefix = ["nsenter", "-n", "-t", str(self.head.pid)]
        call = "import socket; socket.create_connection(('127.0.0.1', 6379))"
        until(lambda: not subprocess.run([*self.prefix, sys.executable, "-c", call], capture_output=True).returncode)


@pytest.fixture
def ray():
    folder = Path("/tmp") / f"autonuq-ray-{os.getpid()}"  # the paths of its sockets must be short
    folder.mkdir()
    cluster = Ray(folder)
    yield cluster
    cluster.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["dask", "ray"])
def cluster(request):
    return request.getfixturevalue(request.param)


def until(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def folder(tiny):
    """Add a module with an evaluator, and one that it imports, to the folder of `tiny`."""
    (tiny / "same.py").write_text(EVALUATOR)
    (tiny / "helper.py").write_text(HELPER)
    (tiny / "study.toml").write_text(
        'name = "tiny"\n'
        '[model]\nprototxt = "tiny.prototxt"\nweights = "tiny.caffemodel"\n'
        '[evaluator]\nclass = "same.py:Same"\nevaluate_batch_num = 1\n'
        "[search]\ntrials = 10\n"
    )
    return tiny


def run(cluster, folder, *command, **more):
    return subprocess.run(
        [*cluster.prefix, *command], cwd=folder, capture_output=True, text=True, timeout=240, check=False, **more
    )


def tuned(cluster, folder, *options):
    """Tune by a cluster of the test's own, and stop that."""
    with contextlib.closing(cluster):
        return run(cluster, folder, *CLI, "tune", "study.toml", *options, *cluster.options)


def workers_of(folder, storage=None):
    """Return the processes that scored the trials of a finished study, and check that all were scored."""
    study = load_study("tiny", storage) if storage else load_study(folder / "out" / "tiny")
    trials = study.record().trials
    assert [trial.state for trial in trials] == ["complete"] * len(trials)
    return [int(trial.worker.rpartition(":")[2]) for trial in trials]


def test_a_study_file(cluster, folder):
    backend, address = f'backend = "{cluster.backend}"', f'address = "{cluster.address}"'
    (folder / "study.toml").write_text((folder / "study.toml").read_text() + f"[workers]\n{backend}\n{address}\n")
    checked = run(cluster, folder, *CLI, "check", "study.toml")
    assert f"2 of {cluster.backend} made the evaluator" in checked.stdout, checked.stderr
    done = run(cluster, folder, *CLI, "tune", "study.toml")
    assert done.returncode in (0, 9), done.stderr
    pids = workers_of(folder)
    assert len(pids) == 10
    assert len(set(pids[1:])) == 2, "the first is scored before any is sent"


SCRIPT = """
import sys
import joblib
{cluster}
{evaluator}

if __name__ == "__main__":
    with joblib.parallel_config(backend={backend!r}):
        study = nuq.tune("tiny.prototxt", "tiny.caffemodel", Same(), out="out/tiny", n_trials=4, jobs=2)
    assert study.record().counts.complete == 4
"""


def script_of(cluster, evaluator):
    ray = "import ray; from ray.util.joblib import register_ray; register_ray(); ray.init(address={!r})"
    dask = "from distributed import Client; client = Client({!r})"
    connects = (ray if cluster.backend == "ray" else dask).format(cluster.address)
    return SCRIPT.format(cluster=connects, evaluator=evaluator, backend=cluster.backend)


@pytest.mark.parametrize("place", ["script", "module", "prompt"])
def test_an_evaluator_of_a_script_a_module_and_a_prompt(cluster, folder, place):
    evaluator = EVALUATOR if place != "module" else "import autonuq as nuq\nfrom same import Same"
    script = script_of(cluster, evaluator)
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-c", script] if place == "prompt" else [sys.executable, "script.py"]
    done = run(cluster, folder, *command)
    assert done.returncode == 0, done.stderr
    assert len(set(workers_of(folder)[1:])) <= 2


def test_an_evaluator_of_a_notebook(dask, folder):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        f"from distributed import Client\nclient = Client({dask.address!r})",
        EVALUATOR,
        "import joblib\nwith joblib.parallel_config(backend='dask'):\n"
        "    study = nuq.tune('tiny.prototxt', 'tiny.caffemodel', Same(), out='out/tiny', n_trials=4, jobs=2)",
        "study = nuq.resume('out/tiny', evaluator=Same(), trials=5)",
        "study = nuq.resume('out/tiny', evaluator=Same(), trials=8, jobs=2)",  # processes of this machine
        "study.record().counts.complete",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    assert book.cells[-1].outputs[0]["data"]["text/plain"] == "8"


def test_workers_that_see_nothing_of_the_study(folder, tmp_path_factory, redis_url):  # noqa: F811
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("folders cannot be hidden from a process here")
    shared = tmp_path_factory.mktemp("shared")
    cluster = Dask(tmp_path_factory.mktemp("dask"), hidden=folder)
    options = ["--storage", redis_url, "--artifacts", str(shared)]
    done = tuned(cluster, folder, *options)
    assert done.returncode in (0, 9), done.stderr
    assert len(set(workers_of(folder, redis_url)[1:])) == 2


def said(done):
    """Return the error that a command ends with: one line, without a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


def test_a_missing_data_file_is_the_evaluators_error_before_anything_is_prepared(folder, tmp_path_factory):
    """A path that is relative to where the study was started."""
    (folder / "helper.py").write_text("import numpy as np\n\n\ndef images():\n    return np.load('images.npy')\n")
    np.save(folder / "images.npy", np.zeros((32, 2, 8, 8), np.float32))
    cluster = Dask(tmp_path_factory.mktemp("dask"))
    done = tuned(cluster, folder)
    assert done.returncode == 7
    assert "images.npy" in said(done)
    assert "curves" not in done.stderr


def test_nobody_answers(folder):
    port = free_port()
    for backend, address in (("dask", f"tcp://127.0.0.1:{port}"), ("ray", f"127.0.0.1:{port}")):
        pytest.importorskip({"dask": "distributed"}.get(backend, backend))
        done = subprocess.run(
            [*CLI, "tune", "study.toml", "--backend", backend, "--scheduler", address],
            **{"cwd": folder, "capture_output": True, "text": True},
        )
        assert done.returncode == 6
        assert f"{address} cannot be reached" in said(done)
        assert not (folder / "out").exists()


def test_workers_without_the_package(folder, tmp_path_factory):
    cluster = Dask(tmp_path_factory.mktemp("dask"), workers=0)
    call = "import sys; sys.modules['autonuq'] = None; from distributed.cli.dask_worker import main; main()"
    cluster.start(sys.executable, "-c", call, cluster.address, "--host", "127.0.0.1", "--no-nanny", "--no-dashboard")
    done = tuned(cluster, folder)
    assert done.returncode == 6
    assert "No module named 'autonuq" in said(done)


def test_a_scheduler_without_a_worker(folder, tmp_path_factory):
    cluster = Dask(tmp_path_factory.mktemp("dask"), workers=0)
    done = tuned(cluster, folder)
    assert done.returncode == 6
    assert "has no worker" in said(done)


def begun(cluster, folder):
    """Start a study whose trials take a while, and return its process when its workers are at work."""
    process = subprocess.Popen(
        [*cluster.prefix, *CLI, "tune", "study.toml", *cluster.options],
        **{"cwd": folder, "stderr": subprocess.PIPE, "text": True, "start_new_session": True},
    )
    until(lambda: process.poll() is not None or len(running(folder)) == 2)
    assert process.poll() is None, process.communicate()
    return process


def running(folder):
    """Return the processes that score a trial now."""
    try:
        trials = load_study(folder / "out" / "tiny").record().trials
    except Exception:  # there is no study yet
        return []
    return [int(trial.worker.rpartition(":")[2]) for trial in trials if trial.state == "running" and trial.worker]


@pytest.fixture
def slow(folder):
    """Let every scoring take a while, whoever does it."""
    (folder / "same.py").write_text(EVALUATOR.replace("PAUSE_S = 0", "PAUSE_S = 1.5"))
    return folder


def ended(process):
    _, errors = process.communicate(timeout=240)
    return subprocess.CompletedProcess([], process.returncode, "", errors)


def test_a_killed_worker_is_replaced(cluster, slow):
    process = begun(cluster, slow)
    os.kill(running(slow)[0], signal.SIGKILL)
    done = ended(process)
    assert done.returncode in (0, 9), done.stderr
    assert len(workers_of(slow)) == 10


def test_a_killed_engine_ends_the_study_in_one_line(cluster, slow):
    process = begun(cluster, slow)
    kill_all(cluster.processes[0])
    done = ended(process)
    assert done.returncode == 6, done.stderr
    assert "autonuq resume" in said(done)


def test_interrupted_workers_elsewhere_stop(dask, slow):
    process = begun(dask, slow)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.returncode == 130
    until(lambda: not running(slow))
    count = len(load_study(slow / "out" / "tiny").record().trials)
    time.sleep(4)
    assert len(load_study(slow / "out" / "tiny").record().trials) == count < 10
    assert run(dask, slow, *CLI, "resume", "study.toml", *dask.options).returncode in (0, 9)
    assert len(workers_of(slow)) == 10
