"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autonuq.errors import StudyError

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Make a sampler.

    Raises
    ------
    StudyError
        The name is unknown.
    """
    if name not in SAMPLERS:
        raise StudyError(f"sampler must be one of {', '.join(SAMPLERS)}. Got '{name}' instead.")
    return SAMPLERS[name](seed)
