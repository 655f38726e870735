"""The sampler: an Optuna face of `proposal`.

Whatever it knows comes from its arguments and from the study's trials, read anew for every proposal, and its random
numbers from the seed and the trial's number. So a study that was killed goes on as if it had not been, and workers
need nothing but the storage. A running trial's plan stands in its system attribute `autonuq:plan`; a running trial
that has none yet is about to be given one by another worker, which is worked out here, too, before our own.
"""

from __future__ import annotations

import itertools
import math
import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autonuq.quant.curve import Curve
from autonuq.records import (
    CONSTRAINT,
    INT8,
    LOSS_ERROR,
    MARGIN_ERROR,
    MARGIN_LIMIT,
    ORIGIN,
    PLAN,
    is_verdict_alone,
)
from autonuq.search.allocation import stack_layers
from autonuq.search.attribution import Attribution, attribute_loss
from autonuq.search.loss_model import Belief, Floats, Prior
from autonuq.search.proposal import GAIN_DRAWS, History, Proposer
from autonuq.search.space import Space
from autonuq.search.trust import BelievedLoss, target_loss

FIXED = "fixed_params"
"""Optuna's system attribute of an enqueued trial."""

MOST_BLIND = 8
"""Running trials without a plan that are worked out first; more are zombies rather than workers."""


MOST_POINTS = 1 << 31
"""Of a curve, whatever a storage says."""


@dataclass(frozen=True)
class Learnt:
    """What a study's trials say.

    Attributes
    ----------
    losses : dict of int to BelievedLoss
        By trial number; see `RateDistortionSampler.believe`.
    distortions : dict of int to ndarray of float64, shape (L,)
        Of the plan of each trial that was learnt from, in units of the reference.
    belief : Belief or None
        None where there was nothing to learn from.
    layers : tuple of str, length L
    """

    losses: dict[int, BelievedLoss]
    distortions: dict[int, Floats]
    belief: Belief | None = None
    layers: tuple[str, ...] = ()

    def attribution(self, number: int) -> Attribution | None:
        """Return which layer causes how much of a trial's loss; None if the trial was not learnt from."""
        if self.belief is None or number not in self.distortions:
            return None
        return attribute_loss(self.belief, self.distortions[number], self.layers)


