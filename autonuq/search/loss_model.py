"""How a plan's distortions become the constraint's value: the model, and what evaluations say about it.

Notation: L layers; n observed plans; distortions have shape (n, L). With S(x) = sum_l exp(u_l) distortion[l, x_l] +
exp(u_0) floor, the margin of plan x, log(drop / allowed drop), is

    f(x) = a + exp(beta) log(S(x) / reference),

and theta = (u_1 ... u_L, u_0, a, beta), P = L + 3 unknowns, with independent normal priors: `u_l` is the error of the
curves, `u_0` that of what is lost without any compression, `a` the scale that nobody knows in advance, `beta` the
exponent. Away from the edge f = 0 the power law is trusted less, and a measured drop y = exp(margin) carries noise:

    y = exp(f) exp(trust e1) + noise e2,      trust = near + far |margin|,   e1, e2 standard normal.

The transform h(y) = asinh(trust y / noise) / trust makes its variance one, so h(y) - h(exp f) is a residual. Where only
an inequality was seen (the verdict alone, or a margin at its limit) the likelihood is the normal probability of it.
The noise and the spread of the u_l are adapted to the evaluations once there are some.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ITERATIONS = 30
"""Gauss-Newton steps at most."""

ENOUGH = 1e-2
"""Rise of the log density by a step after which no more is made."""

LONGEST_STEP = 2.0
"""In prior deviations of each unknown: an inequality that is badly broken bends the density away from a parabola."""

VERDICT_WIDTH = 0.5
"""Least `trust` of an inequality: a sharper one puts Laplace's parabola on the edge that the inequality forbids."""

ADAPT_FROM = 8
"""Evaluations from which on the noise and the prior of the factors are adapted."""

NOISES, FACTORS = ((2.0, 4.0, 8.0), (0.5,)), ((1.5, 2.2), (0.6,))
"""Multiples of the likely noise and factor deviation that are tried, upwards and downwards, as long as it pays."""

NOISE_SPREAD, FACTOR_SPREAD = 0.8, 0.4
"""Standard deviations of the log of both, before any evaluation."""

_erfc = np.vectorize(math.erfc, otypes=[float])


