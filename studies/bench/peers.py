"""The strongest peers and this product on the same networks, less than one point of top-1 lost.

    python studies/bench/peers.py [--shared ../shared] [--networks lenet-fashion ...] [--peers NNCodec ...]
                                  [--environments FOLDER] [--nncodec-python PATH] [--coremltools-python PATH]
                                  [--trials 40] [--seed 0] [--unfolded] [--equal-error]

Every peer is a family of settings, loose to tight, with one parameter for the whole network. The tightest that the
whole test set accepts is found by bisection and a look at five settings behind it, for top-1 wavers. Peers compress
the weights that ours does (of the folded network) and nothing else: biases and activations stay float32, where ours has
int8 activations, too. A ratio is the float32 bytes of these weights by compressed bytes, headers and tables included.
KL is the mean over the test images of the divergence of the class probabilities from the original network's. Seconds
are the whole search's. All that peers choose, they choose on the test set, and so does our study.

* **NNCodec** (Fraunhofer's of ISO/IEC 15938-17): dependent quantization, and its decoder's own weights. Steps are
  equal, or divided by what each tensor's squared error costs: the KL on calibration images that its rounding to a
  step of one standard deviation makes, by that rounding's error. The least sum of cost x error at a given rate has
  equal cost x step**2 (high-rate theory), so steps are proportional to cost**(-1/2). A rate weight of 1 makes the
  trellis weigh bits against error, a parameter of NNCodec's that its own front end leaves at 0.
* **uniform step**: rounding to multiples of one step or of steps divided in the same way, with this product's coder.
* **coremltools**: its exact one-dimensional k-means, one number of levels for all tensors; stored as there (indices of
  ceil(log2 k) bits, a float16 palette), and the same with the indices in this product's coder.
* **int8, xz**: int8 codes, one float32 scale an output channel, as onnxruntime quantizes weights; xz over all codes.
* **autonuq**: a study of `--trials` trials.

NNCodec and coremltools live in environments of their own. `--environments FOLDER` makes them there with pip where they
are missing (NNCodec compiles for about two minutes: a C++ compiler and Python 3.12 or older are needed):

    python -m venv FOLDER/nncodec;      FOLDER/nncodec/bin/pip install "numpy<2" h5py
                                        FOLDER/nncodec/bin/pip install --no-deps nncodec==2.1.3
    python -m venv FOLDER/coremltools;  FOLDER/coremltools/bin/pip install coremltools==9.0

With --unfolded, peers get the weights as the file has them, and batch norms stay float layers that are not counted:
NNCodec with one step then reaches 26.3x on resnet20-fashion, 21.4x with batch norms folded (the same points lost).
Quote a peer by the better of the two.

With --equal-error, NNCodec's ways of rounding are compared on the weights alone instead: bytes at the squared error
that rounding to one step makes, by the ideal size of that rounding, its first-order entropy in each tensor.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from networks import BATCH, NETWORKS, Top1
from numpy.typing import NDArray
from ratio import LEVELS

import autonuq as nuq
from autonuq.graph.files import ModelPair, load_graph, write_model
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities, fold_batch_norm
from autonuq.quant.codebook import code_histogram
from autonuq.quant.codec import CODECS

Weights = Mapping[str, NDArray[np.float32]]
Steps = Mapping[str, float]

CODEC = CODECS["entropy"]
FACTORS = 2.0 ** (
    np.arange(-64, 49) / 16
)  # of the standard deviation of all weights, to the step that all tensors have
WIDEST = 16.0  # a tensor's step differs from the mean one by this factor at most
BEHIND = (1, 2, 4, 6, 8)  # how far behind the first refused setting others are tried: half an octave of steps
SCORES_AGREE = 0.05  # points of top-1 that folding batch norms may turn
WIDTHS = tuple(2**bits for bits in range(8, 0, -1))
RATE_WEIGHTS = (0, 1, 4, 16)
ERROR_STEPS = (0.5, 1.0, 2.0)  # in standard deviations of all weights
PACKAGES = {
    "nncodec": (("numpy<2", "h5py"), ("--no-deps", "nncodec==2.1.3")),
    "coremltools": (("coremltools==9.0",),),
}


@dataclass(frozen=True)
class Compressed:
    """A peer's answer: bytes of all that its decoder needs, and the weights that this makes."""

    size_bytes: int
    weights: Weights


