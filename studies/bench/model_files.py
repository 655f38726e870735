"""Time and memory of loading and writing model files, as ratios to reading and copying their bytes.

    python studies/bench/model_files.py [--seed 0] [--repeats 7] [--model deploy.prototxt]

The network is ResNet-50-shaped (random weights, 102 MB); every figure is the median of the repeats, taken in turn in
one process, so that a busy machine hits both sides of a ratio. Memory is what the process's peak grows by, in a fresh
process each. Files are in the page cache; written ones are flushed to the disk (fsync) on both sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import google.protobuf
import numpy as np

from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph, write_caffemodel
from autonuq.graph.layers import blob_shapes, infer_shapes

MODEL = Path(__file__).parent / "data/resnet50.prototxt"
MEASURE = """
import sys
from pathlib import Path
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph, write_caffemodel
model, weights, out = map(Path, sys.argv[2:])
load_graph(model)
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
graph = load_graph(model, weights) if sys.argv[1] == "graph" else None
Path("/proc/self/clear_refs").write_text("5")
before = peak()
if sys.argv[1] == "load":
    graph = load_graph(model, weights)
elif sys.argv[1] == "graph":
    write_caffemodel(graph, out)
else:
    stored = load_caffemodel(weights)
    stored.write(out, {name: [blob.values * 2 for blob in stored[name]] for name in list(stored)[:20]})
print(peak() - before)
"""


def write_random_weights(model: Path, path: Path, seed: int) -> None:
    """Fill the network with random weights and write them."""
    graph = load_graph(model)
    shapes, rng = infer_shapes(graph), np.random.default_rng(seed)
    layers = [
        layer.with_(blobs=[rng.standard_normal(shape, np.float32) for shape in blob_shapes(graph, layer, shapes)])
        for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), path)


def copy(source: Path, target: Path) -> None:
    """Copy a file as shutil does, and flush it to the disk."""
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def medians(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time the actions in turn, once to warm up; seconds."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            result = action()
            times[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_growth(what: str, *paths: Path) -> int:
    """Return by how many bytes a fresh process's peak memory grows."""
    command = [sys.executable, "-c", MEASURE, what, *map(str, paths)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", type=Path, default=MODEL)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        weights, out, copied = (Path(name) / file for file in ("in.caffemodel", "out.caffemodel", "copy"))
        write_random_weights(given.model, weights, given.seed)
        graph, stored = load_graph(given.model, weights), load_caffemodel(weights)
        rng = np.random.default_rng(given.seed)
        doubled = {layer.name: [blob * 2 for blob in layer.blobs] for layer in graph.layers if layer.blobs}
        half = {name: blobs for name, blobs in doubled.items() if rng.random() < 0.5}
        changed = graph.with_layers(layer.with_(blobs=doubled.get(layer.name, ())) for layer in graph.layers)
        size = weights.stat().st_size
        actions = {
            "read the bytes": weights.read_bytes,
            "load both, make the graph": lambda: load_graph(given.model, weights),
            "copy and flush": lambda: copy(weights, copied),
            "write the graph, all changed": lambda: write_caffemodel(changed, out),
            "write back, all changed": lambda: stored.write(out, doubled),
            "write back, half changed": lambda: stored.write(out, half),
            "write back, equal copies": lambda: stored.write(
                out, {n: [b.values.copy() for b in stored[n]] for n in stored}
            ),
        }
        times = medians(actions, given.repeats)
        memory = {
            "load both, make the graph": peak_growth("load", given.model, weights, out),
            "write the graph, all changed": peak_growth("graph", given.model, weights, out),
            "load, write back with 20 layers changed": peak_growth("edit", given.model, weights, out),
        }
    print(f"caffemodel of {size / 1e6:.1f} MB; Python {platform.python_version()}, NumPy {np.__version__}, ", end="")
    print(f"protobuf {google.protobuf.__version__}, {os.cpu_count()} x {platform.machine()}, seed {given.seed}\n")
    print("| time | ms | ratio | limit |\n|---|---|---|---|")
    for action, seconds in times.items():
        base = times["copy and flush" if "write" in action or "copy" in action else "read the bytes"]
        print(f"| {action} | {seconds * 1e3:.0f} | {seconds / base:.2f} | {'' if seconds == base else '4'} |")
    print("\n| peak memory grows by | MB | / file | limit |\n|---|---|---|---|")
    for action, grown in memory.items():
        print(f"| {action} | {grown / 1e6:.1f} | {grown / size:.2f} | {'1.5' if 'load both' in action else ''} |")


if __name__ == "__main__":
    main()
