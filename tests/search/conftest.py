"""A task that runs in a second."""

import pytest

from autonuq.compress import ModelPair
from autonuq.search.evaluator import load_evaluator
from autonuq.search.study import Task


@pytest.fixture
def task(tiny):
    return Task(
        name="tiny",
        source=ModelPair(tiny / "tiny.prototxt", tiny / "tiny.caffemodel"),
        evaluator=load_evaluator("evaluate.py:Agreement", tiny, 8),
        out=tiny / "out",
        storage=f"sqlite:///{tiny}/study.db",
        n_trials=3,
    )