@dataclass(frozen=True)
class Peer:
    """A family of settings, loose to tight."""

    settings: Sequence[Any]
    compress: Callable[[Any], Compressed]


@dataclass(frozen=True)
class Found:
    """What one setting gives on the whole test set."""

    setting: Any
    ratio: float
    loss: float
    divergence: float

    @property
    def accepted(self) -> bool:
        return self.loss < 1


class Network:
    """One network with its data, and how the original answers."""

    def __init__(self, name: str, shared: Path, folder: Path, *, folded: bool = True) -> None:
        self.source = ModelPair(
            *(shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel"))
        )
        self.images, self.labels, self.calibration = self.data = NETWORKS[name](shared / "data")
        original = load_graph(self.source.model, self.source.weights)
        self.graph, self.folder = fold_batch_norm(original) if folded else original, folder
        able = [found.name for found in capabilities(original) if found.quantizable and found.weights]
        self.weights: Weights = {name: self.graph.by_name[name].blobs[0] for name in able}
        self.original_bytes = sum(4 * weights.size for weights in self.weights.values())
        self.deviation = float(np.concatenate([weights.ravel() for weights in self.weights.values()]).std())

    def with_weights(self, weights: Weights) -> Graph:
        return self.graph.with_layers(
            layer.with_(blobs=(weights[layer.name], *layer.blobs[1:])) if layer.name in weights else layer
            for layer in self.graph.layers
        )

    def log_probabilities(self, graph: Graph, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Run whole batches without the softmax at the end, which rounds small probabilities to zero."""
        pair = ModelPair(self.folder / "scored.prototxt", self.folder / "scored.caffemodel")
        write_model(graph.with_layers(layer for layer in graph.layers if layer.type != "Softmax"), *_files(pair))
        net = nuq.Net(*_files(pair))
        (name,), (output,) = net.inputs, net.outputs
        net.blobs[name].reshape(BATCH, *images.shape[1:])
        net.reshape()
        batches = []
        for start in range(0, len(images) // BATCH * BATCH, BATCH):
            blob = net.forward(**{name: images[start : start + BATCH]})[output]
            batches.append(np.array(blob, np.float64).reshape(BATCH, -1))  # a copy: the next batch overwrites the blob
        scores = np.concatenate(batches)
        scores -= scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    @cached_property
    def answers(self) -> NDArray[np.float64]:
        """The original's; refused where the evaluator of the other benches scores it otherwise."""
        answers, evaluator = self.log_probabilities(self.graph, self.images), Top1(self.data)
        metric = evaluator.eval_model(*_files(self.source), evaluator.evaluate_batch_num)
        if abs(self.top1(answers) - metric) > SCORES_AGREE:
            raise RuntimeError(f"{self.source.model} has top-1 {self.top1(answers):.2f} here, {metric:.2f} with Top1")
        return answers

    def found(self, setting: Any, graph: Graph, ratio: float) -> Found:
        answers = self.log_probabilities(graph, self.images)
        loss = self.top1(self.answers) - self.top1(answers)
        return Found(setting, ratio, loss, divergence(self.answers, answers))

    def top1(self, answers: NDArray[np.float64]) -> float:
        return 100 * float(np.mean(answers.argmax(axis=1) == self.labels[: len(answers)]))

    @cached_property
    def cost_factors(self) -> dict[str, float]:
        """Each tensor's step by the mean one, whose logarithm is the mean over all weights."""
        answers = self.log_probabilities(self.graph, self.calibration)
        costs = {}
        for name, weights in self.weights.items():
            codes, step = _multiples(weights, float(weights.std()))
            rounded = codes * step
            changed = self.log_probabilities(self.with_weights({name: rounded}), self.calibration)
            costs[name] = divergence(answers, changed) / float(np.sum((rounded - weights) ** 2, dtype=np.float64))
        sizes = [weights.size for weights in self.weights.values()]
        least = np.finfo(np.float64).tiny  # a tensor that nothing depends on gets the widest step
        logs = -0.5 * np.log(np.maximum(list(costs.values()), least))
        logs = np.clip(logs - np.average(logs, weights=sizes), -math.log(WIDEST), math.log(WIDEST))
        return dict(zip(costs, np.exp(logs).tolist(), strict=True))

    def steps(self, factor: float, divided: bool) -> Steps:
        factors = self.cost_factors if divided else dict.fromkeys(self.weights, 1.0)
        return {name: self.deviation * factor * own for name, own in factors.items()}


def _files(pair: ModelPair) -> tuple[Path, Path]:
    return pair.model, pair.weights


def divergence(answers: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the mean KL divergence of others from answers, both log probabilities."""
    return float(np.mean(np.sum(np.exp(answers) * (answers - others), axis=1)))


def _multiples(weights: NDArray[np.float32], step: float) -> tuple[NDArray[np.int8], np.float32]:
    """Round to int8 multiples; return them and the step, which is at least what int8 reaches the largest weight with.

    Clipping instead would make fine steps lose more than coarse ones, and a family is ordered loose to tight.
    """
    reached = np.float32(max(step, float(np.abs(weights).max()) / 127))
    return np.rint(weights / reached).astype(np.int8), reached


def environment(name: str, given: Path | None, folder: Path | None) -> Path | None:
    """Return the interpreter that has a package, made if there is a folder for it."""
    if given is not None or folder is None:
        return given
    python = folder / name / "bin" / "python"
    done = folder / name / "installed"
    if not done.exists():
        venv.create(folder / name, with_pip=True)
        for packages in PACKAGES[name]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
        done.touch()
    return python


class Worker:
    """A script beside this one, run by the interpreter of another environment."""

    def __init__(self, script: str, python: Path, weights: Weights, folder: Path) -> None:
        self.command = [str(python), str(Path(__file__).parent / script), str(folder)]
        self.names, self.folder = list(weights), folder
        folder.mkdir()
        np.savez(folder / "weights.npz", **{str(index): one for index, one in enumerate(weights.values())})

    def decoded(self, setting: Mapping[str, Any]) -> Weights:
        """Tensors travel under their numbers: a stream that holds names shall not pay for long ones."""
        (self.folder / "setting.json").write_text(json.dumps(setting))
        ran = subprocess.run(self.command, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"{' '.join(self.command)} failed:\n{ran.stderr}")
        with np.load(self.folder / "decoded.npz") as stored:
            return {name: stored[str(index)] for index, name in enumerate(self.names)}


class NNCodec:
    """NNCodec's answers on one set of weights."""

    def __init__(self, python: Path, weights: Weights, folder: Path) -> None:
        self.worker = Worker("peer_nncodec.py", python, weights, folder)

    def compress(self, steps: Steps, *, dependent: bool = True, rate_weight: float = 0) -> Compressed:
        numbered = {str(index): steps[name] for index, name in enumerate(self.worker.names)}
        decoded = self.worker.decoded({"steps": numbered, "dependent": dependent, "rate_weight": rate_weight})
        return Compressed((self.worker.folder / "stream.bin").stat().st_size, decoded)


def nncodec_peers(network: Network, python: Path) -> Iterator[tuple[str, Peer]]:
    codec = NNCodec(python, network.weights, network.folder / "nncodec")
    for divided, which in ((False, "one step"), (True, "steps by cost")):
        for rate_weight in (0, 1):

            def compress(factor: float, divided: bool = divided, rate_weight: float = rate_weight) -> Compressed:
                return codec.compress(network.steps(factor, divided), rate_weight=rate_weight)

            yield f"NNCodec 2.1.3, trellis, {which}, rate weight {rate_weight}", Peer(FACTORS, compress)


def uniform_peers(network: Network) -> Iterator[tuple[str, Peer]]:
    def compress(factor: float, divided: bool) -> Compressed:
        steps = network.steps(factor, divided)
        rounded = {name: _multiples(weights, steps[name]) for name, weights in network.weights.items()}
        written = 4 * len({step for _, step in rounded.values()})
        written += sum(CODEC.size_bytes(codes) for codes, _ in rounded.values())
        return Compressed(written, {name: codes * step for name, (codes, step) in rounded.items()})

    yield "uniform step, our coder, one step", Peer(FACTORS, lambda factor: compress(factor, False))
    yield "uniform step, our coder, steps by cost", Peer(FACTORS, lambda factor: compress(factor, True))


def palette_peers(network: Network, python: Path) -> Iterator[tuple[str, Peer]]:
    worker = Worker("peer_coremltools.py", python, network.weights, network.folder / "coremltools")

    def compress(levels: int, size_bytes: Callable[[NDArray[np.int8], int], int]) -> Compressed:
        decoded, total = worker.decoded({"levels": levels}), 0
        for weights in decoded.values():
            palette, indices = np.unique(weights, return_inverse=True)
            total += 2 * palette.size + size_bytes((indices - 128).astype(np.int8), palette.size)
        return Compressed(total, decoded)

    def fixed(indices: NDArray[np.int8], levels: int) -> int:
        return -(-indices.size * (levels - 1).bit_length() // 8)

    def coded(indices: NDArray[np.int8], levels: int) -> int:
        return CODEC.size_bytes(indices)

    yield "coremltools 9.0 k-means, fixed bits", Peer(WIDTHS, lambda levels: compress(levels, fixed))
    yield "coremltools 9.0 k-means, our coder", Peer(LEVELS, lambda levels: compress(levels, coded))


def int8_peers(network: Network) -> Iterator[tuple[str, Peer]]:
    def compress(setting: str) -> Compressed:
        codes, scales = {}, {}
        for name, weights in network.weights.items():
            largest = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
            scales[name] = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            codes[name] = np.rint(weights / scales[name]).astype(np.int8)
        stream = lzma.compress(b"".join(one.tobytes() for one in codes.values()), preset=9 | lzma.PRESET_EXTREME)
        written = len(stream) + sum(scale.nbytes for scale in scales.values())
        return Compressed(written, {name: codes[name] * scales[name] for name in codes})

    yield "int8 per channel, xz", Peer(("symmetric",), compress)


def tightest(network: Network, peer: Peer) -> tuple[Found | None, int]:
    """Return the largest ratio that is accepted, and how many settings were scored."""
    scored: list[Found] = []

    def accepts(index: int) -> bool:
        compressed = peer.compress(peer.settings[index])
        graph, ratio = network.with_weights(compressed.weights), network.original_bytes / compressed.size_bytes
        scored.append(network.found(peer.settings[index], graph, ratio))
        return scored[-1].accepted

    low, high = 0, len(peer.settings)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if accepts(middle) else (low, middle)
    for index in (low + distance for distance in BEHIND if low + distance < len(peer.settings)):
        accepts(index)
    accepted = [found for found in scored if found.accepted]
    return max(accepted, key=lambda found: found.ratio, default=None), len(scored)


def study(network: Network, trials: int, seed: int) -> tuple[Found | None, int]:
    """Run a study of the product and score the pair that it leaves, activations quantized."""
    evaluator, out = Top1(network.data), network.folder / "study"
    batches = min(10, len(evaluator.calibration) // BATCH)
    best = nuq.tune(*_files(network.source), evaluator, out=out, n_trials=trials, batch_num=batches, seed=seed).best
    if best is None:
        return None, trials
    (model,) = out.glob("*_fake_quant_model.prototxt")
    (weights,) = out.glob("*_fake_quant_weights.caffemodel")
    return network.found(f"trial {best.trial}", load_graph(model, weights), best.ratio), trials


def row(name: str, peer: str, found: Found | None, scored: int, seconds: float, activations: str) -> str:
    remarks = f"{activations} activations, {scored} settings scored"
    if found is None:
        return f"| {name} | {peer} | none accepted | - | - | {seconds:.0f} | {remarks} |"
    setting = f"{found.setting:.3f} deviations" if isinstance(found.setting, float) else found.setting
    figures = f"{found.ratio:.1f}x | {found.loss:.2f} | {found.divergence:.4f} | {seconds:.0f}"
    return f"| {name} | {peer} | {figures} | {remarks}, {setting} |"


def peers(network: Network, options: argparse.Namespace) -> Iterator[tuple[str, Peer]]:
    if "NNCodec" in options.peers:
        yield from nncodec_peers(network, options.nncodec_python)
    if "uniform" in options.peers:
        yield from uniform_peers(network)
    if "coremltools" in options.peers:
        yield from palette_peers(network, options.coremltools_python)
    if "int8" in options.peers:
        yield from int8_peers(network)


def compare(name: str, options: argparse.Namespace, folder: Path) -> None:
    network = Network(name, options.shared, folder, folded=not options.unfolded)
    for label, peer in peers(network, options):
        began = time.perf_counter()
        found, scored = tightest(network, peer)
        print(row(name, label, found, scored, time.perf_counter() - began, "float"), flush=True)
    if "autonuq" in options.peers:
        began = time.perf_counter()
        found, scored = study(network, options.trials, options.seed)
        label = f"autonuq, study of {options.trials} trials"
        print(row(name, label, found, scored, time.perf_counter() - began, "int8"), flush=True)


def ideal_bytes(codes: NDArray[np.int8]) -> float:
    counts = code_histogram(codes)
    counts = counts[counts > 0]
    return float(np.dot(counts, np.log2(codes.size / counts))) / 8


def squared_error(weights: Weights, others: Weights) -> float:
    return sum(float(np.sum((weights[name] - others[name]) ** 2, dtype=np.float64)) for name in weights)


def compare_errors(name: str, options: argparse.Namespace, folder: Path) -> None:
    """Print NNCodec's bytes at a rounding's squared error by the rounding's ideal bytes."""
    network = Network(name, options.shared, folder, folded=not options.unfolded)
    codec = NNCodec(options.nncodec_python, network.weights, folder / "nncodec")
    rounded = {}
    for factor in ERROR_STEPS:
        multiples = {layer: _multiples(own, network.deviation * factor) for layer, own in network.weights.items()}
        error = squared_error(network.weights, {layer: codes * step for layer, (codes, step) in multiples.items()})
        rounded[error] = sum(ideal_bytes(codes) for codes, _ in multiples.values())
    for dependent in (False, True):
        for rate_weight in RATE_WEIGHTS:
            errors, sizes = [], []
            for factor in FACTORS[16::6]:
                answer = codec.compress(network.steps(factor, False), dependent=dependent, rate_weight=rate_weight)
                errors.append(math.log(squared_error(network.weights, answer.weights)))
                sizes.append(math.log(answer.size_bytes))
            order = np.argsort(errors)
            found = np.interp(np.log(list(rounded)), np.array(errors)[order], np.array(sizes)[order], np.nan, np.nan)
            shares = np.exp(found) / np.array(list(rounded.values()))
            figures = " | ".join(f"{share:.3f}" for share in shares)
            print(f"| {name} | {'trellis' if dependent else 'rounding'} | {rate_weight} | {figures} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("NNCodec", "uniform", "coremltools", "int8", "autonuq")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--peers", nargs="*", default=list(kinds), choices=kinds)
    parser.add_argument("--environments", type=Path, help="folder where missing environments are made")
    parser.add_argument("--nncodec-python", type=Path, help="interpreter that has NNCodec")
    parser.add_argument("--coremltools-python", type=Path, help="interpreter that has coremltools")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unfolded", action="store_true", help="peers get weights without batch norms folded in")
    parser.add_argument("--equal-error", action="store_true", help="compare NNCodec's roundings on weights alone")
    options = parser.parse_args()
    wanted = {"NNCodec"} if options.equal_error else set(options.peers)
    for peer in sorted(wanted & {"NNCodec", "coremltools"}):
        key = f"{peer.lower()}_python"
        setattr(options, key, environment(peer.lower(), getattr(options, key), options.environments))
        if getattr(options, key) is None:
            parser.error(f"{peer} needs --environments or --{peer.lower()}-python; or leave it out of --peers")
    return options


def main() -> None:
    options = parse()
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, seed {options.seed}\n")
    if options.equal_error:
        heads = " | ".join(f"step {factor} deviations" for factor in ERROR_STEPS)
        print(f"| network | NNCodec | rate weight | {heads} |\n|---|---|---:|{'---:|' * len(ERROR_STEPS)}")
    else:
        print("| network | peer | ratio | points lost | KL | s | remarks |\n|---|---|---:|---:|---:|---:|---|")
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            (compare_errors if options.equal_error else compare)(name, options, Path(folder))


if __name__ == "__main__":
    main()
