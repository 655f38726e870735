"""Whether the loss that a study promises is kept on images that it never saw, less than one point of top-1 lost.

    python studies/bench/trust.py [--shared ../shared] [--networks lenet-fashion ...] [--seeds 4] [--first-seed 0]
                                  [--trials 40] [--confidence 0.8] [--without-today]

Every study has a random split of its own of the network's labelled images, because studies on one split share its luck:
4,000 of them (2,000 of CIFAR-10, 200 for EfficientNet) are what its study file names, and it does with them what its
defaults do; the others judge the chosen plan and every plan near the limit. For comparison a second study on the same
images takes every measurement at its word and holds nothing back (`confidence = 0`, `confirm = false`): today's rule.

Of each network and of all: the share of the studies whose chosen plan loses less than the limit on the judging images,
the mean and the largest loss there; the chosen ratio over the largest ratio that the judging images would have allowed,
among that study's plans (mean); how many studies chose nothing, and how many say that their choice is not confirmed.
The second table asks whether the stated probabilities are true: of the plans near the limit that are said to keep it
with such a probability, the share that does on the judging images, and the share that would if every probability were
true, as those images have luck of their own.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean

import numpy as np
import onnxruntime
import optuna
from networks import BATCH, NETWORKS, Data, efficientnet

import autonuq as nuq
from autonuq.records import StudyRecord, TrialRecord
from autonuq.study.run import StudyRun
from autonuq.study.scoring import score_candidate
from autonuq.study.study_file import load_task

LIMIT = 1.0
NEAR = (0.02, 0.98)
"""Stated probabilities of the plans that are judged: elsewhere the judging images say nothing new."""
BANDS = (0.02, 0.25, 0.45, 0.65, 0.75, 0.85, 0.95, 0.98)


@dataclass(frozen=True)
class Network:
    """Its data, and how many of them a study gets.

    Attributes
    ----------
    data : callable
        Folder -> labelled images and calibration images, as the network takes them.
    studied : int
        Images of the study; the others judge.
    batch : int
    calibrates : bool
        There are images for it; otherwise those of the study serve.
    """

    data: Callable[[Path], Data]
    studied: int = 4000
    batch: int = BATCH
    calibrates: bool = True


TRUSTED = {
    "lenet-fashion": Network(NETWORKS["lenet-fashion"]),
    "resnet20-fashion": Network(NETWORKS["resnet20-fashion"]),
    "lenet-mnist": Network(NETWORKS["lenet-mnist"]),
    "cifar10-quick": Network(NETWORKS["cifar10-quick"], studied=2000),
    "efficientnet-lite0": Network(efficientnet, studied=200, batch=50, calibrates=False),
}
STUDY = """
name = "{name}"
[model]
prototxt = "{model}/deploy.prototxt"
weights = "{model}/weights.caffemodel"
[evaluator]
kind = "top1"
drop = {limit}
batch_size = {batch}
[evaluator.data]
npz = "{data}.npz"
layout = "NCHW"
[evaluator.calibration]
npz = "calibration.npz"
layout = "NCHW"
[quantization]
batch_num = {batches}
[search]
seed = {seed}
trials = {trials}
{rules}
"""


@dataclass(frozen=True)
class Judged:
    """A plan on the images that judge.

    Attributes
    ----------
    ratio : float
    probability : float
        As the study states it.
    stated_error : float
        Of the loss that it goes with, in points.
    loss, error : float
        On the judging images, in points.
    """

    ratio: float
    probability: float
    stated_error: float
    loss: float
    error: float

    @property
    def keeps(self) -> bool:
        return self.loss < LIMIT

    @property
    def expected(self) -> float:
        """The probability that it keeps the limit on the judging images, if the stated one is true."""
        distance = NormalDist().inv_cdf(self.probability) * self.stated_error
        return NormalDist().cdf(distance / math.hypot(self.stated_error, self.error))


@dataclass(frozen=True)
class Verdict:
    """What became of one study.

    Attributes
    ----------
    chosen : Judged or None
    plans : tuple of Judged
        Those near the limit.
    confirmed : bool or None
        None where the study held nothing back.
    """

    chosen: Judged | None
    plans: tuple[Judged, ...]
    confirmed: bool | None

    @property
    def share(self) -> float:
        """The chosen ratio over the largest one allowed by the judging images."""
        allowed = [plan.ratio for plan in self.plans if plan.keeps]
        return self.chosen.ratio / max(allowed) if allowed else math.nan


class Split:
    """One random split of a network's images, on disk, with the studies that run on it."""

    def __init__(self, name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
        self.name, self.seed, self.folder, self.options = name, seed, folder, options
        self.batch = TRUSTED[name].batch
        images, labels, calibration = TRUSTED[name].data(options.shared / "data")
        order = np.random.default_rng([12, seed]).permutation(len(labels))
        parts = {"studied": order[: TRUSTED[name].studied], "judging": order[TRUSTED[name].studied :]}
        for part, own in parts.items():
            np.savez(folder / f"{part}.npz", images=images[own], labels=labels[own])
        if not TRUSTED[name].calibrates:
            calibration = images[parts["studied"]]
        self.batches = min(10, len(calibration) // self.batch)
        calibration = calibration[: self.batches * self.batch]
        np.savez(folder / "calibration.npz", images=calibration, labels=np.zeros(len(calibration), np.int64))
        judge = load_task(self._study_file("judging", "confirm = false")).made()
        self._judge, self._source = judge.evaluator, judge.source
        self._original = self._score(self._source)

    def run(self, rules: str) -> Verdict:
        """Run a study and judge what it found."""
        study_file = self._study_file("studied", rules)
        study = nuq.tune_file(study_file)
        run = StudyRun(load_task(study_file))
        judged = {trial.number: self._judged(run, study, trial) for trial in self._interesting(study.record())}
        record = study.record()
        chosen = None if record.best is None else judged[record.best.number]
        confirmed = None if record.confirmation is None else record.confirmation.holds
        return Verdict(chosen, tuple(judged.values()), confirmed)

    def _study_file(self, data: str, rules: str) -> Path:
        number = len(list(self.folder.glob("*.toml")))
        path = self.folder / f"{number}.toml"
        path.write_text(
            STUDY.format(
                name=f"{self.name}-{number}",
                model=(self.options.shared / "models" / self.name).resolve(),
                data=data,
                batch=self.batch,
                batches=self.batches,
                limit=LIMIT,
                seed=self.seed,
                trials=self.options.trials,
                rules=rules,
            )
        )
        return path

    def _interesting(self, record: StudyRecord) -> Iterator[TrialRecord]:
        """Yield the trials near the limit, each plan once, and the chosen one."""
        seen = set()
        best = -1 if record.best is None else record.best.number
        for trial in record.trials:
            plan = tuple(sorted(trial.points.items()))
            near = trial.state == "complete" and NEAR[0] <= trial.probability <= NEAR[1]
            if trial.number == best or (near and plan not in seen):
                seen.add(plan)
                yield trial

    def _judged(self, run: StudyRun, study: nuq.Study, trial: TrialRecord) -> Judged:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            metric = score_candidate(run.task, self._judge, run.candidate(study, trial.points), Path(folder))
        lost = 100 * (np.asarray(self._original.samples, float) - np.asarray(metric.samples, float))
        error = float(lost.std() / math.sqrt(len(lost)))
        return Judged(trial.ratio, trial.probability, 100 * trial.loss_error, float(lost.mean()), error)

    def _score(self, source) -> nuq.Score:
        return self._judge.eval_model(source.model, source.weights, self._judge.evaluate_batch_num)


def judge_rows(name: str, verdicts: Sequence[Verdict], rule: str) -> str:
    """Return a network's row of the first table."""
    chosen = [verdict for verdict in verdicts if verdict.chosen is not None]
    nothing, unconfirmed = len(verdicts) - len(chosen), sum(verdict.confirmed is False for verdict in chosen)
    if not chosen:
        return f"| {name} | {rule} | {len(verdicts)} | - | - | - | - | {nothing} | {unconfirmed} |"
    losses = [verdict.chosen.loss for verdict in chosen]
    kept = f"{sum(verdict.chosen.keeps for verdict in chosen)} of {len(chosen)}"
    shares = [verdict.share for verdict in chosen if not math.isnan(verdict.share)]
    share = f"{100 * fmean(shares):.1f} %" if shares else "-"
    figures = f"{fmean(losses):.2f} | {max(losses):.2f} | {share} | {nothing} | {unconfirmed}"
    return f"| {name} | {rule} | {len(verdicts)} | {kept} | {figures} |"


def calibration_rows(plans: Sequence[Judged]) -> Iterator[str]:
    """Yield the rows of the second table."""
    for low, high in zip(BANDS[:-1], BANDS[1:], strict=True):
        own = [plan for plan in plans if low <= plan.probability < high]
        if own:
            stated, kept, expected = (
                fmean(values)
                for values in zip(*((plan.probability, plan.keeps, plan.expected) for plan in own), strict=True)
            )
            yield f"| {low:.2f} to {high:.2f} | {len(own)} | {stated:.2f} | {kept:.2f} | {expected:.2f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="*", default=list(TRUSTED), choices=list(TRUSTED))
    parser.add_argument("--seeds", type=int, default=4, help="studies of each network, each on a split of its own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--confidence", type=float, help="instead of the default")
    parser.add_argument("--without-today", action="store_true", help="leave the comparison out")
    options = parser.parse_args(arguments)
    own = "" if options.confidence is None else f"confidence = {options.confidence}"
    rules = {"ours": own} | ({} if options.without_today else {"today": "confidence = 0\nconfirm = false"})
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, Optuna "
        f"{optuna.__version__}, ONNX Runtime {onnxruntime.__version__}; seeds {options.first_seed} to "
        f"{options.first_seed + options.seeds - 1}, {options.trials} trials; less than {LIMIT:g} point may be lost"
    )
    print("| network | rule | studies | keep it | mean loss | largest | share of ratio | none | unconfirmed |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    verdicts: dict[str, list[Verdict]] = {rule: [] for rule in rules}
    for name in options.networks:
        found: dict[str, list[Verdict]] = {rule: [] for rule in rules}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                split = Split(name, seed, Path(folder), options)
                for rule, lines in rules.items():
                    found[rule].append(split.run(lines))
        for rule in rules:
            print(judge_rows(name, found[rule], rule), flush=True)
            verdicts[rule] += found[rule]
    for rule in rules:
        print(judge_rows("all", verdicts[rule], rule))
    print("\n| stated | plans | mean of it | keep the limit | would, if true |\n|---|---:|---:|---:|---:|")
    for row in calibration_rows([plan for verdict in verdicts["ours"] for plan in verdict.plans]):
        print(row)


if __name__ == "__main__":
    main()
