"""What it costs activation ranges that the values of a calibration are let go: a stream against all values.

    python studies/bench/ranges.py --shared ../shared [--networks lenet-fashion ...] [--images 24] [--batch 8]

Every calibrated layer's input goes through a `ValueStream` and is kept whole besides; the range of all values comes
from a stream whose tails hold everything, so that AMCT's definition decides (`tests/quant/test_range_search.py` has it
once more, by hand). Each layer counts twice: with and without an offset. "step": scales at most one step of the search
apart; "error": the largest quotient of the squared errors; times are the processor's of one thread.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from networks import NETWORKS, efficientnet

from autonuq.compress.calibration import write_calibration_model
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import ModelPair, load_graph
from autonuq.quant import stream
from autonuq.quant.activation import ActivationRange
from autonuq.quant.config import ActivationSettings
from autonuq.quant.range_search import ifmr
from autonuq.quant.stream import ValueStream
from autonuq.quant.uniform import round_half_away
from autonuq.runtime import calibration
from autonuq.runtime.moments import request_moments
from autonuq.runtime.net import Net

ALL = {**NETWORKS, "efficientnet-lite0": efficientnet}
SETTINGS = ActivationSettings()


class Watched(ValueStream):
    """A stream whose batches are kept besides."""

    made: list[Watched] = []

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[np.ndarray] = []
        self.made.append(self)
        self.seconds = 0.0

    def update(self, values) -> None:
        self.batches.append(np.array(values).reshape(-1))
        start = time.thread_time()
        super().update(values)
        self.seconds += time.thread_time() - start


@dataclass(frozen=True)
class Row:
    """One layer, with or without an offset: whether the ranges agree, and what each took."""

    same: bool
    within_step: bool
    error: float
    stream_s: float
    all_s: float


def observed(name: str, shared: Path, batch: int, batches: int, folder: Path) -> list[Watched]:
    """Calibrate a network and return what its layers saw."""
    source = ModelPair(*(shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel")))
    graph = load_graph(source.model, source.weights)
    pair = ModelPair(folder / "modified_model.prototxt", folder / "modified.caffemodel")
    write_calibration_model(quantize(graph, default_config(graph, batch_num=batches)), pair, folder / "record.txt")
    request_moments(folder / "record.txt", ())
    Watched.made, calibration.ValueStream = [], Watched
    net = Net(pair.model, pair.weights)
    images = ALL[name](shared / "data")[2]
    for index in range(batches):
        part = images[index * batch : (index + 1) * batch]
        net.blobs[net.inputs[0]].reshape(*part.shape)
        net.blobs[net.inputs[0]].data[...] = part
        net.forward()
    return [found for found in Watched.made if found.size]


def squared_error(values: np.ndarray, found: ActivationRange) -> float:
    steps = np.clip(round_half_away(values / np.float32(found.scale)), -128 - found.offset, 127 - found.offset)
    error = (steps * np.float32(found.scale)).astype(np.float64) - values
    return float(error @ error)


def compared(watched: Watched, with_offset: bool) -> Row:
    """Search the range of one layer both ways."""
    start = time.thread_time()
    ours = ifmr(watched, settings=SETTINGS, with_offset=with_offset)
    stream_s = watched.seconds + time.thread_time() - start
    tail, chunk = stream.TAIL, stream.CHUNK
    stream.TAIL = stream.CHUNK = watched.size
    start = time.thread_time()
    everything = ValueStream()
    everything.update(np.concatenate(watched.batches))
    exact = ifmr(everything, settings=SETTINGS, with_offset=with_offset)
    all_s = time.thread_time() - start
    stream.TAIL, stream.CHUNK = tail, chunk
    error = 1.0
    if ours != exact:
        values = np.concatenate(watched.batches)
        error = squared_error(values, ours) / squared_error(values, exact)
    step = SETTINGS.search_step / SETTINGS.search_start
    return Row(ours == exact, abs(ours.scale / exact.scale - 1) < 1.001 * step, error, stream_s, all_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="*", default=list(ALL))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}, {arguments.images} images")
    print("network                values  layers  same  step     error  stream s   all s")
    for name in arguments.networks:
        batches = arguments.images // arguments.batch
        with tempfile.TemporaryDirectory() as folder:
            seen = observed(name, arguments.shared, arguments.batch, batches, Path(folder))
        rows = [compared(each, with_offset) for each in seen for with_offset in (True, False)]
        print(
            f"{name:<19}{sum(each.size for each in seen):>10,}{len(rows):>8}{sum(row.same for row in rows):>6}"
            f"{sum(row.within_step for row in rows):>6}{max(row.error for row in rows):>10.6f}"
            f"{sum(row.stream_s for row in rows):>10.2f}{sum(row.all_s for row in rows):>8.2f}"
        )


if __name__ == "__main__":
    main()
