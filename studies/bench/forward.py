"""Speed and memory of forward passes, plain and fake-quant, and of a second net, as ratios taken in one run.

    python studies/bench/forward.py --shared ../shared [--networks vgg-like ...] [--batches 1 8] [--repeats 15]
                                    [--seed 0] [--threads 1] [--no-memory] [--no-second] [--operators]

Contestants run in turn in one process; a ratio is the median of the ratios of pairs, so that a busy machine hits both
sides. Times are CPU seconds, which count all threads. Ours are passes of `autonuq.Net` on files, as a user makes them:
`net.forward(data=images)`. "fake-quant" is the pair of files that a trial scores; OpenCV does not know its layers, so
it is set against the plain pair here. Agreement is that of the fake-quant pass with its emulation in float
(`emulation`): the largest difference over the largest value, and the share of equal decisions. Memory is the largest
resident set of a process that runs this contestant only. What a second net costs is constructor + first pass - a later
pass of a batch of 8, in a process that ran the first one, over such a later pass.

`--operators` prints where the time of the networks goes, by ONNX operator and by layer, and nothing else. The six
networks are in `speed_networks`; 100 images of ResNet-50 do not fit 4 GB, 16 take their place.

What onnxruntime 1.32 runs slower than it could on x86-64, and why
------------------------------------------------------------------
Shares are of a pass as `--operators` prints it; "x OpenCV" is OpenCV's time divided by onnxruntime's for the layer
alone, one thread, 64 channels of 56 x 56 unless told.

* Quant where nobody multiplies its codes (`graph.integers` has the others): Mul, Clip, Add, Floor and Div are a pass
  over memory each, as no operator of ONNX rounds halves away from zero; signed values need two more, for there is no
  Trunc. Sign takes 7 to 12 times as long as Clip, Shrink 75 times.
* QLinearConv with fewer than some 64 products for each output (a first layer of 1 or 3 channels): up to 5 times as long
  as the float Conv, so that one stays float. Depthwise 1.1 to 1.4 times, but no quantizer stands around it.
* A float result of integer products: ConvInteger is several times slower than Conv, MatMulIntegerToFloat of gathered
  strips takes 0.15 (256 channels) to 0.6 (16 channels) of it.
* Convolution 3x3 with stride 1 (0.92x OpenCV): calculated directly. OpenCV transforms it (Winograd), with about half
  the products.
* Convolution whose channels are no multiple of the vector width (16 with AVX-512): blocks are filled up with zeros that
  are calculated with. 5x5, 20 -> 50 channels (LeNet's second: 40 to 55 % of its pass) takes as long as 32 -> 64.
* Convolution in groups of other sizes than whole blocks (groups of 8 0.71x OpenCV, of 30 0.75x): runs unblocked.
* Deconvolution in groups, depthwise above all: 5 GFLOP/s against 150 without groups (one product of tiny matrices a
  channel), though still 2.7x OpenCV.
* LRN across channels (0.83x OpenCV): a few passes over memory instead of one; PReLU too, because onnxruntime's own
  operator is slower still: three passes in blocks of channels, four where these are not full. ELU takes three times as
  long as Sigmoid.
* Concat copies (5 % of SqueezeNet's pass): no operator writes into a part of its neighbour's memory.
* BatchNorm and Scale behind anything but a Convolution are a pass of their own. A BatchNorm whose channels fill no
  whole blocks, alone behind something in the blocked layout, also keeps a second net from being cheap: onnxruntime
  calculates with weights while it optimizes, so nothing can be kept.
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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from fake_quant_pair import calibrate, shaped_net, write_pairs
from speed_networks import NETWORKS, SpeedNetwork, decisions

import autonuq.runtime.net
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.lowering import Lowered, lower
from autonuq.graph.model import Array
from autonuq.runtime.session import Session

SECOND_BATCH = 8
CALIBRATION_IMAGES = 8
Pairs = Mapping[str, list[ModelPair]]
Pass = Callable[[], Array]


def timed(actions: Mapping[str, Pass], repeats: int) -> dict[str, list[float]]:
    """Run the actions in turn, once to warm up; CPU seconds of each repeat."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            begin = time.process_time()
            action()
            times[name].append(time.process_time() - begin)
    return {name: values[1:] for name, values in times.items()}


