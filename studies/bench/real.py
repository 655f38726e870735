"""What searches find on the five real networks, less than one point of top-1 lost, codec `entropy`.

    python studies/bench/real.py [--shared ../shared] [--networks lenet-fashion ...] [--searches rate-distortion ...]
                                 [--trials 40] [--seed 0] [--halves] [--seeded] [--keep FOLDER]

`uniform` is the best single number of levels for all layers (exact k-means, as in `ratio.py`), found by bisection; the
others are studies as `autonuq tune` runs them, on operating points that are built once a network. GP needs SciPy and
PyTorch. Of each study: the best ratio, the points lost, trials, batches scored in all, minutes without the making of
the points, and how far the margins were from what the curves and the trials before predicted (root mean square of log
drops, of trials from the tenth on that lost at least a quarter of a point).

With --halves the search sees one half of the test set, every second image, and the other half confirms: the points lost
there in excess are what luck was worth. With --seeded, six uniform plans come first for the rate-distortion sampler,
too.
"""

from __future__ import annotations

import argparse
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from networks import BATCH, NETWORKS, Data, Top1
from ratio import LEVELS, Bench, Family, tightest, with_levels

from autonuq.graph.files import ModelPair
from autonuq.records import StudyRecord
from autonuq.search.space import SEED_LEVELS
from autonuq.study.run import StudyRun
from autonuq.study.stored import Study
from autonuq.study.task import Task

SEARCHES = ("uniform", "rate-distortion", "tpe", "gp", "random")
BURN_IN = 10


def halves(data: Data) -> tuple[Data, Data]:
    images, labels, calibration = data
    size = len(images) // 2 // BATCH * BATCH
    first, second = (slice(start, start + 2 * size, 2) for start in (0, 1))
    return (images[first], labels[first], calibration), (images[second], labels[second], calibration)


def prediction_error(record: StudyRecord) -> float:
    """Return the root mean square of measured minus predicted margins near and beyond the edge."""
    errors = [
        trial.margin - trial.predicted
        for trial in record.trials[BURN_IN:]
        if trial.margin is not None and trial.predicted is not None and trial.margin > math.log(0.25)
    ]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else math.nan


def run_search(
    name: str, search: str, evaluator: Top1, unseen: Data | None, folder: Path, options: argparse.Namespace
) -> str:
    """Run one study and describe what it found."""
    shared = options.shared
    source = ModelPair(*(shared / "models" / name / file for file in ("deploy.prototxt", "weights.caffemodel")))
    task = Task(
        name=name,
        source=source,
        evaluator=evaluator,
        out=folder / search,
        storage=f"journal://{folder / search}.log",
        batch_num=min(10, len(evaluator.calibration) // BATCH),
        sampler=search,
        seed=options.seed,
        n_trials=1,
        confirm=Top1(unseen) if unseen is not None else None,
        stop_gain=0.0,
    )
    if (folder / "calibration").is_dir():
        shutil.copytree(folder / "calibration", task.out / "calibration")
    study = StudyRun(task).run(exists=False)
    if options.seeded and search == "rate-distortion":
        enqueue_seeds(study)
    if not (folder / "calibration").is_dir():
        shutil.copytree(task.out / "calibration", folder / "calibration")
    began = time.perf_counter()
    study = StudyRun(replace(task, n_trials=options.trials)).run(exists=True)
    minutes = (time.perf_counter() - began) / 60
    record = study.record()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{folder / search}.log", options.keep / f"{name}-{search}-{options.seed}.log")
    best = record.best
    found = "nothing | -" if best is None else f"{best.ratio:.2f}x | {record.original_metric - best.metric:.2f}"
    confirmed = record.confirmation
    lost = "-" if confirmed is None else f"{confirmed.original_metric - confirmed.metric:.2f}"
    done = sum(trial.state == "complete" for trial in record.trials)
    batches, evaluator.batches_scored = evaluator.batches_scored, 0
    return f"{found} | {lost} | {done} | {batches} | {minutes:.1f} | {prediction_error(record):.2f}"


def enqueue_seeds(study: Study) -> None:
    """Queue one plan for each number of levels in `SEED_LEVELS`."""
    layers = [layer for layer in study.record().layers if len(layer.rates_bytes) > 1]
    sampler = study.optuna.sampler
    for levels in SEED_LEVELS:
        plan = {
            layer.name: next((i for i, k in enumerate(layer.curve_levels) if k <= levels), len(layer.curve_levels) - 1)
            for layer in layers
        }
        study.optuna.enqueue_trial(sampler.parameters(plan))


def run_uniform(name: str, shared: Path, folder: Path) -> str:
    bench = Bench(name, shared, folder)
    plans = Family([with_levels(bench, levels) for levels in LEVELS])
    began = time.perf_counter()
    ratio, drop, _, evaluations = tightest(bench, plans)
    minutes = (time.perf_counter() - began) / 60
    return f"{ratio:.2f}x | {drop:.2f} | - | {evaluations} | {bench.evaluator.batches_scored} | {minutes:.1f} | -"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--searches", nargs="*", default=list(SEARCHES[:3]), choices=SEARCHES)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--seeded", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the studies' journals")
    options = parser.parse_args(arguments)
    versions = f"NumPy {np.__version__}, Optuna {optuna.__version__}"
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}")
    print("| network | search | ratio | points lost | on unseen half | trials | batches | minutes | prediction error |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            for search in options.searches:
                if search == "uniform":
                    print(f"| {name} | uniform | {run_uniform(name, options.shared, Path(folder))} |", flush=True)
                    continue
                data, unseen = NETWORKS[name](options.shared / "data"), None
                if options.halves:
                    data, unseen = halves(data)
                row = run_search(name, search, Top1(data), unseen, Path(folder), options)
                print(f"| {name} | {search} | {row} |", flush=True)


if __name__ == "__main__":
    main()
