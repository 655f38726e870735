"""Speed of a forward pass and of a second net on the same prototxt, as ratios taken in one run.

    python studies/bench/forward.py [--seed 0] [--repeats 15] [--model deploy.prototxt] [--operators PROTOTXT WEIGHTS]

The network is ResNet-50-shaped with random weights (102 MB) that keep its activations near 1. Contestants run in turn
in one process; a ratio is the median of the ratios of pairs, so that a busy machine hits both sides. CPU seconds count
all threads. "fake-quant" is the same network folded, with a Quant layer before and a DeQuant layer behind every
Convolution and InnerProduct, as a trial scores it; OpenCV does not know these layers, so it is set against the plain
network here. What a net costs is constructor + first forward pass - a later forward pass; "first" is the first one in
a process that ran another network before.

`--operators` prints where the time of any network goes, by ONNX operator and by layer.

What onnxruntime 1.32 runs slower than it could on x86-64, and why
------------------------------------------------------------------
Shares are of a pass as `--operators` prints it; "x OpenCV" is OpenCV's time divided by onnxruntime's for the layer
alone, one thread, 64 channels of 56 x 56 unless told.

* Quant: a fifth (batch 1) to a quarter (batch 8) of a ResNet-50's pass, half of a ResNet-20's. Mul, Clip, Add, Floor
  and Div are a pass over memory each, as no operator of ONNX rounds halves away from zero; signed values need two more,
  for there is no Trunc. Around them the blocked layout of convolutions is undone and made again (ReorderOutput,
  ReorderInput: a quarter of that share), because few operators work in it. QuantizeLinear would be one pass, but rounds
  halves to even and divides where AMCT multiplies. Sign takes 7 to 12 times as long as Clip, Shrink 75 times.
* Convolution 3x3 with stride 1 (0.92x OpenCV): calculated directly. OpenCV transforms it (Winograd), with about half
  the products.
* Convolution whose channels are no multiple of the vector width (16 with AVX-512): blocks are filled up with zeros that
  are calculated with. 5x5, 20 -> 50 channels (LeNet's second: 40 to 55 % of its pass) takes as long as 32 -> 64.
* Convolution in groups of other sizes than whole blocks (groups of 8 0.71x OpenCV, of 30 0.75x): runs unblocked.
* Deconvolution in groups, depthwise above all: 5 GFLOP/s against 150 without groups (one product of tiny matrices a
  channel), though still 2.7x OpenCV.
* LRN across channels (0.83x OpenCV): a few passes over memory instead of one; PReLU (0.78x) too, because onnxruntime's
  own operator is slower still. ELU takes three times as long as Sigmoid.
* Concat copies (5 % of SqueezeNet's pass): no operator writes into a part of its neighbour's memory.
* BatchNorm and Scale behind anything but a Convolution are passes of their own. A BatchNorm alone behind something in
  the blocked layout also keeps a second net from being cheap: there onnxruntime calculates with weights while it
  optimizes, so nothing can be kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from autonuq.graph.files import load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.lowering import Lowered, lower
from autonuq.graph.model import Array, Graph, Layer
from autonuq.graph.passes import WEIGHT_TYPES, QuantizedBlobs, capabilities, fold_batch_norm, insert_quantizers
from autonuq.graph.record import Factors
from autonuq.runtime.session import Session

MODEL = Path(__file__).parent / "data/resnet50.prototxt"
SETTINGS = ((1, 1), (8, 2))  # batch, threads
SECOND = """
import sys, time
import numpy as np
import autonuq as nuq
tiny, model, batch, *weights = sys.argv[1:]
nuq.Net(tiny, tiny.replace(".prototxt", ".caffemodel")).forward()
shape = (int(batch), 3, 224, 224)
images = np.random.default_rng(0).standard_normal(shape, np.float32)
for path in weights:
    net = None
    begin = time.perf_counter(), time.process_time()
    net = nuq.Net(model, path)
    net.blobs["data"].reshape(*shape)
    net.forward(data=images)
    end = time.perf_counter(), time.process_time()
    passes = []
    for _ in range(5):
        start = time.perf_counter(), time.process_time()
        net.forward(data=images)
        passes.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = (sorted(values)[2] for values in zip(*passes))
    print(end[0] - begin[0] - wall, end[1] - begin[1] - cpu, wall, cpu)
"""
TINY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 16 kernel_size: 3 } }
"""


def random_weights(graph: Graph, seed: int) -> Graph:
    """Fill a network so that every layer keeps the size of its input; residual branches add little."""
    rng, shapes = np.random.default_rng(seed), infer_shapes(graph)
    return graph.with_layers(
        layer.with_(blobs=_blobs(layer, blob_shapes(graph, layer, shapes), rng)) for layer in graph.layers
    )


