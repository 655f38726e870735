"""The rate-distortion sampler in a study of one's own, with a quantizer, sizes and a network that are not ours.

    python search.py

Everything but the sampler and its curves is NumPy: a classifier that is trained here on made-up pictures, codebooks by
k-means, and zlib, which says how many bytes the indices take. The search looks for the smallest network that loses at
most a point of accuracy, once with `RateDistortionSampler` and once with Optuna's TPE.
"""

import argparse
import math
import zlib
from itertools import pairwise

import numpy as np
import optuna

from autonuq.search import Curve, RateDistortionSampler

WIDTHS = (256, 160, 128, 96, 80, 64, 48, 32, 10)
LEVELS = (64, 32, 24, 16, 12, 8, 6, 5, 4, 3, 2)
ALLOWED_DROP = 0.01


def make_pictures(count, rng):
    """Return pictures of 16 x 16 pixels, each of one of ten patterns, shifted, dimmed and noisy, and their classes."""
    patterns = np.random.default_rng(7).standard_normal((10, 16, 16))
    for axis in (1, 2):  # smooth them
        patterns = sum(np.roll(patterns, step, axis) for step in (-1, 0, 1)) / 3
    labels = rng.integers(10, size=count)
    shifts = rng.integers(-1, 2, size=(count, 2))
    moved = np.stack([np.roll(patterns[label], shift, (0, 1)) for label, shift in zip(labels, shifts, strict=True)])
    pictures = moved * rng.uniform(0.6, 1.4, (count, 1, 1)) + rng.normal(0, 0.45, moved.shape)
    return pictures.reshape(count, -1).astype(np.float32), labels


def logits_of(weights, pictures):
    """Return the outputs, shape (pictures, 10), and what each layer got; each layer has a row for its bias."""
    inputs, layer = [], pictures
    for number, matrix in enumerate(weights):
        layer = np.concatenate([layer, np.ones((len(layer), 1), np.float32)], axis=1)
        inputs.append(layer)
        layer = layer @ matrix
        if number + 1 < len(weights):
            layer = np.maximum(layer, 0)
    return layer, inputs


def train(pictures, labels, rng, epochs=12, batch=64):
    """Train by stochastic gradient descent with momentum, and return a matrix for each layer."""
    weights = [
        np.concatenate([rng.normal(0, math.sqrt(2 / rows), (rows, columns)), np.zeros((1, columns))]).astype(np.float32)
        for rows, columns in pairwise(WIDTHS)
    ]
    speeds = [np.zeros_like(matrix) for matrix in weights]
    for epoch in range(epochs):
        for chosen in np.split(rng.permutation(len(pictures)), len(pictures) // batch):
            logits, inputs = logits_of(weights, pictures[chosen])
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            slope = shares / shares.sum(axis=1, keepdims=True)
            slope[np.arange(len(chosen)), labels[chosen]] -= 1
            for number in reversed(range(len(weights))):
                gradient = inputs[number].T @ slope / len(chosen)
                slope = (slope @ weights[number][:-1].T) * (inputs[number][:, :-1] > 0)
                speeds[number] = 0.9 * speeds[number] - 0.02 * (1 - epoch / epochs) * gradient
                weights[number] += speeds[number]
    return weights


def quantize(matrix, levels):
    """Return a matrix of so many different weights, found by k-means, and its bytes: zlib's, and the codebook's."""
    values = np.sort(matrix, axis=None)
    codebook = values[np.linspace(0, len(values) - 1, 2 * levels + 1).astype(int)[1::2]].astype(np.float64)
    for _ in range(20):
        borders = np.searchsorted(values, (codebook[:-1] + codebook[1:]) / 2)
        groups = np.split(values, borders)
        codebook = np.array([part.mean() if len(part) else level for part, level in zip(groups, codebook, strict=True)])
    codes = np.searchsorted((codebook[:-1] + codebook[1:]) / 2, matrix).astype(np.uint8)
    return codebook[codes].astype(np.float32), len(zlib.compress(codes.tobytes(), 9)) + 4 * levels


def build_curves(weights, pictures):
    """Return a curve for each layer, and the matrices of its points; the first point is the layer as it was.

    A point's distortion is measured: what the layer, so quantized alone, does to the outputs, as a mean square. Only
    the ratios of the distortions count, and the sampler takes each layer's to be wrong by some factor.
    """
    curves, points = [], {}
    exact = logits_of(weights, pictures)[0]
    for number, matrix in enumerate(weights):
        made = [(matrix, matrix.nbytes), *(quantize(matrix, levels) for levels in LEVELS)]
        outputs = [logits_of([*weights[:number], one, *weights[number + 1 :]], pictures)[0] for one, _ in made]
        distortions = [float(((found - exact) ** 2).mean()) for found in outputs]
        kept = [0]  # a curve falls in bytes and rises in distortion: leave out what is worse in both
        for index in range(1, len(made)):
            while kept and distortions[kept[-1]] > distortions[index]:
                kept.pop()
            if made[index][1] < made[kept[-1]][1]:
                kept.append(index)
        name = f"layer{number}"
        rates = np.array([made[index][1] for index in kept])
        curves.append(Curve(name, rates, np.array([distortions[index] for index in kept])))
        points[name] = [made[index][0] for index in kept]
    return curves, points


def search(sampler_name, curves, points, score, trials, seed):
    """Run a study of one's own, as any other of Optuna's."""
    own = RateDistortionSampler(curves, seed=seed)  # also tells which parameters there are, and what they stand for
    whole, original = sum(curve.rates_bytes[0] for curve in curves), score([made[0] for made in points.values()])

    def objective(trial):
        ratios = {name: trial.suggest_float(name, d.low, d.high, log=True) for name, d in own.distributions.items()}
        plan = own.plan(ratios)  # layer -> index of its point
        drop = original - score([points[name][index] for name, index in plan.items()])
        trial.set_user_attr("drop", drop)
        trial.set_constraint("satisfied", math.log(max(drop, 1e-3 * ALLOWED_DROP) / ALLOWED_DROP))
        return whole / sum(curve.rates_bytes[plan[curve.layer]] for curve in curves)

    sampler = own if sampler_name == "rate-distortion" else optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(
        own.parameters({curve.layer: 1 for curve in curves})
    )  # 64 levels everywhere: surely good enough
    study.optimize(objective, n_trials=trials)
    return study


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = np.random.default_rng(options.seed)
    weights = train(*make_pictures(6400, rng), rng)
    pictures, labels = make_pictures(4000, rng)

    def score(matrices):
        return float((logits_of(matrices, pictures)[0].argmax(axis=1) == labels).mean())

    curves, points = build_curves(weights, make_pictures(500, rng)[0])
    print(f"{sum(matrix.size for matrix in weights):,} weights in {len(weights)} layers, accuracy {score(weights):.4f}")
    for name in ("rate-distortion", "tpe"):
        best = search(name, curves, points, score, options.trials, options.seed).best_trial
        print(
            f"{name}: {best.value:.2f} times smaller, {best.user_attrs['drop']:.4f} of the accuracy lost, in trial "
            f"{best.number} of {options.trials}"
        )


if __name__ == "__main__":
    main()
