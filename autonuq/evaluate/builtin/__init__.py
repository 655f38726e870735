"""Evaluators that a study file names instead of a class: top-1 and top-5 over labelled images.

`sources` reads the images, `transform` makes them what the network takes, `accuracy` runs the network and counts.
"""

from autonuq.evaluate.builtin.accuracy import KINDS, Accuracy, AccuracySettings, Drop, make_accuracy, parse_drop
from autonuq.evaluate.builtin.sources import DataSettings
from autonuq.evaluate.builtin.transform import TransformSettings

__all__ = [
    "KINDS",
    "Accuracy",
    "AccuracySettings",
    "DataSettings",
    "Drop",
    "TransformSettings",
    "make_accuracy",
    "parse_drop",
]