@dataclass(frozen=True)
class Prior:
    """What is believed before the first evaluation; all are standard deviations.

    Attributes
    ----------
    factor : float
        Of u_l.
    floor : float
        Of u_0.
    scale : float
        Of a.
    exponent : float
        Of beta.
    near, far : float
        Of the model, as above.
    noise : float
        Of a measured drop, in allowed drops.
    """

    factor: float = 0.5
    floor: float = 1.0
    scale: float = 2.5
    exponent: float = 0.2
    near: float = 0.03
    far: float = 0.1
    noise: float = 0.05

    def deviations(self, layers: int) -> Floats:
        """Return the prior deviation of every unknown, shape (P,)."""
        return np.array([self.factor] * layers + [self.floor, self.scale, self.exponent])


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes
    ----------
    distortions : ndarray of float64, shape (n, L)
        In units of the reference.
    margins : ndarray of float64, shape (n,)
        Of an inequality: the bound.
    senses : ndarray of int64, shape (n,)
        0: the margin is as measured; -1: it is at most so; 1: it is at least so.
    errors : ndarray of float64, shape (n,)
        Standard deviations of margins that are estimates themselves, beyond what the model says; 0 elsewhere.
    """

    distortions: Floats
    margins: Floats
    senses: NDArray[np.int64]
    errors: Floats


class Model:
    """The margin as a function of theta.

    Parameters
    ----------
    layers : int
        L.
    floor : float
        In units of the reference.
    prior : Prior
    """

    def __init__(self, layers: int, floor: float, prior: Prior) -> None:
        self.layers, self.floor, self.prior = layers, floor, prior

    def margins(self, theta: Floats, distortions: Floats) -> Floats:
        """Return f of n plans, shape (n,)."""
        total = distortions @ np.exp(theta[: self.layers]) + self.floor * np.exp(theta[self.layers])
        return np.asarray(theta[-2] + np.exp(theta[-1]) * np.log(total))

    def edge(self, theta: Floats) -> float:
        """Return the weighted sum of distortions at which f is 0; negative if the floor is above."""
        return math.exp(-theta[-2] / math.exp(theta[-1])) - self.floor * math.exp(theta[self.layers])

    def margins_and_slopes(self, theta: Floats, distortions: Floats) -> tuple[Floats, Floats]:
        """Return f of n plans, shape (n,), and its derivatives, shape (n, P)."""
        exponent = np.exp(theta[-1])
        slopes = np.empty((len(distortions), len(theta)))
        slopes[:, : self.layers] = distortions * np.exp(theta[: self.layers])
        slopes[:, self.layers] = self.floor * np.exp(theta[self.layers])
        total = slopes[:, :-2].sum(axis=1)
        slopes[:, :-2] *= exponent / total[:, None]
        slopes[:, -2] = 1.0
        slopes[:, -1] = exponent * np.log(total)
        return theta[-2] + slopes[:, -1], slopes

    def deviations(self, margins: Floats) -> Floats:
        """Return the standard deviation, in f, of a measurement at each margin."""
        trust = self.prior.near + self.prior.far * np.abs(margins)
        return np.hypot(trust, self.prior.noise * np.exp(-margins))


@dataclass(frozen=True)
class Posterior:
    """A normal approximation of what is known of theta: the prior, and what each of n observations adds to it.

    Attributes
    ----------
    mean : ndarray of float64, shape (P,)
    deviations : ndarray of float64, shape (P,)
        Of the prior.
    pulls : ndarray of float64, shape (n, P)
        Derivatives of the observations by theta, each in standard deviations of its own: the inverse of the
        covariance is diag(deviations^-2) + pulls^T pulls.
    log_evidence : float
        Of the prior, up to a constant that depends on the evidence only.
    """

    mean: Floats
    deviations: Floats
    pulls: Floats
    log_evidence: float

    @cached_property
    def covariance(self) -> Floats:
        """What remains unknown, shape (P, P)."""
        scaled = self.pulls * self.deviations
        if _is_wide(scaled):
            whitened: Floats = np.eye(len(self.mean)) - scaled.T @ np.linalg.solve(_curvature(scaled), scaled)
        else:
            whitened = np.asarray(np.linalg.inv(_curvature(scaled)), dtype=np.float64)
        return np.asarray(self.deviations[:, None] * ((whitened + whitened.T) / 2) * self.deviations)

    def covariance_after(self, slopes: Floats, deviations: Floats) -> Floats:
        """Return what will remain unknown after more observations, whatever their outcomes, shape (P, P).

        Parameters
        ----------
        slopes : ndarray of float64, shape (m, P)
            Their derivatives by theta.
        deviations : ndarray of float64, shape (m,)
        """
        gains = slopes @ self.covariance
        return np.asarray(self.covariance - gains.T @ np.linalg.solve(gains @ slopes.T + np.diag(deviations**2), gains))

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """Draw deviations of theta from its mean, shape (count, P).

        Notes
        -----
        With C the covariance and x, y standard normal, C (x / deviations + pulls^T y) has the covariance
        C (diag(deviations^-2) + pulls^T pulls) C = C: no root of C is needed.

        **Source**: Bhattacharya, Chakraborty & Mallick, Biometrika 103(4), 2016 (after Rue, 2001).
        """
        own = rng.standard_normal((count, len(self.mean))) / self.deviations
        return np.asarray((own + rng.standard_normal((count, len(self.pulls))) @ self.pulls) @ self.covariance)


@dataclass(frozen=True)
class Belief:
    """A model with what is known of its unknowns."""

    model: Model
    posterior: Posterior

    @property
    def log_weights(self) -> Floats:
        """The most probable u_l, shape (L,)."""
        return self.posterior.mean[: self.model.layers]

    @property
    def edge(self) -> float:
        """The weighted sum of distortions at which the margin is most probably 0; negative if the floor is above."""
        return self.model.edge(self.posterior.mean)

    def margins(self, distortions: Floats) -> Floats:
        """Return the most probable margins of n plans, shape (n,)."""
        return self.model.margins(self.posterior.mean, distortions)

    def margins_and_slopes(self, distortions: Floats) -> tuple[Floats, Floats]:
        """Return them with their derivatives by theta, shape (n, P)."""
        return self.model.margins_and_slopes(self.posterior.mean, distortions)


def learn(layers: int, floor: float, prior: Prior, evidence: Evidence) -> Belief:
    """Find what evaluations say, with the noise and the prior of the factors that explain them best.

    Parameters
    ----------
    layers : int
        L.
    floor : float
        In units of the reference.
    prior : Prior
        Its `noise` and `factor` are what is most likely; from `ADAPT_FROM` evaluations on they are adapted.
    evidence : Evidence

    Notes
    -----
    **Cost**: one `fit`; with adaptation up to seven more, mostly four, which begin where the best so far ended.
    **Source**: MacKay, Neural Computation 4(3), 1992 (evidence framework), on a grid, with log-normal hyperpriors.
    """
    best = _fit_with(layers, floor, prior, evidence, np.zeros(layers + 3))
    if len(evidence.margins) < ADAPT_FROM:
        return best
    for name, walks in (("noise", NOISES), ("factor", FACTORS)):
        for walk in walks:
            best = _adapted(best, name, [share * getattr(prior, name) for share in walk], prior, evidence)
    return best


def _adapted(best: Belief, name: str, values: Sequence[float], likely: Prior, evidence: Evidence) -> Belief:
    """Give a field of the prior one value after the other, as long as the evaluations are explained better."""
    for value in values:
        other = replace(best.model.prior, **{name: value})
        found = _fit_with(best.model.layers, best.model.floor, other, evidence, best.posterior.mean)
        if _probability(found, likely) <= _probability(best, likely):
            break
        best = found
    return best


def _fit_with(layers: int, floor: float, prior: Prior, evidence: Evidence, start: Floats) -> Belief:
    model = Model(layers, floor, prior)
    return Belief(model, fit(model, evidence, start))


def _probability(belief: Belief, likely: Prior) -> float:
    """Return the log probability of a belief's noise and prior of the factors, up to a constant."""
    noise = math.log(belief.model.prior.noise / likely.noise) / NOISE_SPREAD
    factor = math.log(belief.model.prior.factor / likely.factor) / FACTOR_SPREAD
    return belief.posterior.log_evidence - 0.5 * (noise**2 + factor**2)


