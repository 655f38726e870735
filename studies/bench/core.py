"""The compression core against its peers, as ratios in one run.

    pip install flash1dkmeans scikit-learn
    python studies/bench/core.py [--layers 12]

Weights have ResNet-50's 54 shapes, Laplace distributed, int8 per channel. Codebooks: every size from 2 to 256 of every
layer here, 16 levels alone there; scikit-learn, which takes minutes, is timed on some layers and scaled by weights.
Error feedback: the largest layer, 512 x 4,608, against the Cholesky factorization of its moments. Packing: 16 levels.
A trial: assembling and writing a ResNet-50-shaped network against copying its caffemodel.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_fake_quant
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import ModelPair, load_graph, write_caffemodel
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.quant.codebook import build_codebook, build_codebooks, code_histogram
from autonuq.quant.codecs import make_codec
from autonuq.quant.curve import Curve
from autonuq.quant.feedback import assign, build_feedback, targets_of
from autonuq.quant.inputs import InputMoments
from autonuq.quant.points import OperatingPoints
from autonuq.quant.uniform import quantize_weights

SHAPE = Path(__file__).parent / "data/resnet50.prototxt"


def timed(function, repeats=3):
    """Return the median wall time of some calls, in seconds, and the last result."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return float(np.median(times)), result


def random_network(prototxt, rng):
    """Fill a prototxt with Laplace weights and sane statistics."""
    graph = load_graph(prototxt)
    shapes = infer_shapes(graph)
    layers = []
    for layer in graph.layers:
        blobs = []
        for shape in blob_shapes(graph, layer, shapes):
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
            blobs.append((rng.laplace(size=shape) / fan_in**0.5).astype(np.float32))
        if layer.type == "BatchNorm":
            blobs = [blobs[0], np.abs(blobs[1]) + 1, np.ones(1, np.float32)]
        layers.append(layer.with_(blobs=blobs))
    return graph.with_layers(layers)


def squared_error(codes, kept):
    return float(np.square(codes.astype(np.int32) - kept).sum())


