"""A small network that every room's tests can use, made on the spot."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from chip_network import MARK_BYTES, write_chip_network
from hypothesis import settings
from threadpoolctl import threadpool_limits
from tiny_network import write_tiny, write_tiny_study

from autonuq.cli import main
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import ModelPair
from autonuq.graph.hosted.permission import python_layers
from autonuq.study.task import Task

pytest_plugins = ("servers",)

# The same examples in every run; others with `--hypothesis-profile=random`, and many in `studies/bench/campaign`.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("fixed")

# Whoever runs the tests behind a shell's `&` ignores Ctrl-C, and so would every program that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # each worker has a core: threads would wait for each other
        threadpool_limits(limits=1)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Write tiny.prototxt, tiny.caffemodel and evaluate.py to a folder and return it."""
    write_tiny(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_study(tiny: Path) -> Path:
    """Add study.toml to the folder of `tiny` and return its path."""
    return write_tiny_study(tiny)


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


@pytest.fixture
def python_layers_run():
    """Let networks run the `Python` layers that they name, for a test."""
    with python_layers(True):
        yield


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    """Work in the test's folder, where AMCT's calls leave their log, with a quiet screen, and return it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMCT_LOG_LEVEL", "ERROR")
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real networks and recordings beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).parent.parent.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("the folder with real networks is not there")
    return folder


@pytest.fixture
def run(tiny, run_in):
    """Run a command in the folder of `tiny`, in this process; return it as a finished process."""
    return partial(run_in, tiny)


@pytest.fixture
def run_in(monkeypatch, capsys):
    """Run a command in a folder, in this process; return it as a finished process."""

    def call(folder, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["autonuq", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = 0 if ended.value.code is None else ended.value.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


@pytest.fixture
def two_gigabytes():
    """Let this process take 2 GB more than it has, and no more; on Linux, where such a limit counts."""
    if sys.platform != "linux":
        yield
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def chip_network(tiny, monkeypatch):
    """Put a network in the place of `tiny` of which every chip's compiler marks the layer `large` alone."""
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", MARK_BYTES)
    write_chip_network(tiny)
    return tiny