def _blobs(layer: Layer, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> list[Array]:
    normal = [rng.standard_normal(shape, np.float32) for shape in shapes]
    if layer.type in WEIGHT_TYPES:
        return [values * np.sqrt(2 / values[0].size, dtype=np.float32) for values in normal]
    if layer.type == "BatchNorm":
        return [normal[0] / 10, 1 + np.abs(normal[1]) / 10, np.ones(1, np.float32)]
    if layer.type == "Scale":
        return [np.float32(0.3 if "branch2c" in layer.name else 1) * (1 + normal[0] / 10), normal[1] / 10]
    return normal


def fake_quant(graph: Graph) -> Graph:
    """Fold, and put quantizers with an offset of -128 around every layer that can carry them."""
    folded = fold_batch_norm(graph)
    quantized = {}
    for found in capabilities(folded):
        if found.quantizable:
            scales = found.shape[0] if found.type == "Convolution" else 1
            factors = Factors(scale_d=6 / 255, offset_d=-128, scale_w=(0.01,) * scales, offset_w=(0,) * scales)
            quantized[found.name] = QuantizedBlobs(folded.by_name[found.name].blobs, factors)
    return insert_quantizers(folded, quantized)


def timed(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run the actions in turn, once to warm up; (wall, CPU) seconds of each repeat."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: values[1:] for name, values in times.items()}


def compare_forward(model: Path, weights: Path, repeats: int, seed: int) -> None:
    """Print the table of forward passes."""
    plain = load_graph(model, weights)
    graphs = {"autonuq": plain, "autonuq, fake-quant": fake_quant(plain)}
    print("| batch, threads | engine | ms | CPU ms | OpenCV's time / its | CPU | largest difference |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for batch, threads in SETTINGS:
        images = np.random.default_rng(seed).standard_normal((batch, 3, 224, 224), np.float32)
        cv2.setNumThreads(threads)
        network = cv2.dnn.readNetFromCaffe(str(model), str(weights))

        def opencv(network: cv2.dnn.Net = network, images: Array = images) -> Array:
            network.setInput(images)
            return network.forward()

        actions: dict[str, Callable[[], object]] = {"OpenCV": opencv}
        for name, graph in graphs.items():
            session = Session(lower(graph, {"data": images.shape}), threads=threads)
            actions[name] = lambda session=session, images=images: session.run({"data": images})
        times = timed(actions, repeats)
        expected = opencv()
        for name, pairs in times.items():
            wall, cpu = (statistics.median(values) * 1e3 for values in zip(*pairs, strict=True))
            bases = times["OpenCV"]
            faster = statistics.median(base[0] / own[0] for base, own in zip(bases, pairs, strict=True))
            cheaper = statistics.median(base[1] / own[1] for base, own in zip(bases, pairs, strict=True))
            found = actions[name]()
            values = next(iter(found.values())) if isinstance(found, dict) else found
            far = "" if "quant" in name else f"{np.abs(values - expected).max() / np.abs(expected).max():.1e}"
            print(f"| {batch}, {threads} | {name} | {wall:.0f} | {cpu:.0f} | {faster:.2f} | {cheaper:.2f} | {far} |")


def compare_nets(model: Path, folder: Path, weights: list[Path]) -> None:
    """Print what the first and the later nets cost, in fresh processes."""
    tiny = folder / "tiny.prototxt"
    tiny.write_text(TINY)
    write_model(random_weights(load_graph(tiny), 0), tiny, folder / "tiny.caffemodel")
    command = [sys.executable, "-c", SECOND, str(tiny), str(model), "8", *map(str, weights)]
    runs = []
    for _ in range(3):
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        runs.append([[float(value) for value in line.split()] for line in lines])
    print("\n| net | ms | CPU ms | / first | CPU / first | / a forward pass of 8 | CPU / its CPU |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for index in range(len(weights)):
        rows = []
        for run in runs:
            (first_wall, first_cpu, *_), (wall, cpu, pass_wall, pass_cpu) = run[0], run[index]
            rows.append((wall * 1e3, cpu * 1e3, wall / first_wall, cpu / first_cpu, wall / pass_wall, cpu / pass_cpu))
        wall, cpu, *ratios = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {index + 1} | {wall:.0f} | {cpu:.0f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def print_operators(graph: Graph, batch: int, threads: int) -> None:
    """Print which operators and which nodes take the time."""
    blob, shape = next(iter(graph.inputs.items()))
    images = np.random.default_rng(0).standard_normal((batch, *shape[1:]), np.float32)
    events = _profile(lower(graph, {blob: images.shape}), {blob: images}, threads)
    total = sum(duration for _, _, duration in events)
    by_operator, by_node = Counter(), Counter()
    for operator, node, duration in events:
        by_operator[operator] += duration / total
        by_node[f"{operator} {node}"] += duration / total
    print(f"\n{graph.name}, batch {batch}, {threads} threads:", end=" ")
    print(", ".join(f"{name} {share:.0%}" for name, share in by_operator.most_common(8) if share >= 0.01), end="; ")
    print("nodes:", ", ".join(f"{name} {share:.0%}" for name, share in by_node.most_common(5)))


def _profile(lowered: Lowered, feeds: dict[str, Array], threads: int, passes: int = 10) -> list[tuple[str, str, float]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.enable_profiling = 3, threads, True
    arrays = [np.require(weights.values, requirements=["C", "A"]) for weights in lowered.initializers.values()]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    if values:
        options.add_external_initializers(list(lowered.initializers), values)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(lowered.model, options, providers=["CPUExecutionProvider"])
        for _ in range(passes):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) // passes :]  # without the first pass
    return [(e["args"]["op_name"], e["name"].removesuffix("_kernel_time"), e["dur"] / (passes - 1)) for e in kernels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--operators", type=Path, nargs=2, metavar=("PROTOTXT", "WEIGHTS"))
    given = parser.parse_args()
    if given.operators:
        graph = load_graph(*given.operators)
        for batch, threads in SETTINGS:
            print_operators(graph, batch, threads)
            print_operators(fake_quant(graph), batch, threads)
        return
    print(f"onnxruntime {onnxruntime.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}, ", end="")
    print(f"Python {platform.python_version()}, {os.cpu_count()} x {platform.machine()}, seed {given.seed}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, weights = folder / "net.prototxt", [folder / f"{index}.caffemodel" for index in range(4)]
        for index, path in enumerate(weights):
            write_model(random_weights(load_graph(given.model), given.seed + index), model, path)
        compare_forward(model, weights[0], given.repeats, given.seed)
        compare_nets(model, folder, weights)


if __name__ == "__main__":
    main()