def net_pass(pair: ModelPair, images: Array) -> Pass:
    """Return what runs one pass of our net and returns the last of its outputs, which is the scores."""
    net = shaped_net(pair, len(images))
    feeds, scores = {net.inputs[0]: images}, net.outputs[-1]
    return lambda: net.forward(**feeds)[scores]


def opencv_pass(pair: ModelPair, images: Array) -> Pass:
    """Return the same of OpenCV's."""
    network = cv2.dnn.readNetFromCaffe(str(pair.model), str(pair.weights))
    names = sorted(network.getUnconnectedOutLayersNames())

    def run() -> Array:
        network.setInput(images)
        return network.forward(names)[-1]

    return run


def emulation(pair: ModelPair, images: Array, threads: int) -> Array:
    """Return the scores of a fake-quant pair whose layers are all calculated in float32."""
    graph = load_graph(pair.model, pair.weights)
    (blob,) = graph.inputs
    session = Session(lower(graph, {blob: images.shape}), threads=threads)
    return session.run({blob: images})[sorted(session.outputs)[-1]]


CONTESTANTS: dict[str, tuple[Callable[[ModelPair, Array], Pass], str]] = {
    "OpenCV": (opencv_pass, "plain"),
    "plain": (net_pass, "plain"),
    "fake-quant": (net_pass, "fake-quant"),
}


def compare(name: str, pairs: Pairs, images: Array, threads: int, repeats: int) -> str:
    """Return the row of one network and batch size, up to the memory."""
    actions = {label: make(pairs[kind][0], images) for label, (make, kind) in CONTESTANTS.items()}
    times = timed(actions, repeats)
    milliseconds = [statistics.median(values) * 1e3 for values in times.values()]
    opencv = median_ratio(times["OpenCV"], times["plain"])
    quantized = median_ratio(times["fake-quant"], times["plain"])
    wrong = largest_difference(actions["plain"](), actions["OpenCV"]())
    found, expected = actions["fake-quant"]().copy(), emulation(pairs["fake-quant"][0], images, threads)
    classes = NETWORKS[name].classes
    same = np.mean(decisions(found, classes) == decisions(expected, classes))
    spent = " | ".join(f"{value:.3g}" for value in milliseconds)
    agreement = f"{wrong:.1e} | {largest_difference(found, expected):.1e} | {same:.2%}"
    return f"| {name} | {len(images)} | {spent} | {opencv:.2f} | {quantized:.2f} | {agreement} |"


def median_ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def largest_difference(found: Array, expected: Array) -> float:
    return float(np.abs(found.reshape(-1) - expected.reshape(-1)).max() / np.abs(expected).max())


def peak_megabytes() -> float:
    """Return the largest resident set of this program; `ru_maxrss` would include the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def in_child(options: argparse.Namespace, *arguments: str | Path) -> list[float]:
    """Run this program's other entrance in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--child", *map(str, arguments)]
    return [
        float(value) for value in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    ]


def child(kind: str, images_file: str, *arguments: str) -> None:
    """Print the memory of passes of one contestant, or what a second net costs."""
    images = np.load(images_file)
    if kind == "memory":
        label, model, weights = arguments
        run = CONTESTANTS[label][0](ModelPair(Path(model), Path(weights)), images)
        for _ in range(3):
            run()
        print(peak_megabytes())
        return
    model, *weights = arguments
    for path in weights:
        begin = time.process_time()
        run = net_pass(ModelPair(Path(model), Path(path)), images)
        run()
        first, later = time.process_time() - begin, []
        for _ in range(5):
            begin = time.process_time()
            run()
            later.append(time.process_time() - begin)
        again = statistics.median(later)
        run = None
    print((first - again) * 1e3, (first - again) / again)


def memory(options: argparse.Namespace, pairs: Pairs, images_file: Path) -> str:
    peaks = []
    for label, (_, kind) in CONTESTANTS.items():
        pair = pairs[kind][0]
        (peak,) = in_child(options, "memory", images_file, label, pair.model, pair.weights)
        peaks.append(f"{peak:.0f}")
    return " | ".join(peaks)