def fit(model: Model, evidence: Evidence, start: Floats) -> Posterior:
    """Find the most probable theta, looking from `start` on, and the curvature there (Laplace's approximation).

    Notes
    -----
    Gauss-Newton steps, halved until the density rises.

    **Cost**: O(n P min(n, P)) a step, some ten steps from the prior's mean.
    **Source**: Bishop, Pattern Recognition and Machine Learning, 2006, section 4.4; the transform is Bartlett's for a
    variance that grows with the square of the mean.
    """
    deviations = model.prior.deviations(model.layers)
    trust = np.hypot(model.prior.near + model.prior.far * np.abs(evidence.margins), evidence.errors)
    trust = np.where(evidence.senses == 0, trust, np.maximum(trust, VERDICT_WIDTH))
    theta, loss = start, _loss(model, evidence, trust, start, deviations)
    for _ in range(ITERATIONS):
        margins, slopes = model.margins_and_slopes(theta, evidence.distortions)
        _, first, second = _misfits(model, evidence, trust, margins)
        scaled = np.sqrt(second)[:, None] * slopes * deviations
        step = deviations * _solve(scaled, deviations * (slopes.T @ first) + theta / deviations)
        step /= max(1.0, float(np.abs(step / deviations).max()) / LONGEST_STEP)
        share, new = 1.0, loss
        while share > 1e-3:
            new = _loss(model, evidence, trust, theta - share * step, deviations)
            if new <= loss:
                break
            share /= 2
        if new > loss:
            break
        theta, gain, loss = theta - share * step, loss - new, new
        if gain < ENOUGH:
            break
    _, log_determinant = np.linalg.slogdet(_curvature(scaled))
    log_evidence = -loss - 0.5 * log_determinant
    log_evidence += float(np.log(_transform_slopes(model.prior, trust, evidence.margins)[evidence.senses == 0]).sum())
    return Posterior(theta, deviations, scaled / deviations, log_evidence)


