"""What plans cost the network's results, measured without labels before the first trial.

The sum of the layers' curves foretells how far a plan's network diverges from the original. How far it really does
takes seconds to measure, on images of the calibration. So some plans near where accuracy begins to fall are built, the
factors by which each layer's curve is wrong are learnt from them as the search learns them from trials
(`search.loss_model`), and the curves are corrected: what is left for the trials to find is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import optuna
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate
from autonuq.compress.in_order import NetworkBuilder, affordable_passes
from autonuq.compress.quantized import QuantizedModel
from autonuq.compress.ways import divergent_size, plan_of_size
from autonuq.graph.model import Array
from autonuq.quant.cores import side_by_side
from autonuq.quant.points import OperatingPoints
from autonuq.records import Rounding
from autonuq.runtime.inputs import count_images, first_images, load_inputs
from autonuq.search.loss_model import Evidence, Prior, learn
from autonuq.search.proposal import FLOOR
from autonuq.study.stored import store_rounding, stored_rounding
from autonuq.study.task import OnProgress, Progress, Task

_IMAGES = 200
_FEWEST, _MOST = 8, 16  # plans, and two for each layer between
# 24 plans foretell resnet20-fashion's log divergences to 0.201, 16 to 0.208, none to 0.240 (standard deviations).
_REACH = 5  # points by which each layer leaves the plan in the middle
_FEW = 1 << 13  # weights below which the trials themselves take no time
_MANY = 1 << 24  # weights above which no plan is built for this
_PRIOR = Prior(noise=0.01, near=0.05, far=0.0)  # divergences have little noise, and follow the sum closely


def foretell(task: Task, study: optuna.Study, candidate: Candidate, on_progress: OnProgress) -> None:
    """Learn by which factors the layers' curves are wrong, once in a study's life, and store them."""
    rounding = stored_rounding(study)
    searched = {name: found for name, found in candidate.points.items() if len(found.curve.rates_bytes) > 1}
    if not rounding.in_order or rounding.factors or not searched:
        return
    passes = foretold_on(candidate.model, load_inputs(task.record_file))
    if not passes:
        return
    on_progress(
        Progress(
            "foretelling",
            f"what plans do to the results, on {count_images(passes)} images",
            0,
            1,
        )
    )
    builder = NetworkBuilder(candidate.model, passes)
    factors = _learnt(builder, candidate, searched, np.random.default_rng(task.seed))
    store_rounding(study, replace(rounding, factors=factors))
    on_progress(Progress("foretelling", _said(factors), 1, 1))


def foretold_on(model: QuantizedModel, passes: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """Return the inputs of a calibration on which plans are built; none for too small or too large a network."""
    if not passes or not _FEW <= sum(model.weight_counts.values()) <= _MANY:
        return []
    return affordable_passes(model.graph, first_images(passes, _IMAGES), _MOST)


def count_plans(layers: int) -> int:
    """Return how many plans are built for so many searched layers, beside those that look for the one in the middle."""
    return min(max(_FEWEST, 2 * layers), _MOST)


def corrected(candidate: Candidate, rounding: Rounding) -> Candidate:
    """Return the network with its curves' distortions times the factors that were learnt."""
    points = {name: _scaled(found, rounding.factors.get(name, 1.0)) for name, found in candidate.points.items()}
    return replace(candidate, points=points)


def _scaled(points: OperatingPoints, factor: float) -> OperatingPoints:
    return replace(points, curve=replace(points.curve, distortions=points.curve.distortions * factor))


def _learnt(
    builder: NetworkBuilder, candidate: Candidate, searched: Mapping[str, OperatingPoints], rng: np.random.Generator
) -> dict[str, float]:
    """Return the factor of each searched layer."""
    every = range(len(builder.passes))
    middle = dict(plan_of_size(candidate.points, divergent_size(builder, candidate, every)))
    last = np.array([len(found.curve.rates_bytes) - 1 for found in searched.values()])
    around = np.array([middle[name] for name in searched])
    size = count_plans(len(searched)), len(searched)
    plans = np.clip(around + rng.integers(-_REACH, _REACH + 1, size), 0, last)
    plans[0] = around

    def divergence(plan: NDArray[np.int64]) -> float:
        own = candidate.with_plan(middle | dict(zip(searched, plan.tolist(), strict=True)))
        return builder.build(own).divergence(every)

    divergences = side_by_side(divergence, list(plans), each_bytes=builder.build_bytes)
    distortions = np.stack(
        [found.curve.distortions[plans[:, index]] for index, found in enumerate(searched.values())], axis=1
    )
    known = np.isfinite(divergences) & (distortions.sum(axis=1) > 0)
    reference = float(distortions[known].sum(axis=1).mean()) if known.any() else 1.0
    margins = np.log(np.maximum(np.array(divergences)[known], 1e-12))
    evidence = Evidence(distortions[known] / reference, margins, np.zeros(len(margins), int), np.zeros(len(margins)))
    weights = learn(len(searched), FLOOR, _PRIOR, evidence).log_weights
    return {name: math.exp(weight) for name, weight in zip(searched, weights.tolist(), strict=True)}


def _said(factors: Mapping[str, float]) -> str:
    least, most = min(factors.values()), max(factors.values())
    return f"the layers' curves are corrected by {least:.2g} to {most:.2g}"
