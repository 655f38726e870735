"""The random numbers of nets without weights: one stream in a process, as in Caffe."""

from __future__ import annotations

import numpy as np

_DEFAULT_SEED = 0
_streams = {"fillers": np.random.default_rng(_DEFAULT_SEED)}


def random_generator() -> np.random.Generator:
    """Return the stream that random fillers draw from; a process that seeds nothing gets the same numbers each time."""
    return _streams["fillers"]


def seed_fillers(seed: int) -> None:
    """Start the stream anew; like Caffe's, a seed has 32 bits."""
    _streams["fillers"] = np.random.default_rng(seed % 2**32)
