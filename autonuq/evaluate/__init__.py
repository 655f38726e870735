"""Scoring networks: the evaluator contract, its verdict as a number, built-in evaluators, isolation in a process.

`evaluator` has the contract, `samples` the scores that know their error; `verdict` says how a yes-or-no predicate
becomes something a sampler can learn from. `recipe` is an evaluator that is not made yet, `builtin` has those that
need no code, and `isolation` runs any of them where it can be stopped.
"""

from autonuq.evaluate.evaluator import Evaluator

__all__ = ["Evaluator"]
