"""What each idea of the compression core pays: contestants x networks, less than one point of top-1 lost.

    python studies/bench/ratio.py --shared ../shared [--networks lenet-fashion ...] [--images 1000]

Every contestant is a family of plans with one parameter for the whole network (a number of levels, or one slope for
all layers' curves), loose to tight; the tightest that the full test set accepts is found by bisection. Sizes are bytes
that the entropy codec writes. AMCT-like contestants have no parameter: 32 or 16 levels in every layer. KL is the mean
divergence of the results from the float network's, on the test set. `--images` limits the calibration.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from networks import BATCH, NETWORKS, Top1

import autonuq as nuq
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate, Made
from autonuq.compress.in_order import NetworkBuilder
from autonuq.compress.operating_points import layers_behind_weights
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import default_config, quantize
from autonuq.compress.ways import ChosenWay, choose_way
from autonuq.graph.files import ModelPair, load_graph
from autonuq.quant.codebook import build_codebook, code_histogram
from autonuq.quant.codec import CODECS, EntropyCodec
from autonuq.quant.curve import build_curve
from autonuq.quant.points import OperatingPoints, Tuning, build_points
from autonuq.runtime.inputs import load_inputs, request_inputs
from autonuq.runtime.moments import load_moments

CODEC = CODECS["entropy"]
SLOPES = np.geomspace(1e-9, 1e-2, 140)  # distortion, over that of no weights at all, per byte saved
LEVELS = (256, 128, 96, 64, 48, 32, 24, 20, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2)


class Bench:
    """One network, prepared: quantized, calibrated, with the moments of its inputs and the inputs themselves."""

    def __init__(self, name: str, shared: Path, folder: Path, images: int | None = None) -> None:
        source = ModelPair(*(shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel")))
        self.evaluator, self.folder = Top1(NETWORKS[name](shared / "data")), folder
        self.original = self.evaluator.eval_model(source.model, source.weights, self.evaluator.evaluate_batch_num)
        self.probabilities = np.concatenate(list(self._outputs(source)))
        graph = load_graph(source.model, source.weights)
        batches = min(10, len(self.evaluator.calibration) // BATCH, (images or 1000) // BATCH)
        model = quantize(graph, default_config(graph, batch_num=batches))
        pair = ModelPair(folder / "modified_model.prototxt", folder / "modified.caffemodel")
        self.record = folder / "record.txt"
        write_calibration_model(model, pair, self.record, model.weights)
        request_inputs(self.record)
        self.evaluator.eval_model(pair.model, pair.weights, batches)
        self.model = calibrated(model, self.record)
        self.passes = load_inputs(self.record)
        self.behind = layers_behind_weights(self.model.graph)
        self.original_bytes = sum(4 * uniform.codes.size for uniform in self.model.weights.values())

    @cached_property
    def way(self) -> ChosenWay:
        return choose_way(self.model, self.record, self.passes)

    @cached_property
    def builder(self) -> NetworkBuilder:
        return NetworkBuilder(self.model, self.passes)

    def ratio(self, candidate: Candidate, contexts: bool) -> float:
        sizes = []
        for name in self.model.weights:
            codes = candidate.codes(name)
            sizes.append((EntropyCodec(codes.shape) if contexts else CODEC).size_bytes(codes))
        return self.original_bytes / sum(sizes)

    def score(self, candidate: Candidate) -> tuple[float, float]:
        """Return the points that a network loses, and its KL."""
        pair = ModelPair(self.folder / "t.prototxt", self.folder / "t.caffemodel")
        write_fake_quant(candidate, pair)
        metric = self.evaluator.eval_model(pair.model, pair.weights, self.evaluator.evaluate_batch_num)
        own, changed = self.probabilities, np.concatenate(list(self._outputs(pair)))
        terms = own * (np.log(np.maximum(own, 1e-12)) - np.log(np.maximum(changed, 1e-12)))
        return self.original - metric, float(terms.sum(axis=1).mean())

    def _outputs(self, pair: ModelPair):
        net = nuq.Net(str(pair.model), str(pair.weights))
        (name,), (output,) = net.inputs, net.outputs
        net.blobs[name].reshape(BATCH, *self.evaluator.images.shape[1:])
        for start in range(0, self.evaluator.evaluate_batch_num * BATCH, BATCH):
            images = self.evaluator.images[start : start + BATCH]
            found = net.forward(**{name: images})[output].reshape(BATCH, -1).astype(np.float64)
            yield found if np.allclose(found.sum(axis=1), 1, atol=1e-3) else _softmax(found)


def _softmax(values):
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Family:
    """Networks, loose to tight."""

    candidates: Sequence[Candidate]
    in_order: bool = False
    contexts: bool = False


def with_levels(bench: Bench, levels: int) -> Candidate:
    """Plain k-means, exact, over the counts: what AMCT's documents describe."""
    made = {
        name: Made(build_codebook(code_histogram(uniform.codes), levels).apply(uniform.codes), None)
        for name, uniform in bench.model.weights.items()
    }
    return plain(bench, made)


