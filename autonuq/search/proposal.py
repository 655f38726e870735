"""Which plan to evaluate next, given the layers' curves and everything that was evaluated.

A proposal maximizes, over a few hundred candidate plans,

    expected gain in log ratio over the best plan so far  +  worth of what its evaluation tells about the layers,

both under the normal posterior of `loss_model`. Candidates are the exact frontier of the most probable factors, the
hull plans of factors drawn from the posterior, and probes: plans off the frontier, whose distortion is concentrated
on some layers so that their evaluation says much about those. There are no phases: while the edge is unknown the
expected gain itself brackets it, and what is under evaluation elsewhere counts as if its outcome were one of those that
the posterior holds possible.

Notation as in `allocation` and `loss_model`: plans have shape (n, L), slopes of margins (n, P).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autonuq.search.allocation import Floats, Ints, Layers, Relaxed, frontier
from autonuq.search.loss_model import Belief, Evidence, Model, Prior, learn, normal_cdf
from autonuq.search.trust import BelievedLoss

MIDDLE = 0.45
"""Where the edge is expected, between the loosest plan's log size (0) and the tightest's (1)."""

FLOOR = 0.02
"""What is lost without compression, in distortions of the plan in the middle."""

EXACT, FAMILY, DRAWN, PROBES = 48, 24, 64, 96
"""Candidates of each kind: exact and hull plans of the most probable factors, of drawn factors, probes."""

PROBE_SPREAD = 1.5
"""Standard deviation of the log factors that make probes."""

PROBE_MARGINS = (-0.5, 1.4)
"""Predicted margins of probes."""

CURIOSITY = 1.5
"""What a unit of knowledge's worth counts beside a unit of immediate gain: it serves more than one proposal."""

SAMPLES = 256
"""Draws from the posterior behind an expected gain."""

GAIN_DRAWS = 64
"""Draws from the posterior behind what is left to gain, each an exact plan."""

MOST_EVIDENCE = 256
"""Evaluations that are learnt from: those nearest the edge."""

MOST_INCUMBENTS = 64
"""Feasible plans, the smallest ones, that a gain is measured against."""

ENUMERABLE = 1000
"""Up to so many plans, all are candidates."""

_UNKNOWN_EDGE = 4.0  # variance of the margin up to which candidates reach out


@dataclass(frozen=True)
class History:
    """What happened so far.

    Attributes
    ----------
    plans : ndarray of int64, shape (n, L)
        Evaluated.
    margins, senses, errors : ndarray, shape (n,)
        As in `Evidence`.
    feasible : ndarray of bool, shape (n,)
        The verdicts.
    pending : ndarray of int64, shape (m, L)
        Being evaluated elsewhere.
    failed : ndarray of int64, shape (k, L)
        Could not be evaluated; not to be proposed again.
    """

    plans: Ints
    margins: Floats
    senses: Ints
    errors: Floats
    feasible: NDArray[np.bool_]
    pending: Ints
    failed: Ints

    def with_pending(self, plan: Ints) -> History:
        """Return the history with one more plan under evaluation."""
        return replace(self, pending=np.vstack([self.pending, plan]))