def _is_wide(scaled: Floats) -> bool:
    return bool(len(scaled) < scaled.shape[-1])


def _curvature(scaled: Floats) -> Floats:
    """Return I + B^T B or, where that is smaller, I + B B^T: their determinants are the same."""
    gram = scaled @ scaled.T if _is_wide(scaled) else scaled.T @ scaled
    return np.asarray(np.eye(len(gram)) + gram)


def _solve(scaled: Floats, right: Floats) -> Floats:
    """Solve (I + B^T B) x = right; where I + B B^T is smaller, by it (Woodbury)."""
    if _is_wide(scaled):
        return np.asarray(right - scaled.T @ np.linalg.solve(_curvature(scaled), scaled @ right))
    return np.asarray(np.linalg.solve(_curvature(scaled), right), dtype=np.float64)


def _loss(model: Model, evidence: Evidence, trust: Floats, theta: Floats, deviations: Floats) -> float:
    misfits, _, _ = _misfits(model, evidence, trust, model.margins(theta, evidence.distortions))
    return float(misfits.sum() + 0.5 * ((theta / deviations) ** 2).sum())


def _transform(prior: Prior, trust: Floats, margins: Floats) -> Floats:
    """Return h(exp(margin))."""
    return np.arcsinh(trust / prior.noise * np.exp(margins)) / trust


def _transform_slopes(prior: Prior, trust: Floats, margins: Floats) -> Floats:
    """Return the derivative of h(exp(margin)) by the margin."""
    return 1 / np.hypot(prior.noise * np.exp(-margins), trust)


def _misfits(model: Model, evidence: Evidence, trust: Floats, margins: Floats) -> tuple[Floats, Floats, Floats]:
    """Return minus the log likelihood of each observation, with its first and second derivative by f."""
    margins = np.clip(margins, -50.0, 50.0)  # a wild step is refused by its loss, not by an overflow
    seen = _transform(model.prior, trust, evidence.margins)
    residuals = _transform(model.prior, trust, margins) - seen
    slopes = _transform_slopes(model.prior, trust, margins)
    value, first, second = 0.5 * residuals**2, residuals.copy(), np.ones_like(residuals)
    bounded = evidence.senses != 0
    if bounded.any():
        inside = evidence.senses[bounded] * residuals[bounded]
        value[bounded], mills = _log_normal_tail(inside)
        first[bounded] = -evidence.senses[bounded] * mills
        second[bounded] = mills * (mills + inside)
    return value, first * slopes, second * slopes**2


def _log_normal_tail(t: Floats) -> tuple[Floats, Floats]:
    """Return -log Phi(t) and phi(t) / Phi(t)."""
    probability = 0.5 * _erfc(-np.maximum(t, -30.0) / math.sqrt(2))
    density = np.exp(-0.5 * np.maximum(t, -30.0) ** 2) / math.sqrt(2 * math.pi)
    ratio = density / probability
    far = t < -30.0
    value = np.where(far, 0.5 * t**2 + np.log(np.maximum(-t, 1.0)) + 0.5 * math.log(2 * math.pi), -np.log(probability))
    return value, np.where(far, -t, ratio)


def normal_cdf(t: Floats) -> Floats:
    """Return Phi(t), to 1e-3: what an acquisition needs, without a special function per entry."""
    return np.asarray(0.5 * (1 + np.tanh(0.7988 * t * (1 + 0.04417 * t**2))))
