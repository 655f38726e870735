"""How often a network decides as the original one: for classifiers whose images have no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autonuq.evaluate.builtin.decisions import Decisions, ScoreEnds, doubt_decisions, find_scores
from autonuq.evaluate.builtin.images import ImageEvaluator
from autonuq.evaluate.builtin.settings import BuiltinSettings, Drop
from autonuq.evaluate.samples import Score
from autonuq.graph.model import Array, Graph

_HARDER = 4.0
"""By which changed decisions cost more than if those with the smallest margins changed first."""
FEWEST_DECISIONS = 100
"""From which a limit can be told."""


def fitting_drop(scores: Array) -> Drop:
    """Return how many decisions may change for about one point of accuracy, if the network is as sure as it says.

    Parameters
    ----------
    scores : ndarray, shape (decisions, classes)
        Probabilities, or what a softmax makes them from.

    Notes
    -----
    A decision that changes costs the margin p1 - p2 of its two likeliest classes, by the network's own probabilities;
    those of small margin change first, and some of larger margin with them.
    **Source**: own measurements of five networks (studies/LOG.md).
    """
    shares = scores.astype(np.float64)
    if (shares < 0).any() or not np.allclose(shares.sum(axis=1), 1, atol=1e-3):
        shares = np.exp(shares - shares.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
    best = np.partition(shares, -2, axis=1)[:, -2:]
    lost = _HARDER * np.cumsum(np.sort(best[:, 1] - best[:, 0])) / len(best)
    points = 100 * int(np.searchsorted(lost, 0.01)) / len(best)
    return Drop(round(float(np.clip(points, 1.0, 20.0)), 1))


class Agreement(ImageEvaluator):
    """Share of the decisions that are the original network's.

    Notes
    -----
    An accuracy cannot fall by more than the share of the decisions that change. It falls by far less, as many of them
    were wrong before, or become right: in studies of four classifiers by up to 0.5 points where 2 % changed, 0.8 where
    3 % did, 1.9 where 5 % did. So the limit is 3 points.
    """

    compares = True
    keys = ("drop", "output", "axis")
    drop_unsaid = Drop(3.0)
    ends: ScoreEnds

    @classmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> ScoreEnds:
        """See `ImageEvaluator`."""
        return find_scores(graph, settings)

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        positions = "x".join(map(str, self.ends.pixels))
        what = f"each image's {positions} positions" if math.prod(self.ends.pixels) > 1 else "the images"
        return f"share of {what} whose class, that of the largest score, is the original network's; {self.drop.say()}"

    def keep(self, outputs: Mapping[str, Array], count: int) -> Decisions:
        """See `ImageEvaluator`: the decisions, shape (images, ...)."""
        return self.ends.decide(self.ends.scores(outputs[self.ends.output], count))

    def compare(self, found: Decisions, original: Decisions, start: int) -> NDArray[np.float64]:
        """See `ImageEvaluator`: the share of each image's positions where both decide alike."""
        same = (found == original) & (found >= 0)
        return np.asarray(same.reshape(len(same), -1).mean(axis=1))

    def doubt(self, found: Sequence[Decisions]) -> str:
        """See `ImageEvaluator`: one class for everything."""
        return doubt_decisions(np.concatenate(found))

    def score(self, things: Sequence[np.float64]) -> Score:
        """See `ImageEvaluator`."""
        shares = np.array(things)
        whole = bool(np.isin(shares, (0.0, 1.0)).all())
        return Score(float(shares.mean()), samples=shares.astype(bool) if whole else shares)
