"""A small network that every room's tests can use, made on the spot."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from chip_network import MARK_BYTES, write_chip_network
from threadpoolctl import threadpool_limits

from autonuq.cli import main
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import ModelPair, load_graph, write_caffemodel
from autonuq.study.task import Task

pytest_plugins = ("servers",)

# Whoever runs the tests behind a shell's `&` ignores Ctrl-C, and so would every program that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # each worker has a core: threads would wait for each other
        threadpool_limits(limits=1)


TINY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" batch_norm_param { use_global_stats: true } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

EVALUATOR = '''
"""Agreement of the network's decisions with recorded ones."""
from pathlib import Path

import numpy as np

import autonuq as nuq


class Agreement(nuq.Evaluator):
    limit = 0.1

    def __init__(self, evaluate_batch_num=8):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        self.images = np.random.default_rng(5).standard_normal((8, 4, 2, 8, 8), np.float32)
        self.calls = []

    def eval_model(self, model_file, weights_file, batch_num):
        self.calls.append((Path(model_file).name, batch_num))
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        labels = [net.forward(data=images)["prob"].argmax(1) for images in self.images[:batch_num]]
        if not hasattr(self, "labels"):
            self.labels = labels
        return float(np.mean([a == b for a, b in zip(labels, self.labels)]))

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < self.limit
'''


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Write tiny.prototxt, tiny.caffemodel and evaluate.py to a folder and return it."""
    (tmp_path / "tiny.prototxt").write_text(TINY)
    (tmp_path / "evaluate.py").write_text(EVALUATOR)
    rng = np.random.default_rng(3)
    blobs = {
        "conv": [rng.laplace(scale=0.2, size=(8, 2, 3, 3))],
        "bn": [rng.normal(size=8), rng.uniform(50, 100, 8), np.array([99.0])],
        "scale": [rng.uniform(0.5, 2, 8), rng.normal(size=8)],
        "fc": [rng.laplace(scale=0.1, size=(10, 128)), rng.normal(size=10)],
    }
    graph = load_graph(tmp_path / "tiny.prototxt")
    layers = [
        layer.with_(blobs=[blob.astype(np.float32) for blob in blobs.get(layer.name, [])]) for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), tmp_path / "tiny.caffemodel")
    return tmp_path


@pytest.fixture
def tiny_study(tiny: Path) -> Path:
    """Add study.toml to the folder of `tiny` and return its path."""
    path = tiny / "study.toml"
    path.write_text(
        'name = "tiny"\n'
        '[model]\nprototxt = "tiny.prototxt"\nweights = "tiny.caffemodel"\n'
        '[evaluator]\nclass = "evaluate.py:Agreement"\nevaluate_batch_num = 8\n'
        "[search]\ntrials = 8\n"
    )
    return path


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
def chip_network(tiny, monkeypatch):
    """Put a network in the place of `tiny` of which every chip's compiler marks the layer `large` alone."""
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", MARK_BYTES)
    write_chip_network(tiny)
    return tiny
