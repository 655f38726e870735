"""Samplers by name, or as whoever calls has made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autonuq.errors import StudyError, suggest_name
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


_OBJECT = " object"


def stored_sampler(sampler: str | BaseSampler) -> str:
    """Return what is stored of a sampler: its name; of an object only what it is, for that makes no sampler again."""
    return sampler if isinstance(sampler, str) else type(sampler).__name__ + _OBJECT


def check_sampler(sampler: object, study: str | None = None) -> None:
    """Refuse what is no sampler, and what was stored of an object.

    Raises
    ------
    StudyError
        Says what to give.
    """
    if isinstance(sampler, BaseSampler) or (isinstance(sampler, str) and sampler in SAMPLERS):
        return
    rule = f"sampler must be one of {', '.join(SAMPLERS)}, or an object of a sampler of Optuna's"
    if not isinstance(sampler, str):
        raise StudyError(f"{rule}. Got {sampler!r} instead.", study=study)
    if sampler.endswith(_OBJECT):
        was = sampler.removesuffix(_OBJECT)
        raise StudyError(
            f"was started with a sampler that was given as an object, {was}, and objects are not stored: give it "
            f"again, sampler={was}(...), or go on with another, such as sampler='{RATE_DISTORTION}'",
            study=study,
        )
    raise StudyError(f"{rule}. Got '{sampler}' instead.{suggest_name(sampler, SAMPLERS)}", study=study)


def make_sampler(
    sampler: str | BaseSampler,
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
    sampler : str or BaseSampler
        An object is taken as it is.
    seed : int
        For a name.
    curves : mapping of str to Curve
    weights : mapping of str to int
        Number of weights of each layer, as for `Space`.
    trials : int
        Trials that the study has already: samplers that keep their random state to themselves would otherwise begin
        with the same proposals again when a study goes on. An object then draws from entropy.
    confidence, curve_error : float
        See `RateDistortionSampler`.

    Raises
    ------
    StudyError
        The name is unknown, or it needs curves and there are none.
    """
    check_sampler(sampler)
    if isinstance(sampler, BaseSampler):
        if trials:
            sampler.reseed_rng()
        return sampler
    if sampler == RATE_DISTORTION and not curves:
        raise StudyError(f"sampler '{sampler}' needs the layers' curves; there are none")
    own_seed = seed if sampler == RATE_DISTORTION else seed + trials
    return SAMPLERS[sampler](own_seed, curves or {}, weights or {}, confidence, curve_error)
