"""Many workers, many trials, many layers: every trial exactly once."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
from rows import Row
from victim import Places, Victim, warm

CROWDS = {
    "16 workers, journal": ("journal", 16, 600),
    "16 workers, postgresql": ("postgresql", 16, 600),
}
SHORT_TRIALS = 64
SHORT_S, LONG_S = 60.0, 1000.0  # below the one, a single small crowd; above the other, all trials
LAYERS = 200


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Let each crowd work once, on as many trials as the time allows; then the network of many layers."""
    warm(folder)
    rows = []
    chosen = {name: one for name, one in CROWDS.items() if only in f"crowd, {name}"}
    with Places(folder) as places:
        for number, (name, (storage, workers, trials)) in enumerate(chosen.items()):
            place = folder / str(number)
            url = places.url(storage, place)
            if url is not None:
                few = trials if seconds > LONG_S else max(SHORT_TRIALS, int(seconds / 3))
                rows.append(_crowd(name, place, url, workers, min(few, trials)))
            if seconds < SHORT_S:
                return rows
    if only in "many layers":
        rows.append(_deep(folder / "layers"))
    return rows


def _crowd(name: str, place: Path, url: str, workers: int, trials: int) -> Row:
    victim = Victim(place, url, f"crowd-{time.monotonic_ns()}", trials=trials, more='sampler = "random"\n')
    _write_chain(place, 12)
    began = time.monotonic()
    first = victim.start("tune", "study.toml")
    rest = [victim.start("work", "study.toml", "--wait", "600") for _ in range(workers - 1)]
    row = Row(f"crowd, {name}", trials)
    for child in (first, *rest):
        ended = child.wait(3600)
        row.wrong[f"ended with {ended.code}: {ended.errors[-200:]}"] += ended.code != 0
    row.notes = f"{time.monotonic() - began:.0f} s, {trials} trials"
    states = Counter(one[0] for one in victim.read()["trials"].values())
    plans = Counter(victim.calls())
    row.wrong["lost"] += max(0, trials - states["complete"])
    row.wrong["too many"] += max(0, states.total() - trials)
    row.wrong["scored twice"] += sum(count > 1 for count in plans.values())
    row.wrong = +row.wrong
    return row


def _deep(place: Path) -> Row:
    """Tune a chain of many layers; there is a trial with each layer's levels, and the export holds all of them."""
    victim = Victim(place, trials=4)
    _write_chain(place, LAYERS)
    began = time.monotonic()
    ended = victim.start("tune", "study.toml").wait(1800)
    row = Row(f"many layers, {LAYERS}", 1, notes=f"{time.monotonic() - began:.0f} s")
    row.wrong[f"ended with {ended.code}: {ended.errors[-200:]}"] += ended.code != 0
    found = victim.read()
    row.wrong["layers are missing"] += found is None or any(len(one[1]) != LAYERS for one in found["trials"].values())
    row.wrong = +row.wrong
    if not row.wrong:
        shutil.rmtree(place)
    return row


def _write_chain(place: Path, length: int) -> None:
    """Put a chain of small layers in the place of a victim's network: there are more plans than anybody tries."""
    from autonuq.graph.files import load_graph, write_caffemodel

    text = 'name: "chain"\nlayer { name: "data" type: "Input" top: "data" input_param { shape { dim: 8 dim: 6 } } }\n'
    for index in range(length):
        below = f"b{index}" if index else "data"
        text += (
            f'layer {{ name: "fc{index}" type: "InnerProduct" bottom: "{below}" top: "b{index + 1}" '
            f"inner_product_param {{ num_output: 6 }} }}\n"
        )
    text += f'layer {{ name: "prob" type: "Softmax" bottom: "b{length}" top: "prob" }}\n'
    (place / "net.prototxt").write_text(text)
    rng = np.random.default_rng(0)
    graph = load_graph(place / "net.prototxt")
    layers = [
        layer.with_(blobs=[np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32), np.zeros(6, np.float32)])
        if layer.type == "InnerProduct"
        else layer
        for layer in graph.layers
    ]
    write_caffemodel(graph.with_layers(layers), place / "net.caffemodel")
    evaluator = (place / "evaluate.py").read_text().replace("(batch_num, 8, 2, 6, 6)", "(batch_num, 8, 6)")
    (place / "evaluate.py").write_text(evaluator.replace("< 0.01", "< 0.3"))