def bench_codebooks(layers, sample):
    from flash1dkmeans import kmeans_1d
    from sklearn.cluster import KMeans

    def ours():
        return [build_codebooks(code_histogram(codes)) for codes in layers]

    def flash(codes):
        centres, labels = kmeans_1d(codes.ravel().astype(np.float32), 16, random_state=0)
        return centres[labels]

    seconds, families = timed(ours)
    error = sum(family.distortions[15] for family in families)
    kmeans_1d(np.arange(1000, dtype=np.float32), 16, random_state=0)  # compile
    flash_seconds, rounded = timed(lambda: [np.rint(flash(codes)).astype(np.int32) for codes in layers], 1)
    flash_error = sum(squared_error(codes.ravel(), kept.ravel()) for codes, kept in zip(layers, rounded, strict=True))
    some = layers[:: max(1, len(layers) // sample)]
    share = sum(codes.size for codes in layers) / sum(codes.size for codes in some)

    def sklearn(codes):
        fitted = KMeans(16, random_state=0).fit(codes.reshape(-1, 1).astype(np.float32))
        return np.rint(fitted.cluster_centers_[:, 0])[fitted.labels_]

    sk_seconds, sk_kept = timed(lambda: [sklearn(codes) for codes in some], 1)
    exact = sum(build_codebooks(code_histogram(codes), max_levels=16).distortions[15] for codes in some)
    sk_error = sum(squared_error(codes.ravel(), kept) for codes, kept in zip(some, sk_kept, strict=True))
    yield "codebooks 2..256 of all layers / flash1dkmeans, 16 levels", seconds / flash_seconds, 1 / 10
    yield "codebooks 2..256 of all layers / scikit-learn KMeans, 16 levels", seconds / (sk_seconds * share), 1 / 50
    yield "squared error at 16 levels, flash1dkmeans (rounded) / ours", flash_error / error, None
    yield "squared error at 16 levels, scikit-learn (rounded) / ours", sk_error / exact, None


def bench_passes(layers):
    copy, _ = timed(lambda: [np.copy(codes) for codes in layers], 7)
    histogram, histograms = timed(lambda: [code_histogram(codes) for codes in layers], 7)
    books = [build_codebook(counts, 16) for counts in histograms]
    apply, kept = timed(lambda: [book.apply(codes) for book, codes in zip(books, layers, strict=True)], 7)
    yield "histograms / np.copy", histogram / copy, 3
    yield "applying a codebook / np.copy", apply / copy, 2.5
    codecs = [make_codec("entropy", codes.shape) for codes in kept]
    megabytes = sum(codes.size for codes in layers) / 1e6
    packing, packed = timed(lambda: [codec.encode(codes) for codec, codes in zip(codecs, kept, strict=True)])
    streams = list(zip(codecs, packed, kept, strict=True))
    unpacking, _ = timed(lambda: [codec.decode(data, codes.size) for codec, data, codes in streams])
    counts = [histogram[histogram > 0] for histogram in map(code_histogram, kept)]
    entropy = sum(float((held * np.log2(held.sum() / held)).sum()) for held in counts) / 8
    yield "packed bytes / first-order entropy", sum(map(len, packed)) / entropy, 1.005
    yield "packing, MB/s (60 asked)", megabytes / packing, None
    yield "unpacking, MB/s (40 asked)", megabytes / unpacking, None


def bench_feedback(rng):
    inputs = np.maximum(rng.standard_normal((6000, 4608), np.float32) + 0.3, 0)
    moments = (inputs.T @ inputs).astype(np.float64)
    cholesky, _ = timed(lambda: np.linalg.cholesky(moments + 100 * np.eye(len(moments))), 2)
    steps = rng.laplace(size=(512, 4608)) * 20
    levels = np.arange(-120, 121, 24).astype(np.int8)
    feedback = build_feedback(InputMoments(moments, 6000, inputs.sum(axis=0)))
    targets = targets_of(feedback, steps, np.ones(512))
    seconds, _ = timed(lambda: assign(feedback, targets, [levels]), 2)
    yield "error feedback, 512 x 4,608 / Cholesky of its moments", seconds / cholesky, 10


def bench_trial(graph, folder):
    """Time a trial's own work: codes from mapped files, one write of prototxt and caffemodel."""
    model = quantize(graph, default_config(graph))
    model = replace(model, factors={name: replace(found, scale_d=0.1) for name, found in model.factors.items()})
    points = {}
    for number, (name, uniform) in enumerate(model.weights.items()):
        book = build_codebook(code_histogram(uniform.codes), 16)
        path = folder / f"{number}.npy"
        np.save(path, np.stack([uniform.codes, book.apply(uniform.codes)]))
        curve = Curve(name, np.array([2, 1]), np.array([0.0, 1.0]))
        points[name] = OperatingPoints(curve, np.load(path, mmap_mode="r"))
    pair = ModelPair(folder / "t.prototxt", folder / "t.caffemodel")
    candidate = Candidate(model, points, dict.fromkeys(points, 1))
    seconds, _ = timed(lambda: write_fake_quant(candidate, pair), 5)

    def copy():
        with (folder / "t.caffemodel").open("rb") as source, (folder / "copy").open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())

    copying, _ = timed(copy, 5)
    yield "a trial's assembling and writing / copy and flush of the caffemodel", seconds / copying, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prototxt", type=Path, default=SHAPE)
    parser.add_argument("--layers", type=int, default=12, help="layers that scikit-learn is timed on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    graph = random_network(arguments.prototxt, rng)
    weighted = [layer for layer in graph.layers if layer.type in ("Convolution", "InnerProduct")]
    layers = [
        quantize_weights(layer.blobs[0], channel_axis=0 if layer.type == "Convolution" else None).codes
        for layer in weighted
    ]
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, seed {arguments.seed}")
    print(f"{len(layers)} layers, {sum(codes.size for codes in layers):,} weights\n")
    print("| what | figure | limit |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        write_caffemodel(graph, Path(folder) / "net.caffemodel")
        for rows in (
            bench_trial(graph, Path(folder)),
            bench_passes(layers),
            bench_feedback(rng),
            bench_codebooks(layers, arguments.layers),
        ):
            for what, figure, limit in rows:
                print(f"| {what} | {figure:.4g} | {'' if limit is None else f'{limit:.3g}'} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of the whole run {peak:.2f} GiB")


if __name__ == "__main__":
    main()
