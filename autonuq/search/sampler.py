"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autonuq.errors import StudyError
from autonuq.quant.curve import Curve
from autonuq.search.loss_model import Prior
from autonuq.search.rate_distortion import RateDistortionSampler

MakeSampler = Callable[[int, Mapping[str, Curve], Mapping[str, int], float, float], BaseSampler]

RATE_DISTORTION = "rate-distortion"
"""The one that knows the layers' curves."""

SAMPLERS: dict[str, MakeSampler] = {
    RATE_DISTORTION: lambda seed, curves, weights, confidence, curve_error: RateDistortionSampler(
        curves.values(),
        seed=seed,
        original_bytes={name: 4 * count for name, count in weights.items()},
        confidence=confidence,
        curve_error=curve_error,
    ),
    "gp": lambda seed, curves, weights, confidence, curve_error: GPSampler(seed=seed),
    "random": lambda seed, curves, weights, confidence, curve_error: RandomSampler(seed=seed),
    "tpe": lambda seed, curves, weights, confidence, curve_error: TPESampler(seed=seed),
}


def make_sampler(
    name: str,
    seed: int,
    curves: Mapping[str, Curve] | None = None,
    weights: Mapping[str, int] | None = None,
    *,
    trials: int = 0,
    confidence: float = 0.0,
    curve_error: float = Prior.factor,
) -> BaseSampler:
    """Make a sampler.

    Parameters
    ----------
    name : str
    seed : int
    curves : mapping of str to Curve
    weights : mapping of str to int
        Number of weights of each layer, as for `Space`.
    trials : int
        Trials that the study has already: samplers that keep their random state to themselves would otherwise begin
        with the same proposals again when a study goes on.
    confidence, curve_error : float
        See `RateDistortionSampler`.

    Raises
    ------
    StudyError
        The name is unknown, or it needs curves and there are none.
    """
    if name not in SAMPLERS:
        raise StudyError(f"sampler must be one of {', '.join(SAMPLERS)}. Got '{name}' instead.")
    if name == RATE_DISTORTION and not curves:
        raise StudyError(f"sampler '{name}' needs the layers' curves; there are none")
    own_seed = seed if name == RATE_DISTORTION else seed + trials
    return SAMPLERS[name](own_seed, curves or {}, weights or {}, confidence, curve_error)
