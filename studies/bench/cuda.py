"""The same networks on the CPU and on an NVIDIA GPU: results, time of a pass, a study.

    python studies/bench/cuda.py --shared ../shared [--networks resnet20-fashion ...] [--images 64] [--batch 8]
                                 [--trials 10] [--seed 0]

It needs an environment of its own with onnxruntime-gpu in place of onnxruntime, and says so where it has none. Of each
network, plain and fake-quant: equal decisions, largest difference over the largest value, wall milliseconds of a pass.
Of a study on each device, whose metric is the share of decisions that are the original network's: its best ratio, that
plan's metric, seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from fake_quant_pair import calibrate, shaped_net, write_pairs
from speed_networks import NETWORKS, decisions

import autonuq as nuq
from autonuq import pycaffe
from autonuq.graph.files import ModelPair
from autonuq.graph.model import Array
from autonuq.runtime.device import find_accelerator

CHOSEN = ("resnet20-fashion", "squeezenet-v1.0", "efficientnet-lite0", "resnet50-shape")
DEVICES: dict[str, Callable[[], None]] = {"CPU": pycaffe.set_mode_cpu, "GPU": pycaffe.set_mode_gpu}
REPEATS = 5
LOST = 0.02  # share of decisions that a study may change


def batches(net: nuq.Net, images: Array, count: int) -> Iterator[Array]:
    """Return the scores of each whole batch."""
    for start in range(0, len(images) - count + 1, count):
        yield net.forward(**{net.inputs[0]: images[start : start + count]})[net.outputs[-1]].copy()


class Agreement(nuq.Evaluator):
    """Share of decisions that are those of the network that was scored first."""

    def __init__(self, images: Array, batch: int, classes: int):
        super().__init__(evaluate_batch_num=len(images) // batch)
        self.images, self.batch, self.classes = images, batch, classes
        self.original = None

    def eval_model(self, model_file, weights_file, batch_num):
        net = shaped_net(ModelPair(Path(model_file), Path(weights_file)), self.batch)
        scores = np.concatenate(list(batches(net, self.images[: batch_num * self.batch], self.batch)))
        found = decisions(scores, self.classes)
        if self.original is None:
            self.original = found
        return float(np.mean(found == self.original[: len(found)]))

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric <= LOST


def compare_passes(name: str, kind: str, pair: ModelPair, images: Array, batch: int) -> str:
    """Return a row: both devices' scores of all images and time of a pass."""
    scores, milliseconds = {}, {}
    for device, select in DEVICES.items():
        select()
        net, times = shaped_net(pair, batch), []
        scores[device] = np.concatenate(list(batches(net, images, batch)))
        for _ in range(REPEATS):
            begin = time.perf_counter()
            next(batches(net, images, batch))
            times.append((time.perf_counter() - begin) * 1e3)
        milliseconds[device] = statistics.median(times)
    classes = NETWORKS[name].classes
    same = np.mean(decisions(scores["CPU"], classes) == decisions(scores["GPU"], classes))
    far = np.abs(scores["CPU"] - scores["GPU"]).max() / np.abs(scores["CPU"]).max()
    return f"| {name} | {kind} | {same:.2%} | {far:.1e} | {milliseconds['CPU']:.2f} | {milliseconds['GPU']:.2f} |"


def compare_studies(name: str, pair: ModelPair, images: Array, options: argparse.Namespace, folder: Path) -> str:
    """Return a row: a study on each device."""
    cells = []
    for device, select in DEVICES.items():
        select()
        evaluator, begin = Agreement(images, options.batch, NETWORKS[name].classes), time.perf_counter()
        study = nuq.tune(
            pair.model, pair.weights, evaluator, out=folder / device, n_trials=options.trials, batch_num=1,
            seed=options.seed,
        )  # fmt: skip
        best = study.record().best
        found = "nothing | -" if best is None else f"{best.ratio:.2f}x | {best.metric:.2%}"
        cells.append(f"{found} | {time.perf_counter() - begin:.0f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(CHOSEN))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        provider = find_accelerator()
    except nuq.RuntimeFailure as error:
        sys.exit(f"Nothing was compared: {error}.")
    print(f"onnxruntime {onnxruntime.__version__}, {provider}, {options.images} images in batches of {options.batch}\n")
    print("| network | pair | same decisions | largest difference | CPU, ms | GPU, ms |\n|---|---|---:|---:|---:|---:|")
    studies = []
    for name in options.networks:
        with tempfile.TemporaryDirectory() as place:
            folder, network = Path(place), NETWORKS[name]
            images = network.some_images(options.images, options.shared, options.seed)
            pair = network.write(name, options.shared, folder, options.seed)
            pycaffe.set_mode_cpu()
            pairs = write_pairs(calibrate(pair, images[: options.batch], folder), pair, folder)
            for kind, (first, _) in pairs.items():
                print(compare_passes(name, kind, first, images, options.batch), flush=True)
            studies.append(compare_studies(name, pair, images, options, folder))
    print("\n| network | CPU: ratio | metric | s | GPU: ratio | metric | s |\n|---|---:|---:|---:|---:|---:|---:|")
    print(*studies, sep="\n")


if __name__ == "__main__":
    main()
