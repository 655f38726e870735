"""What a chip loads after a study that counts its bytes: the ratio, its floor, and int8 alone beside it.

    python studies/bench/chip.py --shared ../shared [--networks lenet-fashion ...] [--chip ascend310] [--marks all]
                                 [--trials 40] [--seed 0] [--images 1000] [--amct-levels]

Less than one point of top-1 may be lost, on the whole test set, every measurement at its word. *Floor* is the ratio of
a network of zeros: ATC's packets hold 42 of them at most, and headers, padding and rounding come on top. `--images`
limits the calibration; `--amct-levels` gives the peer, which chooses from what AMCT can.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from networks import BATCH, NETWORKS, Top1

import autonuq as nuq
from autonuq.compress.chip import floor_bytes
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import load_graph
from autonuq.quant.config import Target

SCORED = ("lenet-fashion", "resnet20-fashion", "cifar10-quick")


def floor_ratio(model: Path, weights: Path) -> float:
    """Return the ratio of a network of zeros where the compiler compresses all layers."""
    graph = load_graph(model, weights)
    quantized = quantize(graph, default_config(graph))
    aimed = replace(quantized, config=replace(quantized.config, target=Target("ascend")))
    return 4 * sum(quantized.weight_counts.values()) / floor_bytes(aimed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=SCORED, choices=tuple(NETWORKS))
    parser.add_argument("--chip", default="ascend310")
    parser.add_argument("--marks", default="all")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--amct-levels", action="store_true", help="32 or 16 levels or uniform steps, as AMCT has it")
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, seed {options.seed}, {options.trials} trials\n")
    sizes = f"{'float32':>10} {'int8':>9} {'now':>9}"
    print(f"{'network':18} {sizes} {'ratio':>6} {'floor':>6} {'int8/now':>8} {'lost':>5}  s")
    for name in options.networks:
        pair = [options.shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel")]
        evaluator = Top1(NETWORKS[name](options.shared / "data"))
        batches = min(options.images, len(evaluator.calibration)) // BATCH
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            study = nuq.tune(
                *pair,
                evaluator,
                out=Path(folder) / name,
                chip=options.chip,
                marks=options.marks,
                amct_levels=options.amct_levels,
                n_trials=options.trials,
                seed=options.seed,
                batch_num=max(1, min(10, batches)),
                confidence=0.0,
            )
            record, best = study.record(), study.best
        spent_s = time.monotonic() - started
        if best is None:
            print(f"{name:18} no trial satisfied")
            continue
        print(
            f"{name:18} {record.original_bytes:10,} {record.int8_bytes:9,} {best.size_bytes:9,} {best.ratio:6.2f} "
            f"{floor_ratio(*pair):6.2f} {record.int8_bytes / best.size_bytes:8.2f} {best.loss:5.2f} {spent_s:4.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