class RateDistortionSampler(BaseSampler):
    """Search the largest compression that a constraint allows, from the layers' rate-distortion curves.

    It finds good plans in few trials because it only learns what is unknown: sizes are exact functions of the plan,
    and the constraint's value follows a sum of the curves' distortions, each wrong by an unknown factor.

    Parameters
    ----------
    curves : iterable of Curve
        One per layer; those of a single point are not searched, but their bytes count. The unit of the distortions
        is arbitrary but one for all layers.
    seed : int, optional
        A random one if omitted.
    original_bytes : mapping of str to float, optional
        What the ratio of a layer refers to; its loosest point if omitted.
    confidence : float
        Plans are proposed that shall keep the limit with this probability on data like those that are scored; 0: on
        the very data.
    curve_error : float
        How wrong the curves are against each other: the standard deviation of the logarithm of an unknown factor of
        each layer's distortions.

    Attributes
    ----------
    distributions : dict of str to FloatDistribution
        The parameter `ratio/<layer>` of each layer: original bytes / compressed bytes, on a logarithmic scale.

    Raises
    ------
    ValueError
        Two curves have the same layer, or an original size is not positive.

    Notes
    -----
    The objective should set the constraint `satisfied` to log(drop / allowed drop), negative inside. Exactly 1 and -1
    stand for the verdict alone, 7 and beyond for "at least" and "at most". In place of it any other constraints will
    do, of whose values only the signs are used; a trial without any counts as feasible.

    **Cost**: 15 to 45 ms a proposal at 54 layers, 60 to 150 ms at 500, with up to 500 trials.
    **Source**: own derivation; the parts are named in `allocation`, `loss_model` and `proposal`.

    Examples
    --------
    >>> import math, numpy as np, optuna
    >>> from autonuq.search import Curve, RateDistortionSampler
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> bits = np.arange(8.0, 0.0, -1.0)
    >>> curves = [Curve(name, size * bits, size * 4.0**-bits) for name, size in (("conv", 100), ("fc", 900))]
    >>> sampler = RateDistortionSampler(curves, seed=0)
    >>> def objective(trial):
    ...     ratios = {
    ...         name: trial.suggest_float(name, d.low, d.high, log=True) for name, d in sampler.distributions.items()
    ...     }
    ...     plan = sampler.plan(ratios)  # layer -> index of its point
    ...     drop = sum(k * c.distortions[plan[c.layer]] for k, c in zip((3.0, 0.5), curves))  # here: the evaluation
    ...     trial.set_constraint("satisfied", math.log(drop / 5.0))
    ...     return 8000 / sum(c.rates_bytes[plan[c.layer]] for c in curves)
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(objective, n_trials=12)
    >>> round(study.best_value, 2)
    2.0
    """

    def __init__(
        self,
        curves: Iterable[Curve],
        *,
        seed: int | None = None,
        original_bytes: Mapping[str, float] | None = None,
        confidence: float = 0.0,
        curve_error: float = Prior.factor,
    ) -> None:
        own = list(curves)
        names = [curve.layer for curve in own]
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"The 'curves' parameter must have one curve per layer. Got several of '{double}'.")
        sizes = {curve.layer: float(curve.rates_bytes[0]) for curve in own} | dict(original_bytes or {})
        if any(not size > 0 for size in sizes.values()) or any(not curve.rates_bytes[-1] > 0 for curve in own):
            raise ValueError("Every layer's bytes, original and compressed, must be positive.")
        self._confidence = confidence
        self._seed = secrets.randbits(32) if seed is None else seed % 2**64  # entropy cannot be negative
        self._space = Space({curve.layer: curve for curve in own}, {name: size / 4 for name, size in sizes.items()})
        self._names = list(self._space.curves)
        self._snapped: dict[int, tuple[dict[str, Any], NDArray[np.int64]]] = {}  # by number; parameters and plan
        self.distributions: dict[str, FloatDistribution] = self._space.distributions
        self._proposer: Proposer | None = None
        if self._names:
            searched = self._space.curves.values()
            layers = stack_layers([c.rates_bytes for c in searched], [c.distortions for c in searched])
            fixed = sum(float(curve.rates_bytes[0]) for curve in own if curve.layer not in self._space.curves)
            self._proposer = Proposer(layers, fixed_bytes=fixed, prior=Prior(factor=curve_error))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the study's storage has, too."""
        return {**self.__dict__, "_snapped": {}}

    def plan(self, parameters: Mapping[str, float]) -> dict[str, int]:
        """Snap ratios to the curves: layer -> index of its point."""
        return self._space.plan(parameters)

    def parameters(self, plan: Mapping[str, int]) -> dict[str, float]:
        """Return the parameters of a plan, as `Study.enqueue_trial` takes them."""
        return self._space.parameters(plan)

    def predict(self, study: Study, plan: Mapping[str, int], number: int | None = None) -> tuple[float, float] | None:
        """Predict the constraint's value of a plan from the curves and the study's other trials.

        Parameters
        ----------
        study : optuna.Study
        plan : mapping of str to int
            Layer -> index of its point.
        number : int, optional
            The trial that is not to be learnt from: the one that evaluates the plan.

        Returns
        -------
        (float, float) or None
            The most probable margin and its standard deviation; None if nothing is searched.
        """
        if self._proposer is None:
            return None
        history = self._history(study.get_trials(deepcopy=False), number)
        return self._proposer.predict(history, np.array([plan[name] for name in self._names], dtype=np.int64))

    def believe(self, study: Study) -> dict[int, BelievedLoss]:
        """Return what is believed of the loss of each complete trial's plan, by its number; see `trust`.

        Trials whose verdict stands alone are left out: where the limit lies is not known then.
        """
        return self.learn(study).losses

    def learn(self, study: Study) -> Learnt:
        """Learn from all of a study's trials, once, what is believed of the loss of each and of its layers."""
        history, done = self._history_of(study.get_trials(deepcopy=False), None)
        if self._proposer is None or not done:
            return Learnt({}, {})
        belief = self._proposer.belief(history)
        known = [i for i, trial in enumerate(done) if not is_verdict_alone(trial.constraints.get(CONSTRAINT, 1.0))]
        errors = np.array([done[index].user_attrs.get(LOSS_ERROR, np.nan) for index in known], dtype=float)
        found = self._proposer.believe(belief, history.plans[known], errors) if known else []
        losses = {done[index].number: one for index, one in zip(known, found, strict=True)}
        distortions = self._proposer.layers.distortions_of(history.plans)
        plans = {trial.number: row for trial, row in zip(done, distortions, strict=True)}
        return Learnt(losses, plans, belief, tuple(self._names))

    def propose(self, study: Study) -> dict[str, float]:
        """Return the parameters that the study's next trial would be given, without making the trial."""
        trials = study.get_trials(deepcopy=False)
        if self._proposer is None:
            return {}
        plan = self._propose(self._proposer, trials, trials[-1].number + 1 if trials else 0)
        return self._space.parameters(dict(zip(self._names, plan.tolist(), strict=True)))

    def has_gain_left(self, study: Study, share: float, probability: float = 0.9) -> bool:
        """Say whether more than a share of the ratio may be left to gain; quickly where it is far more.

        Parameters
        ----------
        study : Study
        share : float
            0.005 for 0.5 % above the best ratio so far.
        probability : float
            False means: with this probability, under the model, no plan's ratio is further above the best.

        Notes
        -----
        What is feasible only by a lucky measurement does not count as found. On the surrogates of
        `studies/bench/search.py` 88 % of 72 statements with 90 % were true; 67 % after ten trials where the curves are
        wrong by e^0.5.
        """
        if self._proposer is None:
            return False
        history = self._aimed(*self._history_of(study.get_trials(deepcopy=False), None))
        gains = self._proposer.remaining_gains(history, self._generator(len(history.plans)))
        above = (int(gain > np.log1p(share)) for gain in gains)  # NumPy's True + True is True
        allowed = (1 - probability) * GAIN_DRAWS
        return any(count > allowed for count in itertools.accumulate(above))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space, from the first trial on."""
        return dict(self.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a plan and store it with the trial."""
        if self._proposer is None:
            return {}
        plan = self._plan_of(trial)
        if plan is None:
            plan = self._propose(self._proposer, study.get_trials(deepcopy=False), trial.number)
        if PLAN not in trial.system_attrs:
            # As Optuna's own samplers do it: for a sampler there is no public way to an attribute of a trial.
            study._storage.set_trial_system_attr(trial._trial_id, PLAN, plan.tolist())
        return self._space.parameters(dict(zip(self._names, plan.tolist(), strict=True)))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that is not of the curves' at random."""
        entropy = [self._seed, trial.number, zlib.crc32(param_name.encode())]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, proposer: Proposer, trials: Sequence[FrozenTrial], number: int) -> NDArray[np.int64]:
        history = self._aimed(*self._history_of(trials, number))
        blind = [
            other.number
            for other in trials
            if other.state == TrialState.RUNNING and other.number < number and self._plan_of(other) is None
        ]
        for other in blind[-MOST_BLIND:]:
            history = history.with_pending(proposer.propose(history, self._generator(other)))
        return proposer.propose(history, self._generator(number))

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, number])

    def _plan_of(self, trial: FrozenTrial) -> NDArray[np.int64] | None:
        """Return the plan of a trial as far as it is known: by its parameters, as enqueued, as proposed."""
        for parameters in (trial.params, trial.system_attrs.get(FIXED, {})):
            if self.distributions.keys() <= parameters.keys():
                return np.asarray(self._space.points([parameters])[0])
        stored = trial.system_attrs.get(PLAN)
        if not isinstance(stored, list) or len(stored) != len(self._names):
            return None
        if not all(isinstance(point, int) and abs(point) < MOST_POINTS for point in stored):
            return None
        plan = np.array(stored, dtype=np.int64)
        counts = [len(curve.rates_bytes) for curve in self._space.curves.values()]
        return plan if np.all((plan >= 0) & (plan < counts)) else None

    def _history(self, trials: Sequence[FrozenTrial], number: int | None) -> History:
        """Sort the trials that have our parameters; the one of that number is left out."""
        return self._history_of(trials, number)[0]

    def _aimed(self, history: History, done: Sequence[FrozenTrial]) -> History:
        """Return the history with margins to the loss that is aimed at in place of the limit."""
        if self._confidence <= 0 or self._proposer is None or not done:
            return history
        near = np.abs(history.margins) < 1
        known = [
            trial.user_attrs[LOSS_ERROR]
            for trial, is_near in zip(done, near, strict=True)
            if is_near and LOSS_ERROR in trial.user_attrs
        ]
        error = float(np.median(known)) if known else self._proposer.belief(history).model.prior.noise
        shift = math.log(target_loss(error, self._confidence))
        return replace(history, margins=history.margins - shift, feasible=history.feasible & (history.margins <= shift))

    def _history_of(self, trials: Sequence[FrozenTrial], number: int | None) -> tuple[History, list[FrozenTrial]]:
        """Return the history and the trials that its evaluations are of."""
        # What int8 alone costs says nothing of the curves, and belongs to no point on them.
        own = [trial for trial in trials if trial.number != number and trial.user_attrs.get(ORIGIN) != INT8]
        done, plans = self._evaluated([trial for trial in own if trial.state == TrialState.COMPLETE])
        verdicts = [_verdict(trial) for trial in done]
        unfinished, failed = (
            [plan for trial in own if trial.state in states and (plan := self._plan_of(trial)) is not None]
            for states in ((TrialState.RUNNING, TrialState.WAITING), (TrialState.FAIL, TrialState.PRUNED))
        )
        empty = np.empty((0, len(self._names)), dtype=np.int64)
        history = History(
            plans=plans,
            margins=np.array([margin for margin, _, _ in verdicts], dtype=float),
            senses=np.array([sense for _, sense, _ in verdicts], dtype=np.int64),
            errors=np.array([trial.user_attrs.get(MARGIN_ERROR, 0.0) for trial in done], dtype=float),
            feasible=np.array([feasible for _, _, feasible in verdicts], dtype=bool),
            pending=np.array(unfinished) if unfinished else empty,
            failed=np.array(failed) if failed else empty,
        )
        return history, done

    def _evaluated(self, complete: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], NDArray[np.int64]]:
        """Return those complete trials that have our parameters, and their plans.

        Storages hand out the same parameters object for a finished trial again: only new ones are snapped.
        """
        snapped = self._snapped.copy()
        new = [
            trial
            for trial in complete
            if (trial.number not in snapped or snapped[trial.number][0] is not trial.params)
            and self.distributions.keys() <= trial.params.keys()
        ]
        points = self._space.points([trial.params for trial in new])
        snapped |= {trial.number: (trial.params, plan) for trial, plan in zip(new, points, strict=True)}
        self._snapped = snapped
        done = [t for t in complete if t.number in snapped and snapped[t.number][0] is t.params]
        plans = [snapped[trial.number][1] for trial in done]
        return done, np.array(plans, dtype=np.int64).reshape(len(done), len(self._names))


def _verdict(trial: FrozenTrial) -> tuple[float, int, bool]:
    """Return a trial's margin or its bound, the sense of the bound (0: none), and whether the trial is feasible."""
    constraints = trial.constraints
    feasible = all(value <= 0 for value in constraints.values())
    margin = constraints.get(CONSTRAINT, 1.0)
    if abs(margin) >= MARGIN_LIMIT:
        return float(np.copysign(MARGIN_LIMIT, margin)), int(np.sign(margin)), feasible
    if is_verdict_alone(margin):
        return 0.0, -1 if feasible else 1, feasible
    return float(margin), 0, feasible
