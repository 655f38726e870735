"""Evaluators that a study file names instead of a class: networks over images, with labels or against themselves.

`sources` reads the images, `transform` makes them what the network takes, `images` runs the network; each kind has a
module that says what is looked at and how it is scored, and `kinds` knows them all. `suggestion` and `guess` tell what
fits a network that nobody describes, and `plausible` what speaks against a study's own description.
"""

from autonuq.evaluate.builtin.images import ImageEvaluator
from autonuq.evaluate.builtin.kinds import KINDS, make_builtin
from autonuq.evaluate.builtin.settings import BuiltinSettings, Drop, parse_drop
from autonuq.evaluate.builtin.sources import DataSettings
from autonuq.evaluate.builtin.transform import TransformSettings

__all__ = [
    "KINDS",
    "BuiltinSettings",
    "DataSettings",
    "Drop",
    "ImageEvaluator",
    "TransformSettings",
    "make_builtin",
    "parse_drop",
]
