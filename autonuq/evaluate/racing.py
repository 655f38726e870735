"""Racing: score a plan on a part of the batches first, and stop it there if it clearly fails.

The part is paired: its margin compares the compressed network with the original one on the same batches. How far such a
margin lies from the final one is not assumed but learnt, from the trials of the study that were scored on both:

    r = g(margin on the part) - g(margin on all),      g(m) = sqrt(1 + exp m).

A drop of D allowed drops is exp m. It is a mean over images of which some changed for the worse or better; the number
of those, and with it the variance of the mean, grows as D plus a constant, so that g, the square root, makes the spread
of r nearly the same at all drops (Bartlett's transform of a count). With mean r' and deviation s of K trials, the final
g of another one is, where the r are normal and independent, below

    g(margin on the part) - r' - t s sqrt(1 + 1 / K)

with probability at most `RISK`, t being that quantile of Student's distribution with K - 1 degrees of freedom. Where
this bound is above g(0) = sqrt 2, the edge, the trial is stopped: at most one in 1 / RISK plans at the very edge, and
fewer of worse ones, is thrown away wrongly. A bias that all trials share, such as a part of easy images, is in r'.

A trial that is completed begins again with batch 0, so its part is paid twice. Hence a part is run only where the
curves' prediction says that stopping is more probable than the part's share of the cost; the first `CALIBRATED` trials
always pay it. The metric has to be a mean over the first so many batches; that is checked on the original network,
see `nesting_fault`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from autonuq.evaluate.verdict import LIMIT
from autonuq.records import TrialRecord

SHARE = 0.1
"""Of the batches: the part."""

FEWEST_BATCHES = 10
"""A scoring pass of fewer is not raced."""

CALIBRATED = 6
"""Trials that are scored on the part and on all before any is stopped."""

RISK = 0.01
"""Bound on the probability that a trial is stopped which all batches would have accepted."""

_FAULT_RISK = 2e-3
_LEAST_BLOCKS = 4  # before one is judged by them
_EDGE = math.sqrt(2)


@dataclass(frozen=True)
class Estimate:
    """What a part says of a trial that is stopped.

    Attributes
    ----------
    margin : float
        Positive.
    deviation : float
        Its standard deviation.
    """

    margin: float
    deviation: float


@dataclass(frozen=True)
class Race:
    """How trials of one study are raced.

    Attributes
    ----------
    part, batches : int
        Batches of the part, and of a whole pass.
    original_metric : float
        Of the original network on the part.
    """

    part: int
    batches: int
    original_metric: float

    def pays(self, trials: Sequence[TrialRecord], expected: tuple[float, float] | None) -> bool:
        """Say whether the part of a trial is worth its cost.

        Parameters
        ----------
        trials : sequence of TrialRecord
        expected : (float, float) or None
            Predicted margin and its standard deviation.
        """
        bound = _Bound.learn(trials)
        if bound is None:
            return True
        if expected is None:
            return False
        margin, deviation = expected
        return NormalDist(margin, deviation).cdf(bound.least_margin) < 1 - self.part / self.batches

    def stop(self, trials: Sequence[TrialRecord], part_margin: float) -> Estimate | None:
        """Return what to make of a trial whose failure is clear, None for one that is to be completed."""
        bound = _Bound.learn(trials)
        if bound is None or part_margin <= bound.least_margin or part_margin == 1.0:
            return None
        if part_margin >= LIMIT:
            return Estimate(LIMIT, 0.0)
        centre = _transformed(part_margin) - bound.shift
        return Estimate(math.log(centre**2 - 1), bound.deviation * 2 * centre / (centre**2 - 1))


@dataclass(frozen=True)
class _Bound:
    """r' as `shift`, the deviation of a further r, and the part's margin above which a trial is stopped."""

    shift: float
    deviation: float
    least_margin: float

    @classmethod
    def learn(cls, trials: Sequence[TrialRecord]) -> _Bound | None:
        """Learn from the trials that were scored on both; None if there are too few."""
        residuals = [
            _transformed(trial.part_margin or 0.0) - _transformed(trial.margin or 0.0)
            for trial in trials
            if not trial.is_partial and _is_measured(trial.margin) and _is_measured(trial.part_margin)
        ]
        count = len(residuals)
        if count < CALIBRATED:
            return None
        shift, deviation = fmean(residuals), stdev(residuals) * math.sqrt(1 + 1 / count)
        edge = _EDGE + max(0.0, shift + student_quantile(count - 1, RISK) * deviation)
        return cls(shift, deviation, math.log(edge**2 - 1))


def _is_measured(margin: float | None) -> bool:
    """Say whether a margin is a number of its own: not at its limit, not the verdict alone."""
    return margin is not None and abs(margin) < LIMIT and abs(margin) != 1.0


def _transformed(margin: float) -> float:
    """Return g(margin)."""
    return math.sqrt(1 + math.exp(margin))


def part_of(batches: int) -> int:
    """Return the number of batches of the part."""
    return max(2, round(SHARE * batches))


def checked_batches(batches: int) -> list[int]:
    """Return the numbers of batches on which the original network is scored to see whether they nest."""
    return sorted({1, 2, 3, 4, part_of(batches), batches - 1})


def check_nesting(score: Callable[[int], float], batches: int, metric: float) -> tuple[float, str]:
    """Return the original network's metric on the part, and why racing cannot be had; no reason if it can.

    Parameters
    ----------
    score : callable
        Metric of the original network over a number of batches.
    batches : int
        Of a whole pass.
    metric : float
        Over all of them.

    Notes
    -----
    **Cost**: about 1.1 whole passes, and twelve batches.
    """
    if batches < FEWEST_BATCHES:
        return math.nan, f"a scoring pass has {batches} batches, fewer than {FEWEST_BATCHES}"
    counts = checked_batches(batches)
    metrics = [score(count) for count in counts]
    on_part = metrics[counts.index(part_of(batches))]
    if score(counts[3]) != metrics[3]:
        return on_part, f"the same {counts[3]} batches gave two different metrics"
    return on_part, nesting_fault([*counts, batches], [*metrics, metric])


def nesting_fault(counts: Sequence[int], metrics: Sequence[float]) -> str:
    """Return why metrics cannot be means over the first so many of the same batches; empty if they can.

    Parameters
    ----------
    counts : sequence of int
        Numbers of batches, rising.
    metrics : sequence of float
        One per count.

    Notes
    -----
    If they nest, differences of count times metric are sums over the batches in between, each block's mean with a
    variance inverse to its length. A block that is further from the mean of those before it than Student's
    distribution of their spread allows (2e-3) contradicts it. Scoring other data for another number of batches moves
    the last block, of one batch, by as many times the difference as there are batches.
    """
    sums = [0.0, *(count * metric for count, metric in zip(counts, metrics, strict=True))]
    lengths = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    means = [(after - before) / n for before, after, n in zip(sums, sums[1:], lengths, strict=False)]
    rounding = 1e-6 * max(abs(metric) for metric in metrics) * max(counts)
    for index in range(_LEAST_BLOCKS, len(means)):
        before, freedom, centre = counts[index - 1], index - 1, metrics[index - 1]
        spread = sum(n * (mean - centre) ** 2 for mean, n in zip(means[:index], lengths, strict=False)) / freedom
        limit = student_quantile(freedom, _FAULT_RISK / 2) * math.sqrt(spread * (1 / before + 1 / lengths[index]))
        if abs(means[index] - centre) > limit + rounding:
            which = f"batches {before + 1} to {counts[index]}" if lengths[index] > 1 else f"batch {counts[index]}"
            return (
                f"results for different batch_num do not nest: {which} would have the metric {means[index]:g}, "
                f"those before {centre:g}"
            )
    return ""


def student_quantile(freedom: int, risk: float) -> float:
    """Return the quantile of Student's distribution that is exceeded with probability `risk`.

    Notes
    -----
    **Source**: Abramowitz & Stegun, 1964, 26.7.5 (Cornish and Fisher's expansion); 0.04 % low at 5 degrees and 0.01.
    """
    z = NormalDist().inv_cdf(1 - risk)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))
