"""What each idea of the compression core pays: contestants x networks, less than one point of top-1 lost.

    python studies/bench/ratio.py --shared ../shared [--networks lenet-fashion ...]

Every contestant is a family of plans with one parameter for the whole network (a number of levels, or one slope for
all layers' curves), loose to tight; the tightest that the full test set accepts is found by bisection. Sizes are bytes
that the entropy codec writes. AMCT-like contestants have no parameter: 32 or 16 levels in every layer.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from networks import BATCH, NETWORKS, Top1

from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import ModelPair, load_graph
from autonuq.quant.codebook import build_codebook, code_histogram
from autonuq.quant.codec import CODECS
from autonuq.quant.codecs import make_codec
from autonuq.quant.curve import build_curve
from autonuq.quant.points import OperatingPoints, build_points
from autonuq.runtime.moments import load_moments

CODEC = CODECS["entropy"]
SLOPES = np.geomspace(1e-9, 1e-2, 140)  # distortion, as a share of a layer's output energy, per byte saved
LEVELS = (256, 128, 96, 64, 48, 32, 24, 20, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2)


class Bench:
    """One network, prepared: quantized, calibrated, with the moments of its inputs."""

    def __init__(self, name: str, shared: Path, folder: Path) -> None:
        source = ModelPair(*(shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel")))
        self.evaluator, self.folder = Top1(NETWORKS[name](shared / "data")), folder
        self.original = self.evaluator.eval_model(source.model, source.weights, self.evaluator.evaluate_batch_num)
        graph = load_graph(source.model, source.weights)
        batches = min(10, len(self.evaluator.calibration) // BATCH)
        model = quantize(graph, default_config(graph, batch_num=batches))
        pair = ModelPair(folder / "modified_model.prototxt", folder / "modified.caffemodel")
        self.record = folder / "record.txt"
        write_calibration_model(model, pair, self.record, model.weights)
        self.evaluator.eval_model(pair.model, pair.weights, batches)
        self.model = calibrated(model, self.record)
        self.original_bytes = sum(4 * uniform.codes.size for uniform in self.model.weights.values())

    def ratio(self, codes) -> float:
        sizes = [make_codec(CODEC.name, values.shape).size_bytes(values) for values in codes.values()]
        return self.original_bytes / sum(sizes)

    def drop(self, codes) -> float:
        """Score a network of these codes."""
        pair = ModelPair(self.folder / "t.prototxt", self.folder / "t.caffemodel")
        weights = {name: replace(self.model.weights[name], codes=values) for name, values in codes.items()}
        write_fake_quant(Candidate(replace(self.model, weights=weights)), pair)
        metric = self.evaluator.eval_model(pair.model, pair.weights, self.evaluator.evaluate_batch_num)
        return self.original - metric


def with_levels(bench: Bench, levels: int):
    """Plain k-means, exact, over the counts: what AMCT's documents describe."""
    return {
        name: build_codebook(code_histogram(uniform.codes), levels).apply(uniform.codes)
        for name, uniform in bench.model.weights.items()
    }


def by_slope(points: dict[str, OperatingPoints]) -> list[dict[str, np.ndarray]]:
    """One plan a slope, equal ones once."""
    plans = []
    for slope in SLOPES:
        plan = {
            name: int(np.argmin(found.curve.distortions + slope * found.curve.rates_bytes))
            for name, found in points.items()
        }
        if plan not in plans:
            plans.append(plan)
    return [{name: points[name].codes[index] for name, index in plan.items()} for plan in plans]


def curves(bench: Bench, *, feedback: bool = False, importance: bool = False) -> dict[str, OperatingPoints]:
    """Operating points of every layer, with as much knowledge of the inputs as asked for."""
    found = {}
    for name, uniform in bench.model.weights.items():
        weights, moments = bench.model.graph.by_name[name].blobs[0], load_moments(bench.record, name)
        if feedback or not importance or moments is None:
            found[name] = build_points(name, weights, uniform, CODEC, moments=moments if feedback else None)
            continue
        second = (np.diag(moments.sums) / moments.samples).reshape(1, *uniform.codes.shape[1:])
        curve = build_curve(name, uniform.codes, CODEC, scale_like=uniform.scale_like(), second_moments=second)
        energy = float(np.sum(uniform.scale_like() ** 2 * second * uniform.codes.astype(float) ** 2))
        codes = np.stack([codebook.apply(uniform.codes) for codebook in curve.codebooks])
        shares = type(curve)(name, curve.rates_bytes, curve.distortions / energy, curve.codebooks)
        found[name] = OperatingPoints(shares, codes)
    return found


def tightest(bench: Bench, plans) -> tuple[float, float, int]:
    """Bisect a family, loose to tight, for the tightest plan that loses less than a point."""
    low, high, evaluations, best = 0, len(plans), 0, (0.0, 0.0)
    while low < high:
        middle = (low + high) // 2
        drop = bench.drop(plans[middle])
        evaluations += 1
        if drop < 1:
            best, low = (bench.ratio(plans[middle]), drop), middle + 1
        else:
            high = middle
    return *best, evaluations


CONTESTANTS: dict[str, Callable[[Bench], list[dict[str, np.ndarray]]]] = {
    "int8": lambda bench: [{name: uniform.codes for name, uniform in bench.model.weights.items()}],
    "AMCT-like, 32 levels": lambda bench: [with_levels(bench, 32)],
    "AMCT-like, 16 levels": lambda bench: [with_levels(bench, 16)],
    "k-means, one k": lambda bench: [with_levels(bench, levels) for levels in LEVELS],
    "entropy-constrained": lambda bench: by_slope(curves(bench)),
    "+ importance of inputs": lambda bench: by_slope(curves(bench, importance=True)),
    "+ error feedback": lambda bench: by_slope(curves(bench, feedback=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, codec {CODEC.name}")
    print("| network | contestant | ratio | drop | evaluations | s |\n|---|---|---:|---:|---:|---:|")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, arguments.shared, Path(folder))
            for contestant, family in CONTESTANTS.items():
                started = time.perf_counter()
                plans = family(bench)
                if len(plans) == 1:
                    ratio, drop, evaluations = bench.ratio(plans[0]), bench.drop(plans[0]), 1
                else:
                    ratio, drop, evaluations = tightest(bench, plans)
                seconds = time.perf_counter() - started
                figures = f"{ratio:.2f}x | {drop:.2f} | {evaluations} | {seconds:.1f}"
                print(f"| {name} | {contestant} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
