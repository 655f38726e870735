"""Inputs and costs of made-up layers."""

import numpy as np

from autonuq.quant.inputs import InputMoments


def inputs(samples, columns, seed=0):
    """Correlated, positive inputs as a ReLU makes them."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, columns)) @ rng.standard_normal((columns, columns)) / columns**0.5
    return np.maximum(mixed + 0.5, 0)


def moments_of(x):
    return InputMoments(x.T @ x, len(x), x.sum(axis=0))


def costs_of(rows, seed=0):
    """What output errors cost: positive definite, with rows that matter little and much."""
    mixed = np.random.default_rng(seed).standard_normal((rows, rows)) * np.geomspace(0.2, 3, rows)[:, None]
    return mixed @ mixed.T / rows + 0.05 * np.eye(rows)
