"""How probable it is that a plan keeps the limit on data that nobody looked at.

Losses are in units of the allowed drop, so that the limit is 1. Two kinds of luck stand between what a plan measured,
y, and what it loses in truth. Its own: it is independent from plan to plan, so that what the model of the loss learnt
from all trials (`loss_model`) tells where y should lie. And the original network's, on these very samples, which all
plans share and no number of trials removes. The paired error e of y has both,

    e^2 = own^2 + shared^2,      shared^2 = SHARED e^2.

With the model's loss L, its deviation s, and d^2 = max(0, noise^2 - own^2), by which evaluations scatter around the
model more than their luck explains, the plan's loss on these samples is, by normal laws,

    m = L + w (y - L),      w = (s^2 + d^2) / (s^2 + d^2 + own^2),      variance (1 - w) (s^2 + d^2),

and on others it has shared^2 on top. Source: own derivation; SHARED and what it is worth are in `studies/LOG.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARED = 0.6
"""Part of a paired error's variance that all plans near the limit share."""

LEAST_TARGET = 0.25
"""The loss that is aimed at is never less, however wide the errors."""


@dataclass(frozen=True)
class BelievedLoss:
    """What is believed of one plan's loss, in allowed drops.

    Attributes
    ----------
    mean, deviation : float
        Of the loss on the samples that were scored.
    shared : float
        Deviation of the luck that all plans share there.
    """

    mean: float
    deviation: float
    shared: float

    @property
    def probability(self) -> float:
        """That the plan keeps the limit on other samples."""
        return NormalDist().cdf((1 - self.mean) / max(math.hypot(self.deviation, self.shared), 1e-9))

    def after(self, held: Sequence[HeldLoss]) -> BelievedLoss:
        """Return what is believed once some plans, this one or others, were scored on data held back from the search.

        They tell how lucky all plans were on the samples of the search: the mean of what they lost less there than
        elsewhere, which the held-back data's own luck blurs.
        """
        if not held:
            return self
        luck = fmean(one.loss - one.believed.mean for one in held)
        blur = fmean(one.error**2 + one.believed.deviation**2 for one in held)
        weight = self.shared**2 / max(self.shared**2 + blur, 1e-300)
        return BelievedLoss(self.mean + weight * luck, self.deviation, self.shared * math.sqrt(1 - weight))


@dataclass(frozen=True)
class HeldLoss:
    """What one plan lost on data held back from the search, in allowed drops, and what had been believed of it."""

    believed: BelievedLoss
    loss: float
    error: float


@dataclass(frozen=True)
class BelievedLosses:
    """`BelievedLoss` of n plans, as arrays of float64 of shape (n,)."""

    means: Floats
    deviations: Floats
    shared: Floats

    def each(self) -> Iterator[BelievedLoss]:
        """Yield them one by one."""
        for mean, deviation, shared in zip(self.means, self.deviations, self.shared, strict=True):
            yield BelievedLoss(float(mean), float(deviation), float(shared))


def believe(measured: Floats, errors: Floats, modelled: Floats, deviations: Floats, noise: float) -> BelievedLosses:
    """Combine what plans measured with what the model says of them.

    Parameters
    ----------
    measured, errors : ndarray of float64, shape (n,)
        Losses and their paired errors, in allowed drops. Where an error is NaN, because samples are not known, the
        noise stands for it, all of it the plan's own.
    modelled, deviations : ndarray of float64, shape (n,)
        The model's losses and their standard deviations.
    noise : float
        By which evaluations scatter around the model.
    """
    known = ~np.isnan(errors)
    own = np.where(known, (1 - SHARED) * errors**2, noise**2)
    errors = np.where(known, errors, noise)
    prior = deviations**2 + np.maximum(0.0, noise**2 - own)
    weights = prior / np.maximum(prior + own, 1e-300)
    means = modelled + weights * (measured - modelled)
    return BelievedLosses(means, np.sqrt((1 - weights) * prior), math.sqrt(SHARED) * errors)


def target_loss(error: float, confidence: float) -> float:
    """Return the loss, in allowed drops, at which a plan that is well known keeps the limit with this confidence."""
    if confidence <= 0:
        return 1.0
    return max(LEAST_TARGET, 1 - NormalDist().inv_cdf(max(0.5, confidence)) * math.sqrt(SHARED) * error)
