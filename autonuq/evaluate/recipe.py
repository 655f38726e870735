"""How an evaluator is made, kept until one is needed: many commands look at a study and score nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from autonuq.evaluate.builtin import BuiltinSettings, ImageEvaluator, make_builtin
from autonuq.evaluate.builtin.sources import Part
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.evaluate.isolation import IsolatedEvaluator
from autonuq.graph.files import ModelPair


def make_evaluator(evaluator: Any, original: ModelPair) -> Any:
    """Return an evaluator made from its recipe for a network; one that is there already stays, wherever that lies now.

    Raises
    ------
    EvaluatorError, ModelError
        See `EvaluatorRecipe.make`.
    """
    if isinstance(evaluator, ImageEvaluator):
        return evaluator.with_original(original)
    return evaluator.make(original) if isinstance(evaluator, EvaluatorRecipe) else evaluator


@dataclass(frozen=True)
class EvaluatorRecipe:
    """What a study file says of an evaluator.

    Attributes
    ----------
    what : str or BuiltinSettings
        `file.py:Class` or `package.module:Class`, or a built-in one.
    folder : Path
        What a relative file is relative to.
    evaluate_batch_num : int
        Of a class; a built-in one has its own.
    timeout_s : float or None
        Of one evaluation, which then runs in a process of its own.
    """

    what: str | BuiltinSettings
    folder: Path
    evaluate_batch_num: int = 1
    timeout_s: float | None = None

    def of_part(self, part: Part) -> EvaluatorRecipe:
        """Return the recipe for a part of the data, where it is of a built-in evaluator."""
        return replace(self, what=replace(self.what, part=part)) if isinstance(self.what, BuiltinSettings) else self

    @property
    def part(self) -> Part:
        """The part of the data; all of a class's, which knows its own."""
        return self.what.part if isinstance(self.what, BuiltinSettings) else "all"

    def make(self, original: ModelPair) -> Any:
        """Make the evaluator for a network; None of held-back data that are too few.

        Raises
        ------
        EvaluatorError
            It cannot be loaded, or its data do not fit the network.
        ModelError
            A built-in evaluator cannot read the prototxt.
        """
        if isinstance(self.what, BuiltinSettings):
            evaluator = make_builtin(self.what, original)
        else:
            evaluator = load_evaluator(self.what, self.folder, self.evaluate_batch_num)
        if evaluator is None or self.timeout_s is None:
            return evaluator
        return IsolatedEvaluator(evaluator, partial(replace(self, timeout_s=None).make, original), self.timeout_s)
