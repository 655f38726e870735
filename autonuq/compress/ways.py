"""How a network's layers are best rounded: found on calibration images that took no part in it.

A way says what an error of a layer's outputs is taken to cost (`output_side`) and what a bit is worth (`quant.points`).
No way is the best for every network. So some images are learnt from, and the network that each way makes of them, built
in order, is compared with the original on the others: the way whose results diverge least at equal bytes is taken, with
its figures. The oldest one, which takes all outputs for equal, is among them, so that nothing gets worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate, Plan
from autonuq.compress.in_order import Builder
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.output_side import OutputSides, collect_output_sides
from autonuq.compress.quantized import QuantizedModel
from autonuq.graph.model import Array
from autonuq.quant.points import OperatingPoints, Tuning

Passes = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class Way:
    """One way to round a network's layers.

    Attributes
    ----------
    side : {"image", "position", ""}
        Which of `OutputSide`'s forms says what errors cost; none: all outputs are equal.
    temperature : float
        Of the softmax.
    by_largest, by_mean : float
        What is added to the diagonal of G, as shares of its largest eigenvalue and of its diagonal's mean.
    price : float
        See `Tuning`.
    """

    side: str = "position"
    temperature: float = 4.0
    by_largest: float = 0.015
    by_mean: float = 0.0
    price: float = 0.3

    def costs(self, sides: OutputSides) -> dict[str, NDArray[np.float64]]:
        """Return what errors of each layer's outputs cost, damped; layers with groups have no codebook, and no costs."""
        if not self.side:
            return {}
        found = sides.layers[self.temperature]
        return {name: self._damped(getattr(own, f"by_{self.side}")) for name, own in found.items()}

    def _damped(self, side: NDArray[np.float64]) -> NDArray[np.float64]:
        ...
