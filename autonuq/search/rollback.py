"""Accuracy-driven roll-back: the layers that must stay float so that an int8 network satisfies its evaluator.

Layers are ranked by how much their quantization harms, the most sensitive first; a strategy then tries how many of the
first ones have to stay float. The two exchange plain mappings, as AMCT's `AutoCalibrationStrategyBase` and
`SensitivityBase` do, so that an own strategy or measure may take the place of ours. A study, which pays four bytes for
each weight that stays float, then looks which of them can be quantized after all (`requantize`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Verdict = tuple[bool, float]
"""Whether the metric satisfies the user, and what was lost."""


class Sensitivity(Protocol):
    """How like each other two outputs of a layer are; the least alike is the most sensitive."""

    def compare(self, data: NDArray[Any], other: NDArray[Any]) -> float: ...  # noqa: D102


class Strategy(Protocol):
    """What to try next: `{"stop_flag": bool, "roll_back_config": {layer: whether it is quantized}}`."""

    def initialize(self, ranking_info: Mapping[str, float]) -> None: ...  # noqa: D102
    def update_quant_config(self, metric_eval: Verdict) -> dict[str, Any]: ...  # noqa: D102


class CosineSimilaritySensitivity:
    """The cosine between the float and the fake-quantized output."""

    def compare(self, data: NDArray[Any], other: NDArray[Any]) -> float:
        """Return the cosine of two arrays of one size; 1 of two that are all zero, 0 if one is.

        Notes
        -----
        In float64: cosines of int8 layers differ from 1 by less than float32 resolves.
        """
        a, b = (np.asarray(values, np.float64).ravel() for values in (data, other))
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / lengths if lengths else float(a.any() == b.any())


class BinarySearchStrategy:
    """Bisects the number of leading layers of the ranking that stay float.

    Notes
    -----
    **Cost**: ceil(log2 N) networks for N layers. It assumes that a network only gets better when one more layer stays
    float; where that does not hold, what is found satisfies all the same, but may not be the shortest.
    """

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        """Start with a ranking; none of its layers and all of them are the two ends, which are known."""
        self._layers = sorted(ranking_info, key=lambda name: ranking_info[name])
        self._failed, self._good, self._tried = 0, len(self._layers), 0

    def update_quant_config(self, metric_eval: Verdict) -> dict[str, Any]:
        """Take in the verdict on what was tried last (first: on all layers quantized) and say what to try next."""
        if metric_eval[0]:
            self._good = self._tried
        else:
            self._failed = self._tried
        stop = self._good - self._failed <= 1
        self._tried = self._good if stop else (self._failed + self._good) // 2
        kept = {name: position >= self._tried for position, name in enumerate(self._layers)}
        return {"stop_flag": stop, "roll_back_config": kept}


@dataclass(frozen=True)
class Probe:
    """One network that was tried.

    Attributes
    ----------
    quantized : mapping of str to bool
        By layer: quantized, or left float.
    verdict : tuple of bool and float
    """

    quantized: Mapping[str, bool]
    verdict: Verdict


def roll_back(
    ranking: Mapping[str, float],
    strategy: Strategy,
    first: Verdict,
    probe: Callable[[Mapping[str, bool]], Verdict],
) -> tuple[dict[str, bool], list[Probe]]:
    """Follow a strategy to its end.

    Parameters
    ----------
    ranking : mapping of str to float
        By layer, the lowest the most sensitive.
    strategy : Strategy
    first : tuple of bool and float
        The verdict on all layers quantized.
    probe : callable
        Makes and scores the network of a mapping; it is not called twice for one network, nor where no layer is
        quantized.

    Returns
    -------
    dict of str to bool
        Which layers are quantized in the end; none, if nothing else satisfied.
    list of Probe
        What was tried, in order.
    """
    probes = [Probe(dict.fromkeys(ranking, True), first)]
    strategy.initialize(ranking)
    verdict = first
    while True:
        answer = strategy.update_quant_config(verdict)
        quantized = dict(answer["roll_back_config"])
        known = next((found.verdict for found in probes if found.quantized == quantized), None)
        if not any(quantized.values()):
            verdict = (True, 0.0)
        elif known is not None:
            verdict = known
        else:
            verdict = probe(quantized)
            probes.append(Probe(quantized, verdict))
        if answer["stop_flag"]:
            return quantized, probes


def requantize(floats: Sequence[str], accepts: Callable[[Sequence[str]], bool], most: int) -> list[str]:
    """Return the layers that must stay float of some that may, by trying groups of them at int8.

    Parameters
    ----------
    floats : sequence of str
        Layers that suffice, those first that are most likely to be needless; none of them does not.
    accepts : callable
        Says whether a part of them suffices, too. It is not asked of none and not of all.
    most : int
        How often it may be asked.

    Notes
    -----
    **Cost**: halves are tried first, so k layers that are needed among n cost some k log2 n questions. A part of what
    did not suffice is taken not to suffice.
    **Source**: adaptive group testing (Hwang, JASA 67, 1972), by halves.

    Examples
    --------
    >>> requantize(["a", "b", "c", "d", "e"], lambda kept: {"b", "e"} <= set(kept), 10)
    ['b', 'e']
    """
    needed, groups, asked = list(floats), _halves(floats), 0
    refused: list[set[str]] = [set()]
    while groups and asked < most:
        group = groups.pop(0)
        rest = [name for name in needed if name not in group]
        if not any(known.issuperset(rest) for known in refused):
            asked += 1
            if accepts(rest):
                needed = rest
                continue
            refused.append(set(rest))
        groups[:0] = _halves(group)
    return needed


def _halves(group: Sequence[str]) -> list[Sequence[str]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []
