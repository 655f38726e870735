"""The rate-distortion sampler in a study of one's own, with nothing else of autonuq: curves in, plans out.

    python search.py

Any size that is an exact function of the choices, and any loss that grows with the sum of the choices' distortions, can
be searched so. Here a made-up network of 12 layers, whose curves are wrong by an unknown factor each, stands for it.
"""

import math

import numpy as np
import optuna

from autonuq.search import Curve, RateDistortionSampler

LAYERS, TRIALS, ALLOWED_DROP = 12, 25, 1.0


def build_curves(rng):
    """Return a curve per layer: 8 down to 1 bits a weight, the distortion four times larger for each bit less."""
    bits = np.arange(8.0, 0.5, -0.5)
    weights = rng.integers(1_000, 500_000, LAYERS)
    return [Curve(f"layer{i}", count * bits / 8, 1e-3 * (4.0 ** (8 - bits) - 1)) for i, count in enumerate(weights)]


def run_study(sampler_name, seed=0):
    rng = np.random.default_rng(seed)
    curves = build_curves(rng)
    factors = np.exp(rng.normal(0, 0.7, LAYERS))  # what nobody knows
    own = RateDistortionSampler(curves, seed=seed)
    whole = sum(curve.rates_bytes[0] for curve in curves)

    def objective(trial):
        ratios = {name: trial.suggest_float(name, d.low, d.high, log=True) for name, d in own.distributions.items()}
        plan = own.plan(ratios)  # layer -> index of its point
        drop = sum(f * curve.distortions[plan[curve.layer]] for f, curve in zip(factors, curves, strict=True)) / 100
        trial.set_constraint("satisfied", math.log(max(drop, 1e-9) / ALLOWED_DROP))
        return whole / sum(curve.rates_bytes[plan[curve.layer]] for curve in curves)

    sampler = own if sampler_name == "rate-distortion" else optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(own.parameters({curve.layer: 0 for curve in curves}))  # the loosest plan is feasible
    study.optimize(objective, n_trials=TRIALS)
    return study


def main():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("rate-distortion", "tpe"):
        study = run_study(name)
        print(f"{name}: best feasible ratio {study.best_value:.2f} in trial {study.best_trial.number} of {TRIALS}")


if __name__ == "__main__":
    main()
