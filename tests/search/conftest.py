"""A task that runs in a second, one that logs its calls, and servers on loopback in temporary folders."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from autonuq.compress import ModelPair
from autonuq.search.evaluator import load_evaluator
from autonuq.search.study import Task


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for_port(port, process=None):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nothing answers on port {port}")


class PostgreSQL:
    """A server of Debian's postgresql; it refuses to run as root, so it is given to the user postgres then."""

    def __init__(self, programs):
        self.programs, self.port = programs, free_port()
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.folder = Path(tempfile.mkdtemp(prefix="autonuq-postgres-"))
        if self.user:
            shutil.chown(self.folder, "postgres")
        options = ["-D", str(self.folder / "data"), "-U", "tuner", "--auth=trust", "--no-sync"]
        self.call("initdb", *options)
        self.start()
        self.url = f"postgresql://tuner@127.0.0.1:{self.port}/postgres"

    def call(self, program, *arguments):
        command = [*self.user, str(self.programs / program), *arguments]
        with (self.folder.parent / f"{self.folder.name}.log").open("a") as log:  # what it starts keeps the file open
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd="/")

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-o", options, "start")

    def stop(self, mode="immediate"):
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder)
        (self.folder.parent / f"{self.folder.name}.log").unlink()


@pytest.fixture(scope="session")
def postgresql():
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not versions:
        pytest.skip("Debian's postgresql is not there")
    server = PostgreSQL(versions[-1].parent)
    yield server
    server.remove()


def started(command, port, folder):
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_port(port, process)
    return process


@pytest.fixture
def redis_url(tmp_path):
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not there")
    port = free_port()
    process = started(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""], port, tmp_path)
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()


@pytest.fixture
def mysql_url(tmp_path):
    if not shutil.which("mariadbd") or not importlib.util.find_spec("pymysql"):
        pytest.skip("mariadb-server or pymysql is not there")
    port, data = free_port(), tmp_path / "mysql"
    data.mkdir()
    user = ["--user=root"] if os.geteuid() == 0 else []
    init = ["mariadb-install-db", f"--datadir={data}", "--auth-root-authentication-method=normal", *user]
    subprocess.run(init, check=True, capture_output=True)
    options = [f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", f"--socket={data}/s", *user]
    process = started(["mariadbd", "--no-defaults", *options], port, tmp_path)
    yield f"mysql://root@127.0.0.1:{port}/test"
    process.kill()
    process.wait()


PROXY = """
import sys, optuna
optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def grpc_url(tmp_path):
    pytest.importorskip("grpc")
    port = free_port()
    process = started([sys.executable, "-c", PROXY, f"sqlite:///{tmp_path}/behind.db", str(port)], port, tmp_path)
    yield f"grpc://127.0.0.1:{port}"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def storage_url(request, tmp_path):
    """Turn a storage's name, given indirectly, into the URL of an empty one."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").url
    if request.param in ("sqlite", "journal"):
        scheme = {"sqlite": "sqlite:///", "journal": "journal://"}[request.param]
        return f"{scheme}{tmp_path}/study.{request.param}"
    return request.getfixturevalue(f"{request.param}_url")


LOGGING_EVALUATOR = """
import os, time
from pathlib import Path

import numpy as np

import autonuq as nuq

HERE = Path(__file__).parent


class Top1(nuq.Evaluator):
    def __init__(self, evaluate_batch_num):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        data = np.load(HERE / "images.npz")
        self.images, self.labels = data["images"], data["labels"]

    def eval_model(self, model_file, weights_file, batch_num):
        with (HERE / "calls.log").open("a") as log:
            log.write(f"{os.getpid()} {Path(model_file).name} {hash(Path(weights_file).read_bytes())}\\n")
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        found = net.forward_all(data=self.images)["prob"].argmax(1)
        time.sleep(float(os.environ.get("PAUSE_S", 0)))
        return float((found == self.labels).mean())

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1
"""


@pytest.fixture
def logging_study(tiny_study, monkeypatch):
    """Give the tiny study an evaluator that knows the right answers from a file, and logs its calls."""
    from autonuq import Net

    folder = tiny_study.parent
    images = np.random.default_rng(0).standard_normal((32, 2, 8, 8), np.float32)
    labels = Net(folder / "tiny.prototxt", folder / "tiny.caffemodel").forward_all(data=images)["prob"].argmax(1)
    np.savez(folder / "images.npz", images=images, labels=labels)
    (folder / "evaluate.py").write_text(LOGGING_EVALUATOR)
    text = tiny_study.read_text().replace(":Agreement", ":Top1")
    tiny_study.write_text(text.replace("trials = 8", "trials = 14"))
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # the log's hashes are of several processes
    return tiny_study


@pytest.fixture
def task(tiny):
    return Task(
        name="tiny",
        source=ModelPair(tiny / "tiny.prototxt", tiny / "tiny.caffemodel"),
        evaluator=load_evaluator("evaluate.py:Agreement", tiny, 8),
        out=tiny / "out",
        storage=f"sqlite:///{tiny}/study.db",
        n_trials=3,
    )
