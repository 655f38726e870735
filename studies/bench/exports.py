"""One table of metrics: what every exported format scores on the five real networks, and how large the ONNX files are.

    python studies/bench/exports.py --shared FOLDER [NETWORK ...]

Each network is tuned for a few trials, the best plan (or the most exact, if none satisfies) is exported in all formats,
and every format is scored on the same images where people run it: our runtime, OpenCV, plain onnxruntime.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from networks import BATCH, NETWORKS, Top1

import autonuq as nuq
from autonuq.compress.formats import FORMATS, onnx_file, pycaffe_pair, weights_only_pair
from autonuq.compress.outputs import fake_quant_pair
from autonuq.graph.files import ModelPair
from autonuq.storage.open import default_url
from autonuq.study.run import StudyRun
from autonuq.study.task import Task

TRIALS = 4
SEARCHED = 1000  # images that the study looks at; the table is of all
COLUMNS = (
    "network", "ratio", "float", "fake-quant", "Python layers", "largest difference", "weights only", "OpenCV",
    "ONNX", "ONNX codebook", "int8 bytes", "codebook bytes", "size ratio", "fixed-length ratio",
)  # fmt: skip


def scores(net, images):
    """Return what a net says of every image, shape (N, classes)."""
    (name,), (output,) = net.inputs, net.outputs
    net.blobs[name].reshape(BATCH, *images.shape[1:])
    net.reshape()
    batches = range(0, len(images), BATCH)
    return np.concatenate(
        [net.forward(**{name: images[i : i + BATCH]})[output].reshape(BATCH, -1).copy() for i in batches]
    )


def opencv_scores(pair, images):
    net = cv2.dnn.readNetFromCaffe(str(pair.model), str(pair.weights))
    found = []
    for i in range(0, len(images), BATCH):
        net.setInput(images[i : i + BATCH].astype(np.float32))
        found.append(net.forward().reshape(BATCH, -1).copy())
    return np.concatenate(found)


def onnx_scores(path, images):
    """Score in batches of the size that the file was exported for."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    size = entry.shape[0]
    missing = -len(images) % size
    filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]))]).astype(np.float32)
    parts = [session.run(None, {entry.name: filled[i : i + size]})[0] for i in range(0, len(filled), size)]
    return np.concatenate([part.reshape(size, -1) for part in parts])[: len(images)]


def fixed_length_ratio(study, trial):
    """Return how much smaller int8 codes become with ceil(log2 levels) bits each."""
    record = study.record()
    levels = record.layer_levels(trial)
    sizes = {layer.name: layer.weights for layer in record.layers if layer.treatment != "float"}
    bits = {name: max(1, int(np.ceil(np.log2(levels.get(name, 256))))) for name in sizes}
    return sum(sizes.values()) / sum(size * bits[name] / 8 for name, size in sizes.items())


def row(name, shared, folder):
    data = NETWORKS[name](shared / "data")
    images, labels, calibration = data
    whole = len(images) // BATCH * BATCH
    images, labels = images[:whole], labels[:whole]
    source = [shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel")]
    evaluator = Top1((images[:SEARCHED], labels[:SEARCHED], calibration))
    task = Task(
        name=name,
        source=ModelPair(*source),
        evaluator=evaluator,
        out=folder,
        storage=default_url(folder),
        n_trials=TRIALS,
        batch_num=min(2, len(calibration) // BATCH),
    )
    run = StudyRun(task)
    study = run.run(exists=False)
    prefix = str(folder / "net")
    trials = [trial for trial in study.record().trials if trial.state == "complete"]
    chosen = study.record().best or max(trials, key=lambda trial: trial.metric)
    run.export(study, chosen.number, formats=FORMATS, prefix=prefix)
    fake, python = fake_quant_pair(prefix), pycaffe_pair(prefix)
    plain, hosted = scores(nuq.Net(*source), images), scores(nuq.Net(python.model, python.weights), images)
    quantized = scores(nuq.Net(fake.model, fake.weights), images)
    only = weights_only_pair(prefix)
    found = {
        "float": plain,
        "fake-quant": quantized,
        "Python layers": hosted,
        "weights only": scores(nuq.Net(only.model, only.weights), images),
        "OpenCV": opencv_scores(only, images),
        "ONNX": onnx_scores(onnx_file(prefix), images),
        "ONNX codebook": onnx_scores(onnx_file(prefix, codebooks=True), images),
    }
    shown = {key: f"{100 * np.mean(values.argmax(1) == labels):.2f}" for key, values in found.items()}
    int8, codebook = (onnx_file(prefix, codebooks=which).stat().st_size for which in (False, True))
    return shown | {
        "network": name,
        "ratio": f"{chosen.ratio:.1f}x",
        "largest difference": f"{np.abs(hosted - quantized).max():.1e}",
        "int8 bytes": f"{int8:,}",
        "codebook bytes": f"{codebook:,}",
        "size ratio": f"{int8 / codebook:.2f}",
        "fixed-length ratio": f"{fixed_length_ratio(study, chosen):.2f}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("networks", nargs="*")
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", sep="\n", flush=True)
    for name in options.networks or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            found = row(name, options.shared, Path(folder))
        print("| " + " | ".join(found[column] for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
