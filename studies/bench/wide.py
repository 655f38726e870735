"""What it takes to get to the first trial on the shapes of the classics: VGG-16, AlexNet, ResNet-50, random weights.

    python studies/bench/wide.py [--networks vgg16 alexnet resnet50] [--images 64] [--folder FOLDER]

Each network runs `tune` for one trial in a process of its own. Shown are the seconds until then, and over what may be
asked (20 forward passes over the calibration images and 60 s for 10 M weights); the largest resident memory, and the
most that the study's folder held at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import autonuq as nuq
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes

BATCH = 8
RESNET = Path(__file__).parent / "data/resnet50.prototxt"


def convolution(name: str, bottom: str, outputs: int, kernel: int, **more: int) -> str:
    settings = " ".join(f"{key}: {value}" for key, value in {"kernel_size": kernel, **more}.items())
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} {settings} }} }}\n"
        f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'
    )


def pooling(name: str, bottom: str, kernel: int) -> str:
    window = f"pool: MAX kernel_size: {kernel} stride: 2"
    return f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}" pooling_param {{ {window} }} }}\n'


def classifier(bottom: str) -> Iterator[str]:
    for name, outputs in (("fc6", 4096), ("fc7", 4096), ("fc8", 1000)):
        product = f"inner_product_param {{ num_output: {outputs} }}"
        yield f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {product} }}\n'
        if name != "fc8":
            yield f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'
        bottom = name
    yield 'layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }\n'


def head(size: int) -> str:
    shape = f"shape {{ dim: {BATCH} dim: 3 dim: {size} dim: {size} }}"
    return f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'


def vgg16() -> str:
    text, bottom = head(224), "data"
    for stage, (count, outputs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for index in range(1, count + 1):
            text += convolution(f"conv{stage}_{index}", bottom, outputs, 3, pad=1)
            bottom = f"conv{stage}_{index}"
        text += pooling(f"pool{stage}", bottom, 2)
        bottom = f"pool{stage}"
    return text + "".join(classifier(bottom))


def alexnet() -> str:
    return (
        head(227)
        + convolution("conv1", "data", 96, 11, stride=4)
        + pooling("pool1", "conv1", 3)
        + convolution("conv2", "pool1", 256, 5, pad=2, group=2)
        + pooling("pool2", "conv2", 3)
        + convolution("conv3", "pool2", 384, 3, pad=1)
        + convolution("conv4", "conv3", 384, 3, pad=1, group=2)
        + convolution("conv5", "conv4", 256, 3, pad=1, group=2)
        + pooling("pool5", "conv5", 3)
        + "".join(classifier("pool5"))
    )


NETWORKS = {"vgg16": vgg16, "alexnet": alexnet, "resnet50": RESNET.read_text}


def write_network(folder: Path, text: str) -> tuple[Path, Path]:
    """Write a network whose weights keep the size of what goes through them."""
    model, weights = folder / "net.prototxt", folder / "net.caffemodel"
    model.write_text(text)
    graph, rng = load_graph(model), np.random.default_rng(0)
    shapes, layers = infer_shapes(graph), []
    for layer in graph.layers:
        blobs = []
        for index, shape in enumerate(blob_shapes(graph, layer, shapes)):
            if layer.type == "BatchNorm":
                blobs.append(np.ones(shape, np.float32) if index else np.zeros(shape, np.float32))
            elif index == 0 and len(shape) > 1:
                blobs.append(rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5))
            else:
                blobs.append(np.full(shape, 1.0 if layer.type == "Scale" and index == 0 else 0.0, np.float32))
        layers.append(layer.with_(blobs=tuple(blobs)) if blobs else layer)
    write_model(graph.with_layers(layers), model, weights)
    return model, weights


class Agreement(nuq.Evaluator):
    """Share of random images whose decision is the original network's."""

    def __init__(self, images: int):
        super().__init__(evaluate_batch_num=1)
        self.images = images
        self.decisions = None
        self.forward_s = 0.0

    def eval_model(self, model_file, weights_file, batch_num):
        net, rng, found = nuq.Net(model_file, weights_file), np.random.default_rng(0), []
        (blob,) = net.inputs
        net.blobs[blob].reshape(BATCH, *net.blobs[blob].shape[1:])
        net.reshape()
        started = time.monotonic()
        for _ in range(batch_num):
            images = rng.standard_normal(net.blobs[blob].shape, np.float32)
            (output,) = net.forward(**{blob: images}).values()
            found += output.reshape(BATCH, -1).argmax(axis=1).tolist()
        if self.decisions is None:
            self.forward_s = (time.monotonic() - started) / batch_num * self.images / BATCH
            self.decisions = found
        return float(np.mean([one == other for one, other in zip(found, self.decisions, strict=False)]))

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 2


def run(name: str, folder: Path, images: int) -> None:
    """Run one network's study and print its row."""
    model, weights = write_network(folder, NETWORKS[name]())
    weight_count = weights.stat().st_size / 4
    evaluator, done, peak = Agreement(images), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.5):
            with contextlib.suppress(FileNotFoundError):  # gone in the meantime
                files = [path.stat() for path in (folder / "out").rglob("*") if path.is_file()]
                held = sum({file.st_ino: 512 * file.st_blocks for file in files}.values())  # links once
                peak[0] = max(peak[0], held)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started, stages = time.monotonic(), {}

    def tell(progress) -> None:
        stages[progress.stage] = time.monotonic() - started

    nuq.tune(model, weights, evaluator, out=folder / "out", n_trials=1, batch_num=images // BATCH, on_progress=tell)
    seconds = time.monotonic() - started
    done.set()
    allowed = 20 * evaluator.forward_s + 60 * weight_count / 1e7
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"| {name} | {weight_count / 1e6:.1f} M | {evaluator.forward_s:.0f} s | {stages.get('calibration', 0):.0f} s | "
        f"{stages.get('curves', 0):.0f} s | {seconds:.0f} s | {seconds / allowed:.2f} | {memory:.2f} GB | "
        f"{peak[0] / 1e9:.2f} GB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        run(options.networks[0], options.folder, options.images)
        return
    print("| network | weights | forward | calibrated | curves | first trial | of allowed | memory | folder |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in options.networks:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            again = [sys.executable, __file__, "--alone", "--networks", name, "--images", str(options.images)]
            subprocess.run([*again, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
