"""Servers on loopback in temporary folders: what storages are tried with."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest


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


class Proxy:
    """Passes connections on to a port of loopback until the link is cut: then everything waits, and nobody is told."""

    def __init__(self, port):
        self._port, self._open = port, threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._open.clear()

    def mend(self):
        self._open.set()

    def _accept(self):
        with suppress(OSError):  # the test is over
            while True:
                near = self._listener.accept()[0]
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near):
        self._open.wait()
        with suppress(OSError):
            far = socket.create_connection(("127.0.0.1", self._port))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source, target):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._open.wait()
                target.sendall(data)
        self._open.wait()  # even an end is news
        for end in (source, target):
            with suppress(OSError):  # the other thread was first
                end.shutdown(socket.SHUT_RDWR)  # it may be waiting for data there, and keep a closed one open
            end.close()

    def close(self):
        self.mend()
        self._listener.close()