def plain(bench: Bench, made: Mapping[str, Made]) -> Candidate:
    """Return the network with these codes, and its own biases."""
    layers = bench.model.graph.by_name
    biases = {name: layers[name].blobs[1] if len(layers[name].blobs) > 1 else None for name in made}
    return Candidate(bench.model, made={name: Made(one.codes, biases[name]) for name, one in made.items()})


def by_slope(bench: Bench, points: Mapping[str, OperatingPoints]) -> list[Candidate]:
    """One plan a slope, equal ones once."""
    plans: list[dict[str, int]] = []
    whole = sum(found.curve.distortions[-1] for found in points.values())
    for slope in SLOPES * whole:
        plan = {
            name: int(np.argmin(found.curve.distortions + slope * found.curve.rates_bytes))
            for name, found in points.items()
        }
        if plan not in plans:
            plans.append(plan)
    return [Candidate(bench.model, points, plan) for plan in plans]


def curves(
    bench: Bench, *, costs: Mapping = MappingProxyType({}), tuning: Tuning | None = None, contexts: bool = False
) -> dict[str, OperatingPoints]:
    """Operating points of every layer by error feedback, as `build_network_points` makes them."""
    found = {}
    for name, uniform in bench.model.weights.items():
        layer = bench.model.graph.by_name[name]
        found[name] = build_points(
            name,
            layer.blobs[0],
            uniform,
            EntropyCodec(uniform.codes.shape) if contexts else CODEC,
            inputs=load_moments(bench.record, layer),
            costs=costs.get(name),
            tuning=tuning,
            has_bias=len(layer.blobs) > 1 and name in bench.behind,
            nuq=name in bench.model.nuq_layers,
        )
    return found


def without_feedback(bench: Bench, *, importance: bool = False) -> dict[str, OperatingPoints]:
    """Entropy-constrained codebooks, every weight by itself."""
    found = {}
    for name, uniform in bench.model.weights.items():
        (moments, *others) = load_moments(bench.record, bench.model.graph.by_name[name])
        second = moments.squares.reshape(1, *uniform.codes.shape[1:]) if importance and not others else 1.0
        like = uniform.scale_like()
        curve = build_curve(name, uniform.codes, CODEC, scale_like=like, second_moments=np.asarray(second))
        energy = float(np.sum(like**2 * second * uniform.codes.astype(float) ** 2))
        codes = np.stack([codebook.apply(uniform.codes) for codebook in curve.codebooks])
        shares = type(curve)(name, curve.rates_bytes, curve.distortions / energy, curve.codebooks)
        found[name] = OperatingPoints(shares, codes)
    return found


def tightest(bench: Bench, family: Family) -> tuple[float, float, float, int]:
    """Bisect a family, loose to tight, for the tightest network that loses less than a point."""
    low, high, evaluations, best = 0, len(family.candidates), 0, (0.0, 0.0, 0.0)
    while low < high:
        middle = (low + high) // 2
        candidate = family.candidates[middle]
        if family.in_order:
            candidate = bench.builder.build(candidate).candidate
        drop, divergence = bench.score(candidate)
        evaluations += 1
        if drop < 1:
            best, low = (bench.ratio(candidate, family.contexts), drop, divergence), middle + 1
        else:
            high = middle
    return *best, evaluations


CONTESTANTS: dict[str, Callable[[Bench], Family]] = {
    "int8": lambda bench: Family([Candidate(bench.model)]),
    "AMCT-like, 32 levels": lambda bench: Family([with_levels(bench, 32)]),
    "AMCT-like, 16 levels": lambda bench: Family([with_levels(bench, 16)]),
    "k-means, one k": lambda bench: Family([with_levels(bench, levels) for levels in LEVELS]),
    "entropy-constrained": lambda bench: Family(by_slope(bench, without_feedback(bench))),
    "+ importance of inputs": lambda bench: Family(by_slope(bench, without_feedback(bench, importance=True))),
    "error feedback": lambda bench: Family(by_slope(bench, curves(bench))),
    "feedback, in order": lambda bench: Family(by_slope(bench, curves(bench)), in_order=True),
    "feedback, own grid": lambda bench: Family(by_slope(bench, curves(bench, tuning=Tuning()))),
    "two-sided feedback": lambda bench: Family(by_slope(bench, curves(bench, costs=bench.way.costs))),
    "all three": lambda bench: Family(
        by_slope(bench, curves(bench, costs=bench.way.costs, tuning=bench.way.way.tuning)), in_order=True
    ),
    "all three, with contexts": lambda bench: Family(
        by_slope(bench, curves(bench, costs=bench.way.costs, tuning=bench.way.way.tuning, contexts=True)),
        in_order=True,
        contexts=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--contestants", nargs="*", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--images", type=int)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, codec {CODEC.name}")
    print("| network | contestant | ratio | drop | KL | evaluations | s |\n|---|---|---:|---:|---:|---:|---:|")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, arguments.shared, Path(folder), arguments.images)
            for contestant in arguments.contestants:
                started = time.perf_counter()
                ratio, drop, divergence, evaluations = tightest(bench, CONTESTANTS[contestant](bench))
                seconds = time.perf_counter() - started
                figures = f"{ratio:.2f}x | {drop:.2f} | {divergence:.4f} | {evaluations} | {seconds:.1f}"
                print(f"| {name} | {contestant} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
