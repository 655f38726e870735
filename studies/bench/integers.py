"""How far fake-quantized networks in integers are from their emulation in float32, which is Caffe with AMCT's layers.

    python studies/bench/integers.py --shared ../shared [--networks resnet20-fashion ...] [--images 200] [--seed 0]

Of every network: the share of multiplications that run in integers; the share of activation codes behind its Quant
layers that differ by one step, and by more; the share of decisions that are equal, and so those of the deploy pair,
whose biases are int32 everywhere. Where labels are there, top-1 of all test images in percent: emulation, integers,
deploy pair.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
from fake_quant_pair import calibrate, shaped_net
from speed_networks import NETWORKS, SpeedNetwork, decisions

from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_deploy, write_fake_quant
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import Lowered, lower
from autonuq.graph.model import Array, Graph
from autonuq.graph.operators.quantizers import quant_factors
from autonuq.graph.passes import WEIGHT_TYPES
from autonuq.runtime.integers import integer_plan
from autonuq.runtime.session import Session

BATCH = 20
CALIBRATION_IMAGES = 40


def share_in_integers(graph: Graph, lowered: Lowered) -> float:
    """Return the share of multiplications that an operator for integers makes."""
    nodes = onnx.ModelProto.FromString(lowered.model).graph.node
    kinds = ("QLinearConv", "MatMulIntegerToFloat")
    integer = {node.name.rpartition(":")[0] for node in nodes if node.op_type in kinds}
    shapes, counts = infer_shapes(graph), {}
    for layer in graph.layers:
        if layer.type in WEIGHT_TYPES:
            counts[layer.name] = layer.blobs[0].size * math.prod(shapes[layer.tops[0]][2:])
    return sum(count for name, count in counts.items() if name in integer) / sum(counts.values())


def differing_codes(graph: Graph, plan: IntegerPlan | None, images: Array) -> tuple[float, float]:
    """Return the shares of codes that differ by one step and by more."""
    quantizers = [layer for layer in graph.layers if layer.type == "Quant"]
    tops = [layer.tops[0] for layer in quantizers]
    (blob,) = graph.inputs
    shapes = {blob: (BATCH, *images.shape[1:])}
    sessions = [Session(lower(graph, shapes, outputs=tops, plan=one)) for one in (None, plan)]
    count = np.zeros(3)
    for begin in range(0, len(images), BATCH):
        emulated, found = (session.run({blob: images[begin : begin + BATCH]}) for session in sessions)
        for layer, top in zip(quantizers, tops, strict=True):
            steps = np.abs(np.rint((emulated[top] - found[top]) * quant_factors(layer)[0]))
            count += (steps == 0).sum(), (steps == 1).sum(), (steps > 1).sum()
    _, one, more = count / count.sum()
    return float(one), float(more)


def scores(pair: ModelPair, images: Array, *, emulated: bool = False) -> Array:
    """Return the last output of every image."""
    net = shaped_net(pair, BATCH)
    (blob,), output = net.inputs, net.outputs[-1]
    if not emulated:
        run = lambda part: net.forward(**{blob: part})[output].copy()  # noqa: E731
    else:
        session = Session(lower(load_graph(pair.model, pair.weights), {blob: (BATCH, *images.shape[1:])}))
        run = lambda part: session.run({blob: part})[output]  # noqa: E731
    return np.concatenate([run(images[begin : begin + BATCH]) for begin in range(0, len(images), BATCH)])


def row(name: str, network: SpeedNetwork, options: argparse.Namespace, folder: Path) -> str:
    pair = network.write(name, options.shared, folder, options.seed)
    images = network.some_images(options.images, options.shared, options.seed)
    candidate = Candidate(calibrate(pair, images[:CALIBRATION_IMAGES], folder))
    fake, deploy = (
        ModelPair(folder / f"{kind}.prototxt", folder / f"{kind}.caffemodel") for kind in ("fake", "deploy")
    )
    write_fake_quant(candidate, fake)
    write_deploy(candidate, deploy)
    graph = load_graph(fake.model, fake.weights)
    plan = integer_plan(graph)
    one, more = differing_codes(graph, plan, images)
    share = share_in_integers(graph, lower(graph, plan=plan))
    cells = [f"{share:.0%}", f"{one:.3%}", f"{more:.4%}"]
    labels = None
    if network.images is not None:
        images, labels, _ = network.images(options.shared / "data")
        images = np.asarray(images[: len(images) // BATCH * BATCH], np.float32)
    found = [
        decisions(values, network.classes)
        for values in (scores(fake, images, emulated=True), scores(fake, images), scores(deploy, images))
    ]
    cells += [f"{np.mean(found[0] == other):.3%}" for other in found[1:]]
    if labels is not None:
        cells += [f"{np.mean(one == labels[: len(images)]):.3%}" for one in found]
    return f"| {name} | {len(images)} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| network | images | in integers | codes off by one | by more | same decisions | deploy pair's |", end="")
    print(" top-1 emulated | in integers | deploy pair |")
    print("|---|" + "---:|" * 9)
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, NETWORKS[name], options, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