class Proposer:
    """Proposes plans; it holds nothing but what follows from the curves.

    Parameters
    ----------
    layers : Layers
        The scale of the distortions is arbitrary.
    fixed_bytes : float
        Bytes that no plan changes.
    prior : Prior
    """

    def __init__(self, layers: Layers, *, fixed_bytes: float = 0.0, prior: Prior | None = None) -> None:
        self._fixed_bytes, self._prior = fixed_bytes, prior or Prior()
        self.layers = layers
        loosest, tightest = self.log_bytes(np.stack([0 * layers.last, layers.last]))
        self._loosest = float(loosest)
        middle = Relaxed(layers).plans_at(
            np.zeros((1, len(layers))),
            np.array([-loosest - MIDDLE * (tightest - loosest)]),
            lambda plans: -self.log_bytes(plans),
        )
        reference = float(layers.distortions_of(middle).sum()) or float(layers.distortions.max()) or 1.0
        self.layers = replace(layers, distortions=layers.distortions / reference)
        self._relaxed = Relaxed(self.layers)
        self._all = _all_plans(layers)

    def log_bytes(self, plans: Ints) -> Floats:
        """Return the log of the total size of n plans, shape (n,)."""
        return np.asarray(np.log(self.layers.rates_of(plans).sum(axis=1) + self._fixed_bytes))

    def propose(self, history: History, rng: np.random.Generator) -> Ints:
        """Return the plan to evaluate next, shape (L,).

        Notes
        -----
        A plan that was evaluated, is pending or has failed comes again only if there is no other.
        """
        belief = self.belief(history)
        candidates = self._new(self._candidates(belief, rng), history)
        if not len(candidates):
            return self._any_new(belief, history, rng)
        margins, slopes = belief.margins_and_slopes(self.layers.distortions_of(candidates))
        gain = self._gain(belief, history, candidates, margins, slopes, rng)
        worth = self._worth(belief, history, margins, slopes)
        return np.asarray(candidates[int(np.argmax(gain + CURIOSITY * worth))])

    def belief(self, history: History) -> Belief:
        """Return what is known of the layers."""
        nearest = np.sort(np.argsort(np.abs(history.margins), kind="stable")[:MOST_EVIDENCE])
        distortions = self.layers.distortions_of(history.plans[nearest])
        evidence = Evidence(distortions, history.margins[nearest], history.senses[nearest], history.errors[nearest])
        return learn(len(self.layers), FLOOR, self._prior, evidence)

    def predict(self, history: History, plan: Ints) -> tuple[float, float]:
        """Return the most probable margin of a plan, as it would be measured, and its standard deviation."""
        belief = self.belief(history)
        margins, slopes = belief.margins_and_slopes(self.layers.distortions_of(plan[None]))
        variance = float(slopes[0] @ belief.posterior.covariance @ slopes[0])
        noise = float(belief.model.deviations(np.maximum(margins, -5.0))[0])
        return float(margins[0]), math.hypot(math.sqrt(variance), noise)

    def believe(self, belief: Belief, plans: Ints, errors: Floats) -> list[BelievedLoss]:
        """Return what is believed of the losses of n plans; see `trust`.

        Parameters
        ----------
        belief : Belief
        plans : ndarray of int64, shape (n, L)
        errors : ndarray of float64, shape (n,)
            Paired errors of what they measured, in allowed drops. NaN where samples are not known: the noise of the
            evaluations stands for it.
        """
        margins, slopes = belief.margins_and_slopes(self.layers.distortions_of(plans))
        variances = ((slopes @ belief.posterior.covariance) * slopes).sum(axis=1)
        losses = np.exp(np.clip(margins, -7.0, 7.0))
        deviations = losses * np.sqrt(variances + belief.model.prior.near**2)
        luck = np.where(np.isnan(errors), belief.model.prior.noise, errors)
        return [BelievedLoss(*map(float, row)) for row in zip(losses, deviations, luck, strict=True)]

    def remaining_gains(self, history: History, rng: np.random.Generator) -> Iterator[float]:
        """Draw GAIN_DRAWS times from the posterior of log(best possible ratio / best feasible ratio so far).

        Notes
        -----
        For each drawn theta the best possible plan is the exact one within its own edge, and the best so far the
        smallest of those that were found feasible and are so under that theta.

        **Cost**: one `frontier` a draw: 5 ms at 54 layers of 64 points, 3 ms at 500.
        """
        belief = self.belief(history)
        draws = belief.posterior.draw(GAIN_DRAWS, rng)
        thetas = self._consistent(belief, belief.posterior.mean + draws)
        best = self._best_under(belief, history, draws.T)
        for theta, found in zip(thetas, best, strict=True):
            yield max(0.0, float(-self.log_bytes(self._optimal(belief.model, theta))[0] - found))

    def _consistent(self, belief: Belief, thetas: Floats) -> Floats:
        """Shift each drawn scale so that the plan at the edge keeps the margin that its linear model says.

        f is convex in the factors, so that draws around their most probable values would raise every margin.
        """
        edge = self.layers.distortions_of(self._optimal(belief.model, belief.posterior.mean))
        margins, slopes = belief.margins_and_slopes(edge)
        linear = margins + (thetas - belief.posterior.mean) @ slopes[0]
        shifted = thetas.copy()
        shifted[:, -2] += linear - [float(belief.model.margins(theta, edge)[0]) for theta in thetas]
        return shifted

    def _optimal(self, model: Model, theta: Floats) -> Ints:
        """Return the smallest plan within the edge that theta says, shape (1, L)."""
        weights = np.exp(theta[: len(self.layers)])
        loosest, tightest = self.layers.distortions_of(np.stack([0 * self.layers.last, self.layers.last])) @ weights
        edge = model.edge(theta)
        if not loosest < edge < tightest:
            return np.atleast_2d(0 * self.layers.last if edge <= loosest else self.layers.last)
        return frontier(self.layers, weights, np.array([edge]))

    def _candidates(self, belief: Belief, rng: np.random.Generator) -> Ints:
        if self._all is not None:
            return self._all
        count = len(self.layers)
        best = self._frontier(belief)
        drawn = belief.log_weights + belief.posterior.draw(DRAWN, rng)[:, :count]
        probes = belief.log_weights + PROBE_SPREAD * rng.standard_normal((PROBES, count))
        reach = math.sqrt(min(self._edge_variance(belief, best) + 0.01, _UNKNOWN_EDGE))
        targets = np.concatenate([reach * rng.uniform(-2.5, 1.0, DRAWN), rng.uniform(*PROBE_MARGINS, PROBES)])
        others = self._relaxed.plans_at(
            np.vstack([drawn, probes]),
            targets,
            lambda plans: belief.margins(self.layers.distortions_of(plans)),
        )
        return np.unique(np.vstack([best, others]), axis=0)

    def _frontier(self, belief: Belief) -> Ints:
        """Return exact plans of the most probable factors near the edge, and hull plans further away."""
        weights = np.exp(belief.log_weights)
        loosest, tightest = self.layers.distortions_of(np.stack([0 * self.layers.last, self.layers.last])) @ weights
        edge = min(max(belief.edge, 1.01 * loosest, 1e-9 * tightest, 1e-12), max(tightest, 1e-12))
        reach = math.sqrt(min(belief.posterior.covariance[-2, -2], _UNKNOWN_EDGE)) / math.exp(belief.posterior.mean[-1])
        exact = frontier(self.layers, weights, edge * np.exp(np.linspace(-0.5, 0.15, EXACT)))
        family = self._relaxed.plans_at(
            np.tile(belief.log_weights, (FAMILY, 1)),
            math.log(edge) + reach * np.linspace(-2.5, 1.0, FAMILY),
            lambda plans: np.asarray(np.log(self.layers.distortions_of(plans) @ weights + 1e-300)),
        )
        return np.vstack([exact, family])

    def _edge_variance(self, belief: Belief, plans: Ints) -> float:
        """Return the variance of the margin of that plan which is nearest the predicted edge."""
        margins, slopes = belief.margins_and_slopes(self.layers.distortions_of(plans))
        slope = slopes[np.argmin(np.abs(margins))]
        return float(slope @ belief.posterior.covariance @ slope)

    def _gain(
        self,
        belief: Belief,
        history: History,
        candidates: Ints,
        margins: Floats,
        slopes: Floats,
        rng: np.random.Generator,
    ) -> Floats:
        """Return the expected gain of each candidate in log ratio, shape (n,).

        A candidate gains if it is feasible and measured so; what was measured feasible by luck is no obstacle.
        """
        draws = belief.posterior.draw(SAMPLES, rng).T
        drawn = margins[:, None] + slopes @ draws
        noise = belief.model.deviations(np.maximum(margins, -5.0))[:, None]
        probable = normal_cdf(-drawn / noise) * (drawn < 0)
        gains = np.maximum(-self.log_bytes(candidates)[:, None] - self._best_under(belief, history, draws), 0)
        return np.asarray((gains * probable).mean(axis=1))

    def _best_under(self, belief: Belief, history: History, draws: Floats) -> Floats:
        """Return minus the log size of the best plan so far under each drawn theta, shape (draws,)."""
        found = history.plans[history.feasible]
        found = found[np.argsort(self.log_bytes(found), kind="stable")[:MOST_INCUMBENTS]]
        known = np.vstack([found, history.pending])
        margins, slopes = belief.margins_and_slopes(self.layers.distortions_of(known))
        inside = margins[:, None] + slopes @ draws < 0
        sizes = np.where(inside, -self.log_bytes(known)[:, None], -np.inf)
        nothing = -self._loosest - 0.05  # so that even the loosest plan is a gain
        return np.asarray(sizes.max(axis=0, initial=nothing))

    def _worth(self, belief: Belief, history: History, margins: Floats, slopes: Floats) -> Floats:
        """Return how much of the log ratio that ignorance of the layers costs goes away by each evaluation.

        With elasticities e_l = -d rate / d log distortion, factors that are wrong by du lose half of
        sum_l e_l (du_l - mean du)^2 bytes against the optimum (second order around it).
        """
        count = len(self.layers)
        elasticities, total = self._elasticities(belief)
        learnt = slopes @ self._covariance_after(belief, history.pending)
        noise = belief.model.deviations(np.maximum(margins, -5.0)) ** 2
        variances = (learnt * slopes).sum(axis=1) + noise
        about = learnt[:, :count]
        spread = about**2 @ elasticities - (about @ elasticities) ** 2 / max(elasticities.sum(), 1e-300)
        return np.asarray(0.5 * spread / variances / total)

    def _covariance_after(self, belief: Belief, pending: Ints) -> Floats:
        """Return what will remain unknown once pending plans are evaluated."""
        margins, slopes = belief.margins_and_slopes(self.layers.distortions_of(pending))
        return belief.posterior.covariance_after(slopes, belief.model.deviations(np.maximum(margins, -5.0)))

    def _elasticities(self, belief: Belief) -> tuple[Floats, float]:
        """Return e_l at the predicted edge, shape (L,), and the bytes there."""
        plan = self._relaxed.plans_at(
            belief.log_weights[None],
            np.zeros(1),
            lambda plans: belief.margins(self.layers.distortions_of(plans)),
        )
        tight, loose = np.minimum(plan + 2, self.layers.last), np.maximum(plan - 2, 0)
        least = 1e-12  # of the reference: distortions may be 0
        rise = np.log(self.layers.distortions_of(tight) + least) - np.log(self.layers.distortions_of(loose) + least)
        fall = self.layers.rates_of(loose) - self.layers.rates_of(tight)
        return (fall / np.maximum(rise, 0.1))[0], float(np.exp(self.log_bytes(plan)[0]))

    def _new(self, candidates: Ints, history: History) -> Ints:
        known = {plan.tobytes() for plans in (history.plans, history.pending, history.failed) for plan in plans}
        return candidates[[plan.tobytes() not in known for plan in candidates]]

    def _any_new(self, belief: Belief, history: History, rng: np.random.Generator) -> Ints:
        """Return a plan near the frontier that was not proposed yet; the best one again once there is none."""
        near = self._all if self._all is not None else self._frontier(belief)
        for _ in range(20 if self._all is None else 0):
            found = self._new(np.clip(near + rng.integers(-1, 2, near.shape), 0, self.layers.last), history)
            if len(found):
                return np.asarray(found[0])
        tried = history.plans[history.feasible] if history.feasible.any() else near[:1]
        return np.asarray(tried[int(np.argmin(self.log_bytes(tried)))])


def _all_plans(layers: Layers) -> Ints | None:
    """Return every plan, or None if there are too many."""
    counts = (layers.last + 1).tolist()
    if math.prod(counts) > ENUMERABLE:
        return None
    return np.array(list(itertools.product(*map(range, counts))), dtype=np.int64)
