"""The words of the field that the report explains where they first appear; each has its one description here."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, str] = {
    "codebook": "the levels of one layer: all the weights that it still has, as int8 steps",
    "codec": "the lossless coder that turns weights into bytes; the ratio counts what it writes",
    "distortion": "expected squared error of a layer's output that its rounded weights cause, as a share of the "
    "output's energy",
    "gradients": "what a change of each weight does to the network's end, taken on images of the calibration; errors "
    "count by it",
    "importance": "share of a layer's ratio in what sets the quarter of trials with the smallest drop apart from the "
    "others, by Optuna's PED-ANOVA",
    "level": "one of the 256 int8 steps that a layer keeps; fewer levels take fewer bytes",
    "margin": "logarithm of the drop by the allowed drop: 0 at the limit, negative inside; what the sampler predicts, "
    "shown here as the metric that it means",
    "moments": "mean squares of a layer's inputs, recorded in the calibration; errors of weights count by them",
    "nats": "mean divergence of the network's answers from the original's; 0 where they are the same",
    "retention": "share of the 256 int8 steps that a layer keeps",
    "slope": "the price of a bit, by which rounding exchanges bytes for distortion: a larger one makes smaller files",
    "trial": "one plan, a number of levels for each layer, that was built and scored; a trade-off is the best where no "
    "satisfied trial is better in both",
}
"""Word -> what it means, in words that continue a sentence."""
