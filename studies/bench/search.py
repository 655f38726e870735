"""How near the optimum each sampler comes: a surrogate of 54 ResNet-50 layers, where an evaluation costs nothing.

    python studies/bench/search.py [--seeds 10] [--first-seed 0] [--evaluations 40] [--sigma 0.5] [--noise 0.05]
                                   [--misspecified] [--only ours,ours-4] [--slow] [--confidence]

Layers have the weight counts of ResNet-50 and 8 points, k = 256, 128 ... 2 levels: rate n log2(k) + 32 k bits,
distortion s c / k^2 with s log-normal (1.5), c such that k = 16 everywhere costs 1.5 points; the drop is
76 x / (1 + x) points with x = sum of distortions / 76, measured with normal noise; less than 1 point is allowed. What
the samplers are told of distortions is wrong by a log-normal factor (sigma) per layer and by one for all. The
misspecified truth has other exponents per layer (1.6 to 2.4), interactions of neighbours, and a steeper link.

The gap is 1 - ratio / optimum of the best trial that is feasible as measured and in truth: medians over the seeds. The
optimum is an exact knapsack's; where the truth is misspecified, the best of a frontier and exchanges of two layers.

With --confidence, which knows nothing of the truth either, the last lines say what a study would choose after the last
evaluation: the plan of the largest ratio that keeps the limit with this probability, its gap whether it is feasible or
not, and how many of the choices are infeasible in truth; 0 is the largest ratio that was measured feasible.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from autonuq.search import Curve, RateDistortionSampler
from autonuq.search.allocation import frontier, stack_layers
from autonuq.search.space import Space

LEVELS = 2.0 ** np.arange(8, 0, -1)
BLOCKS = ((3, 64), (4, 128), (6, 256), (3, 512))  # bottleneck blocks and their width: He et al., CVPR 2016, table 1
CHOICES = (0.0, 0.7, 0.8, 0.9)
UNIFORM = (0, 3, 4)  # 256, 32 and 16 levels: what seeded contestants evaluate first
REPORTED = (3, 5, 10, 20, 40, 100, 200)
WORKERS = 4
MARGIN_LIMIT = 7.0


def weight_counts() -> np.ndarray:
    """Return the number of weights of the 53 convolutions and the classifier, in order."""
    counts, channels = [64 * 3 * 7 * 7], 64
    for blocks, width in BLOCKS:
        for block in range(blocks):
            counts += [channels * width, width * width * 9, width * 4 * width]
            counts += [channels * width * 4] if block == 0 else []
            channels = 4 * width
    return np.array([*counts, 2048 * 1000], dtype=float)


class Surrogate:
    """A network of which everything is known; `measure` is what a search may call."""

    def __init__(self, seed: int, *, sigma: float, noise: float, misspecified: bool) -> None:
        rng = np.random.default_rng([54, seed])
        counts = weight_counts()
        layers = len(counts)
        sensitivities = np.exp(1.5 * rng.standard_normal(layers))
        self.rates = (counts[:, None] * np.log2(LEVELS) + 32 * LEVELS) / 8
        self.original_bytes = 4 * counts
        unit = 76 * 1.5 / (76 - 1.5) / (sensitivities / 16**2).sum()
        modelled = unit * sensitivities[:, None] / LEVELS**2
        exponents = rng.uniform(1.6, 2.4, layers) if misspecified else np.full(layers, 2.0)
        self.interactions = rng.uniform(-0.3, 0.6, layers - 1) if misspecified else np.zeros(layers - 1)
        self.link = 1.15 if misspecified else 1.0
        self.distortions = modelled * (16 / LEVELS) ** (exponents[:, None] - 2)
        errors = np.exp(sigma * rng.standard_normal(layers) + 3 * rng.standard_normal())
        self.curves = [
            Curve(f"layer{index}", rates, distortions)
            for index, (rates, distortions) in enumerate(zip(self.rates, modelled * errors[:, None], strict=True))
        ]
        self.noise, self._rng = noise, np.random.default_rng([55, seed])
        self._rows = np.arange(layers)
        self.optimum = self._optimum()

    def ratio(self, plan: np.ndarray) -> float:
        return float(self.original_bytes.sum() / self.rates[self._rows, plan].sum())

    def drop(self, plan: np.ndarray) -> float:
        own = self.distortions[self._rows, plan]
        joint = own.sum() + (self.interactions * np.sqrt(own[1:] * own[:-1])).sum()
        x = joint**self.link / 76
        return float(76 * x / (1 + x))

    def measure(self, plan: np.ndarray) -> float:
        return self.drop(plan) + self.noise * float(self._rng.standard_normal())

    def _optimum(self) -> float:
        layers = stack_layers(list(self.rates), list(self.distortions))
        budgets = 76 / 75 * (np.geomspace(0.99, 1.001, 50) if self.link == 1 else np.geomspace(0.4, 1.6, 400))
        plans = frontier(layers, np.ones(len(self.rates)), budgets, bins=20_000, tolerance=0)
        best = max((plan for plan in plans if self.drop(plan) < 1), key=self.ratio)
        while self.link != 1 and (better := self._exchanged(best)) is not None:
            best = better
        return self.ratio(best)

    def _exchanged(self, plan: np.ndarray) -> np.ndarray | None:
        """Return a better feasible plan that differs in one layer, or in two the opposite way, if there is one."""
        for tighter in self._rows[plan < len(LEVELS) - 1]:
            one = plan.copy()
            one[tighter] += 1
            if self.drop(one) < 1:
                return one
            for looser in self._rows[(plan > 0) & (self._rows != tighter)]:
                two = one.copy()
                two[looser] -= 1
                if self.ratio(two) > self.ratio(plan) + 1e-9 and self.drop(two) < 1:
                    return two
        return None


class Tally:
    """Evaluates plans of a surrogate and keeps the best that counts after each evaluation."""

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate, self.gaps, self._best = surrogate, [], 0.0

    def evaluate(self, plan: np.ndarray) -> tuple[float, float]:
        """Return the ratio and the measured drop."""
        ratio, drop = self.surrogate.ratio(plan), self.surrogate.measure(plan)
        if drop < 1 and self.surrogate.drop(plan) < 1:
            self._best = max(self._best, ratio)
        self.gaps.append(100 * (1 - self._best / self.surrogate.optimum))
        return ratio, drop


def margin(drop: float) -> float:
    return max(-MARGIN_LIMIT, min(MARGIN_LIMIT, math.log(max(drop, 1e-9))))


@dataclass(frozen=True)
class Contestant:
    """An Optuna sampler with the way it is used.

    Attributes
    ----------
    make : callable
        (surrogate, seed) -> sampler.
    seeded : bool
        Uniform plans come first.
    penalized : bool
        No constraint; an infeasible plan's value is minus its excess.
    workers : int
        Trials under way at a time; the one that began first ends first.
    patient : bool
        Workers wait where more trials would be under way than have ended, plus one.
    """

    make: Callable[[Surrogate, int], BaseSampler]
    seeded: bool = False
    penalized: bool = False
    workers: int = 1
    patient: bool = False

    def run(self, surrogate: Surrogate, seed: int, evaluations: int) -> list[float]:
        sizes = surrogate.original_bytes / 4
        space = Space(
            {curve.layer: curve for curve in surrogate.curves},
            {curve.layer: size for curve, size in zip(surrogate.curves, sizes, strict=True)},
        )
        study = optuna.create_study(direction="maximize", sampler=self.make(surrogate, seed))
        for index in UNIFORM if self.seeded else ():
            study.enqueue_trial(space.parameters({curve.layer: index for curve in surrogate.curves}))
        tally, running = Tally(surrogate), []
        while (ended := len(tally.gaps)) < evaluations:
            useful = min(self.workers, ended + 1) if self.patient else self.workers
            while len(running) < min(useful, evaluations - ended):
                trial = study.ask()
                own = {n: trial.suggest_float(n, d.low, d.high, log=True) for n, d in space.distributions.items()}
                running.append((trial, np.array(list(space.plan(own).values()))))
            trial, plan = running.pop(0)
            ratio, drop = tally.evaluate(plan)
            if self.penalized:
                ratio = ratio if drop < 1 else 1 - drop
            else:
                trial.set_constraint("satisfied", margin(drop))
            study.tell(trial, ratio)
        return tally.gaps


def bisect_uniform(surrogate: Surrogate, seed: int, evaluations: int) -> list[float]:
    """Find the best number of levels for all layers by bisection."""
    tally, low, high = Tally(surrogate), 0, len(LEVELS) - 1
    while high - low > 1 and len(tally.gaps) < evaluations:
        middle = (low + high) // 2
        _, drop = tally.evaluate(np.full(len(surrogate.rates), middle))
        low, high = (middle, high) if drop < 1 else (low, middle)
    return tally.gaps + tally.gaps[-1:] * (evaluations - len(tally.gaps))


def greedy(surrogate: Surrogate, seed: int, evaluations: int) -> list[float]:
    """Take the best uniform plan, then one step in a layer after the other, the largest first, while any holds."""
    tally, plan = Tally(surrogate), np.zeros(len(surrogate.rates), dtype=int)
    for index in UNIFORM:
        _, drop = tally.evaluate(np.full(len(plan), index))
        plan = np.full(len(plan), index) if drop < 1 else plan
    open_layers = list(np.argsort(-surrogate.original_bytes))
    while open_layers and len(tally.gaps) < evaluations:
        for layer in list(open_layers):
            tried = plan.copy()
            tried[layer] += 1
            if tried[layer] == len(LEVELS) or tally.evaluate(tried)[1] >= 1:
                open_layers.remove(layer)
            else:
                plan = tried
    return (tally.gaps + tally.gaps[-1:] * evaluations)[:evaluations]


def _ours(surrogate: Surrogate, seed: int) -> BaseSampler:
    original = {curve.layer: size for curve, size in zip(surrogate.curves, surrogate.original_bytes, strict=True)}
    return RateDistortionSampler(surrogate.curves, seed=seed, original_bytes=original)


def _with_seed(sampler: Callable[..., BaseSampler], **options: object) -> Callable[[Surrogate, int], BaseSampler]:
    return lambda surrogate, seed: sampler(seed=seed, **options)


CONTESTANTS: dict[str, Callable[[Surrogate, int, int], list[float]]] = {
    "ours": Contestant(_ours).run,
    "ours-4": Contestant(_ours, workers=WORKERS).run,
    "ours-4-patient": Contestant(_ours, workers=WORKERS, patient=True).run,
    "tpe-seeded": Contestant(_with_seed(optuna.samplers.TPESampler), seeded=True).run,
    "tpe": Contestant(_with_seed(optuna.samplers.TPESampler)).run,
    "nsga2-seeded": Contestant(_with_seed(optuna.samplers.NSGAIISampler, population_size=20), seeded=True).run,
    "cma-es": Contestant(_with_seed(optuna.samplers.CmaEsSampler), penalized=True).run,
    "greedy": greedy,
    "uniform": bisect_uniform,
}
SLOW: dict[str, Callable[[Surrogate, int, int], list[float]]] = {
    "gp-seeded": Contestant(_with_seed(optuna.samplers.GPSampler), seeded=True).run,
}
SLOW_SEEDS = 3
NAMES = {
    "ours": "rate-distortion",
    "ours-4": f"rate-distortion, {WORKERS} workers",
    "ours-4-patient": f"rate-distortion, {WORKERS} workers that wait for results first",
    "tpe-seeded": "TPE, uniform plans first",
    "tpe": "TPE",
    "nsga2-seeded": "NSGA-II, uniform plans first",
    "cma-es": "CMA-ES, penalty",
    "greedy": "best uniform, then greedy",
    "uniform": "one level count, bisection",
    "gp-seeded": f"GP, uniform plans first ({SLOW_SEEDS} seeds)",
}


def choose(surrogate: Surrogate, seed: int, evaluations: int, confidence: float) -> np.ndarray:
    """Return the plan that a study chooses, as `StudyRecord.chosen` does."""
    original = {curve.layer: size for curve, size in zip(surrogate.curves, surrogate.original_bytes, strict=True)}
    sampler = RateDistortionSampler(surrogate.curves, seed=seed, original_bytes=original, confidence=confidence)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    plans = []
    for _ in range(evaluations):
        trial = study.ask()
        own = {n: trial.suggest_float(n, d.low, d.high, log=True) for n, d in sampler.distributions.items()}
        plans.append(np.array(list(sampler.plan(own).values())))
        trial.set_constraint("satisfied", margin(surrogate.measure(plans[-1])))
        study.tell(trial, surrogate.ratio(plans[-1]))
    believed = sampler.believe(study)
    satisfied = [t.number for t in study.get_trials() if t.constraints["satisfied"] <= 0]
    trusted = [number for number in satisfied if believed[number].probability >= confidence]
    probable = sorted(satisfied, key=lambda number: -believed[number].probability)
    return plans[max(trusted, key=lambda number: surrogate.ratio(plans[number])) if trusted else probable[0]]


def choices(options: argparse.Namespace, confidence: float) -> str:
    """Describe what is chosen with a confidence."""
    gaps, infeasible = [], 0
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        surrogate = Surrogate(seed, sigma=options.sigma, noise=options.noise, misspecified=options.misspecified)
        plan = choose(surrogate, seed, options.evaluations, confidence)
        gaps.append(100 * (1 - surrogate.ratio(plan) / surrogate.optimum))
        infeasible += surrogate.drop(plan) >= 1
    return f"| {confidence:g} | {statistics.median(gaps):.1f} | {infeasible} of {options.seeds} |"


def evaluations_to(gaps: Sequence[Sequence[float]], limit: float) -> float:
    """Return the median over runs of the evaluations until the gap is at most so; infinite if never."""
    return statistics.median(next((i + 1 for i, gap in enumerate(run) if gap <= limit), math.inf) for run in gaps)


def row(name: str, gaps: Sequence[Sequence[float]], seconds: float, columns: Sequence[int]) -> str:
    medians = [statistics.median(run[column - 1] for run in gaps) for column in columns]
    shown = [f"{median:.1f}" if median < 99 else "none" for median in medians]
    needed = [evaluations_to(gaps, limit) for limit in (5, 3, 1.5)]
    steps = [f"{count:g}" if math.isfinite(count) else "-" for count in needed]
    evaluations = sum(len(run) for run in gaps)
    return f"| {NAMES[name]} | " + " | ".join([*shown, *steps, f"{1000 * seconds / evaluations:.0f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many surrogates")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--sigma", type=float, default=0.5, help="error of the curves, log")
    parser.add_argument("--noise", type=float, default=0.05, help="of a measurement, in points")
    parser.add_argument("--misspecified", action="store_true")
    parser.add_argument("--only", help="contestants, separated by commas: " + ", ".join([*CONTESTANTS, *SLOW]))
    parser.add_argument("--confidence", action="store_true", help="only what studies choose with each of several")
    parser.add_argument("--slow", action="store_true", help="with GP, which takes seconds a proposal")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    contestants = CONTESTANTS | (SLOW if options.slow or options.only else {})
    chosen = options.only.split(",") if options.only else list(contestants)
    columns = [count for count in REPORTED if count <= options.evaluations]
    truth = "misspecified truth" if options.misspecified else "truth of the model's form"
    print(
        f"{options.seeds} surrogates from seed {options.first_seed}, sigma {options.sigma}, noise {options.noise}, "
        f"{truth}; {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"Optuna {optuna.__version__}\n"
    )
    if options.confidence:
        print("| confidence | gap % of the choice | infeasible in truth |\n|---:|---:|---:|")
        for confidence in CHOICES:
            print(choices(options, confidence), flush=True)
        return
    print("| search | " + " | ".join(f"gap % @{c}" for c in columns) + " | to 5 % | to 3 % | to 1.5 % | ms/trial |")
    print("|---|" + "---:|" * (len(columns) + 4))
    for name in chosen:
        seeds = range(options.first_seed, options.first_seed + (SLOW_SEEDS if name in SLOW else options.seeds))
        known = {"sigma": options.sigma, "noise": options.noise, "misspecified": options.misspecified}
        surrogates = [Surrogate(seed, **known) for seed in seeds]
        began = time.perf_counter()
        try:
            gaps = [contestants[name](s, seed, options.evaluations) for s, seed in zip(surrogates, seeds, strict=True)]
        except ImportError as error:  # GP needs SciPy and PyTorch, CMA-ES needs cmaes
            print(f"| {NAMES[name]} | not installed: {str(error).splitlines()[0]} |", flush=True)
            continue
        print(row(name, gaps, time.perf_counter() - began, columns), flush=True)


if __name__ == "__main__":
    main()
