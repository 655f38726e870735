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