def second_net(options: argparse.Namespace, pairs: Pairs, images_file: Path) -> str:
    cells = []
    for own in pairs.values():
        files = [own[0].model, *(pair.weights for pair in own)]
        runs = [in_child(options, "second", images_file, *files) for _ in range(3)]
        milliseconds, share = (statistics.median(column) for column in zip(*runs, strict=True))
        cells.append(f"{milliseconds:.1f} | {share:.2f}")
    return " | ".join(cells)


def print_operators(name: str, kind: str, pair: ModelPair, images: Array, threads: int) -> None:
    """Print which operators and which nodes take the time."""
    graph = load_graph(pair.model, pair.weights)
    (blob,) = graph.inputs
    events = _profile(lower(graph, {blob: images.shape}), {blob: images}, threads)
    total = sum(duration for _, _, duration in events)
    by_operator, by_node = Counter(), Counter()
    for operator, node, duration in events:
        by_operator[operator] += duration / total
        by_node[f"{operator} {node}"] += duration / total
    print(f"\n{name}, {kind}, batch {len(images)}, {threads} threads, {total / 1e3:.2f} ms:", end=" ")
    print(", ".join(f"{key} {share:.0%}" for key, share in by_operator.most_common(8) if share >= 0.01), end="; ")
    print("nodes:", ", ".join(f"{key} {share:.0%}" for key, share in by_node.most_common(5)))


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


def prepared(name: str, options: argparse.Namespace, folder: Path) -> tuple[Pairs, dict[int, Array]]:
    """Write a network's pairs; return them with the images of each batch size."""
    network: SpeedNetwork = NETWORKS[name]
    batches = [batch for batch in network.batches if not options.batches or batch in options.batches]
    images = network.some_images(max(*batches, CALIBRATION_IMAGES), options.shared, options.seed)
    pair = network.write(name, options.shared, folder, options.seed)
    model = calibrate(pair, images[:CALIBRATION_IMAGES], folder)
    return write_pairs(model, pair, folder), {batch: images[:batch] for batch in batches}


def run(name: str, options: argparse.Namespace, folder: Path) -> str:
    """Print the rows of one network's passes; return its row of second nets."""
    pairs, images = prepared(name, options, folder)
    if options.operators:
        for batch in images.values():
            for kind, own in pairs.items():
                print_operators(name, kind, own[0], batch, options.threads)
        return ""
    images_file = folder / "images.npy"
    for batch in images.values():
        row = compare(name, pairs, batch, options.threads, options.repeats)
        if options.memory:
            np.save(images_file, batch)
            row += f" {memory(options, pairs, images_file)} |"
        print(row, flush=True)
    if not options.second:
        return ""
    np.save(images_file, NETWORKS[name].some_images(SECOND_BATCH, options.shared, options.seed))
    return f"| {name} | {second_net(options, pairs, images_file)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, help="of each network's own: 1, 8 and 100 or 16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-second", dest="second", action="store_false")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)
    autonuq.runtime.net.Session = partial(Session, threads=options.threads)  # a net has no such option
    if options.child:
        child(*options.child)
        return
    print(f"onnxruntime {onnxruntime.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}, ", end="")
    print(f"Python {platform.python_version()}, {os.cpu_count()} x {platform.machine()}, seed {options.seed}, ", end="")
    print(f"{options.threads} thread(s), {options.repeats} repeats\n")
    if not options.operators:
        print(
            "| network | batch | OpenCV, CPU ms | plain | fake-quant | OpenCV / plain | fake-quant / plain | ", end=""
        )
        print("plain - OpenCV | fake-quant - emulation | same decisions |", end="")
        print(" MB OpenCV | plain | fake-quant |" if options.memory else "")
        print("|---|" + "---:|" * (12 if options.memory else 9))
    rows = []
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(name, options, Path(folder)))
    if options.second and not options.operators:
        print("\n| second net of | plain, CPU ms | / a pass of 8 | fake-quant, CPU ms | / a pass of 8 |")
        print("|---|---:|---:|---:|---:|", *rows, sep="\n")


if __name__ == "__main__":
    main()
