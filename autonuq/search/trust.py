"""How probable it is that a plan keeps the limit on data that nobody looked at.

Losses are in units of the allowed drop, so that the limit is 1. Two kinds of luck stand between what a plan measured
and what it loses in truth. Its own: it is independent from plan to plan, so that the model of the loss, which learnt
from all trials (`loss_model`), is not fooled by it; what the model says, L with deviation s, takes the measurement's
place. And the original network's, on these very samples: all plans share it, and no number of trials removes it. The
paired error e of the measurement covers it. So the loss on other samples is normal with mean L and variance s^2 + e^2.

Source: own derivation. On real networks half of e^2 is shared by all plans; to take all of it, and the model's mean
alone, was the simplest of a dozen rules, the best calibrated, and lost to none (`studies/LOG.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

LEAST_TARGET = 0.25
"""The loss that is aimed at is never less, however wide the errors."""


@dataclass(frozen=True)
class BelievedLoss:
    """What is believed of one plan's loss, in allowed drops.

    Attributes
    ----------
    mean, deviation : float
        Of the loss on the samples that were scored.
    luck : float
        Deviation of the luck of these samples.
    """

    mean: float
    deviation: float
    luck: float

    @property
    def probability(self) -> float:
        """That the plan keeps the limit on other samples."""
        return NormalDist().cdf((1 - self.mean) / max(math.hypot(self.deviation, self.luck), 1e-9))

    def after(self, held: Sequence[HeldLoss]) -> BelievedLoss:
        """Return what is believed once some plans, this one or others, were scored on data held back from the search.

        They tell how lucky all plans were on the samples of the search: the mean of what they lost less there than
        elsewhere, which the held-back data's own luck blurs.
        """
        if not held:
            return self
        shift = fmean(one.loss - one.believed.mean for one in held)
        blur = fmean(one.error**2 + one.believed.deviation**2 for one in held)
        weight = self.luck**2 / max(self.luck**2 + blur, 1e-300)
        return BelievedLoss(self.mean + weight * shift, self.deviation, self.luck * math.sqrt(1 - weight))


@dataclass(frozen=True)
class HeldLoss:
    """What one plan lost on data held back from the search, in allowed drops, and what had been believed of it."""

    believed: BelievedLoss
    loss: float
    error: float


def target_loss(error: float, confidence: float) -> float:
    """Return the loss, in allowed drops, at which a plan that is well known keeps the limit with this confidence."""
    if confidence <= 0:
        return 1.0
    return max(LEAST_TARGET, 1 - NormalDist().inv_cdf(max(0.5, confidence)) * error)
