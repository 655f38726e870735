"""How often a network decides as the original one: for classifiers whose images have no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autonuq.evaluate.builtin.decisions import ScoreEnds, doubt_decisions, find_scores
from autonuq.evaluate.builtin.images import ImageEvaluator
from autonuq.evaluate.builtin.settings import BuiltinSettings, Drop
from autonuq.evaluate.samples import Score
from autonuq.graph.model import Array, Graph


class Agreement(ImageEvaluator):
    """Share of the decisions that are the original network's.

    Notes
    -----
    An accuracy cannot fall by more than the share of the decisions that change. It falls by far less: many that change
    were wrong before, or become right (measured, see `drop_unsaid`).
    """

    compares = True
    keys = ("drop", "output", "axis")
    drop_unsaid = Drop(2.0)
    ends: ScoreEnds

    @classmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> ScoreEnds:
        """See `ImageEvaluator`."""
        return find_scores(graph, settings)

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        return (
            "share of decisions (the class with the largest score) that are the original network's, of each image that "
            f"of its positions; less than {self.drop} of it may be lost"
        )

    def keep(self, outputs: Mapping[str, Array], count: int) -> NDArray[np.int64]:
        """See `ImageEvaluator`: the decisions, shape (images, ...)."""
        return self.ends.decide(self.ends.scores(outputs[self.ends.output], count))

    def compare(self, found: NDArray[np.int64], original: NDArray[np.int64], start: int) -> NDArray[np.float64]:
        """See `ImageEvaluator`: the share of each image's positions where both decide alike."""
        same = (found == original) & (found >= 0)
        return np.asarray(same.reshape(len(same), -1).mean(axis=1))

    def doubt(self, found: Sequence[NDArray[np.int64]]) -> str:
        """See `ImageEvaluator`: one class for everything."""
        return doubt_decisions(np.concatenate(found))

    def score(self, things: Sequence[np.float64]) -> Score:
        """See `ImageEvaluator`."""
        shares = np.array(things)
        whole = bool(np.isin(shares, (0.0, 1.0)).all())
        return Score(float(shares.mean()), samples=shares.astype(bool) if whole else shares)
