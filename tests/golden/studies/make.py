"""Make the studies of this folder; run by the version before the rooms were drawn anew (0.1.0, commit 4692d52).

    python make.py        # writes the network, the data, and what three studies leave behind
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from autonuq import Net
from autonuq.graph.files import load_graph, write_caffemodel

HERE = Path(__file__).parent
AUTONUQ = [sys.executable, "-c", "from autonuq.cli import main; main()"]


def write_network():
    """Write random weights and 48 images with the labels that the network gives them, a fifth of them wrong."""
    rng = np.random.default_rng(3)
    blobs = {"conv": [rng.laplace(scale=0.2, size=(6, 1, 3, 3))], "fc": [rng.laplace(size=(8, 54)), rng.normal(size=8)]}
    graph = load_graph(HERE / "net.prototxt")
    layers = [
        layer.with_(blobs=[blob.astype(np.float32) for blob in blobs.get(layer.name, [])]) for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), HERE / "net.caffemodel")
    images = rng.integers(0, 256, (192, 1, 8, 8), np.uint8)
    found = Net(HERE / "net.prototxt", HERE / "net.caffemodel").forward_all(data=images / np.float32(255))["prob"]
    labels = np.where(rng.random(192) < 0.2, rng.integers(0, 8, 192), found.argmax(1))
    np.savez_compressed(HERE / "images.npz", images=images, labels=labels)


def tune(name, *options, interrupt_after=None):
    """Run a study; after so many lines of its log, send it Ctrl-C, so that a queued trial with its plan is left."""
    process = subprocess.Popen([*AUTONUQ, "tune", f"{name}.toml", *options], cwd=HERE)
    log = HERE / "out" / name / f"{name}.log"
    while interrupt_after is not None and (not log.exists() or log.read_text().count("\n") < interrupt_after):
        time.sleep(0.02)
    if interrupt_after is not None:
        process.send_signal(signal.SIGINT)
    print(name, process.wait())


def keep(name):
    """Keep what a later run needs; the artifacts and the winner's files are written again."""
    out = HERE / "out" / name
    for path in sorted(out.iterdir()):
        if path.name not in ("calibration", "study.journal", "study.db"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (out / "calibration").glob("modified*"):
        path.unlink()


write_network()
os.environ["PAUSE_S"] = "0.3"
tune("journal", interrupt_after=6)
os.environ["PAUSE_S"] = "0"
tune("sqlite")
tune("raced")
for study in ("journal", "sqlite", "raced"):
    keep(study)
