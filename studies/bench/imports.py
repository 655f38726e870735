"""What it costs to import the package and to start its command, as ratios to the libraries that nothing does without.

    python studies/bench/imports.py [--runs 15]

CPU time (user and system) of a fresh interpreter, which the kernel accounts to it; runs alternate, medians count. The
first line of the table is the measure of the others. `status` is of a study in a journal with two trials, `inspect` of
a network of three layers. PYTHONPATH chooses the checkout that is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from autonuq.graph.files import load_graph, write_caffemodel

MEASURE = "import numpy, google.protobuf"
SEED = 3

PROTOTXT = """
input: "data" input_dim: 1 input_dim: 2 input_dim: 8 input_dim: 8
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 10 } }
"""
EVALUATOR = """
class Same:
    def __init__(self, evaluate_batch_num):
        self.evaluate_batch_num = evaluate_batch_num

    def eval_model(self, model_file, weights_file, batch_num):
        import numpy as np

        from autonuq import Net

        net = Net(model_file, weights_file, 1)
        for _ in range(batch_num):
            net.forward(data=np.ones((1, 2, 8, 8), np.float32))
        return 1.0

    def is_satisfied(self, original_metric, new_metric):
        return True
"""
STUDY = """
name = "tiny"
[model]
prototxt = "tiny.prototxt"
weights = "tiny.caffemodel"
[evaluator]
class = "evaluate.py:Same"
evaluate_batch_num = 1
[search]
trials = 2
"""


def command(*arguments):
    return f"import sys; sys.argv = {['autonuq', *arguments]}; from autonuq.cli import main; main()"


CASES = {
    MEASURE: MEASURE,
    "pass": "pass",
    "import autonuq": "import autonuq",
    "autonuq --version": command("--version"),
    "autonuq --help": command("--help"),
    "autonuq tune --help": command("tune", "--help"),
    "autonuq inspect": command("inspect", "tiny.prototxt", "tiny.caffemodel"),
    "autonuq status": command("status", "study.toml"),
    "autonuq.Net": "import autonuq; autonuq.Net",
    "autonuq.tune": "import autonuq; autonuq.tune",
    "import optuna": "import optuna",
    "import typer": "import typer",
}


def write_study(folder):
    """Write a network of three layers and tune it."""
    for name, text in (("tiny.prototxt", PROTOTXT), ("evaluate.py", EVALUATOR), ("study.toml", STUDY)):
        (folder / name).write_text(text)
    rng = np.random.default_rng(SEED)
    shapes = {"conv": [(8, 2, 3, 3), (8,)], "fc": [(10, 288), (10,)]}
    graph = load_graph(folder / "tiny.prototxt")
    layers = [
        layer.with_(blobs=[rng.laplace(size=shape).astype(np.float32) for shape in shapes.get(layer.name, [])])
        for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), folder / "tiny.caffemodel")
    subprocess.run([sys.executable, "-c", command("tune", "study.toml")], cwd=folder, capture_output=True, check=True)


def cpu_s(code, folder):
    """Return user and system time of a fresh interpreter that runs the code, and its exit code."""
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, child.returncode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    spent = {name: [] for name in CASES}
    failed = set()
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder))
        for _ in range(runs + 1):  # the first fills the caches of files and bytecode
            for name, code in CASES.items():
                seconds, exit_code = cpu_s(code, folder)
                spent[name].append(seconds)
                if exit_code:
                    failed.add(name)
    base = median(spent[MEASURE][1:])
    versions = " ".join(f"{name} {version(name)}" for name in ("numpy", "protobuf", "optuna", "onnx", "typer"))
    place = importlib.util.find_spec("autonuq").origin
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{place}, {runs} runs\n")
    print(f"{'':32}{'CPU, ms':>10}{'ratio':>8}")
    for name, seconds in spent.items():
        note = "  (failed)" if name in failed else ""
        print(f"{name:32}{1e3 * median(seconds[1:]):10.0f}{median(seconds[1:]) / base:8.2f}{note}")


if __name__ == "__main__":
    main()
