"""Evaluators that hang, die, print, change directory or their mind: what a study makes of each."""

import logging
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from autonuq.errors import EvaluatorError
from autonuq.evaluate.evaluator import evaluator_fingerprint, evaluator_name, is_satisfied, load_evaluator, score
from autonuq.evaluate.isolation import IsolatedEvaluator
from autonuq.graph.files import ModelPair
from autonuq.runtime import device
from autonuq.study.run import StudyRun
from autonuq.study.study_file import load_task

PAIR = ModelPair(Path("model"), Path("weights"))

WEIRD = """
import os, sys, time

class Weird:
    evaluate_batch_num = 3

    def __init__(self):
        self.calls = 0

    def eval_model(self, model_file, weights_file, batch_num):
        self.calls += 1
        if model_file == "hangs":
            time.sleep(600)
        if model_file == "dies":
            os._exit(3)
        if model_file == "raises":
            raise KeyError("no such blob")
        if model_file == "exits":
            sys.exit(4)
        return float(self.calls)

    def is_satisfied(self, original_metric, new_metric):
        return True
"""


@pytest.fixture
def isolated(tmp_path):
    (tmp_path / "weird.py").write_text(WEIRD)
    make = partial(load_evaluator, "weird.py:Weird", tmp_path, 3)
    return IsolatedEvaluator(make(), make, timeout_s=4)


@pytest.mark.slow
def test_a_process_is_kept_killed_and_made_anew(isolated):
    assert [score(isolated, PAIR), score(isolated, PAIR)] == [1.0, 2.0]
    with pytest.raises(EvaluatorError, match=r"took longer than 4 s; its process was killed"):
        score(isolated, replace(PAIR, model=Path("hangs")))
    assert score(isolated, PAIR) == 1.0
    for model, message in (("dies", "process of eval_model died"), ("raises", "KeyError"), ("exits", "SystemExit: 4")):
        with pytest.raises(EvaluatorError, match=message):
            score(isolated, replace(PAIR, model=Path(model)))
    assert score(isolated, PAIR) == 1.0


@pytest.mark.slow
def test_the_process_has_the_card_that_is_selected_here(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_card", 2)
    text = """
        from autonuq.runtime import device

        class Card:
            evaluate_batch_num = 1

            def eval_model(self, model_file, weights_file, batch_num):
                return float(device._card)

            def is_satisfied(self, original_metric, new_metric):
                return True
    """
    (tmp_path / "card.py").write_text(dedent(text))
    make = partial(load_evaluator, "card.py:Card", tmp_path, 1)
    assert score(IsolatedEvaluator(make(), make, timeout_s=20), PAIR) == 2.0


def test_a_time_limit_does_not_make_another_evaluator(isolated, tmp_path):
    plain = load_evaluator("weird.py:Weird", tmp_path, 3)
    assert evaluator_fingerprint(isolated) == evaluator_fingerprint(plain)
    assert evaluator_name(isolated) == "weird.py:Weird"
    assert isolated.evaluate_batch_num == 3


def test_a_study_file_asks_for_it(tiny_study):
    text = tiny_study.read_text().replace("evaluate_batch_num = 8", "evaluate_batch_num = 8\ntimeout = 60")
    tiny_study.write_text(text)
    evaluator = load_task(tiny_study).made().evaluator
    assert isinstance(evaluator, IsolatedEvaluator)
    pair = ModelPair(tiny_study.parent / "tiny.prototxt", tiny_study.parent / "tiny.caffemodel")
    assert score(evaluator, pair) == 1.0


def test_prints_go_to_stderr_and_the_directory_is_changed_back(tmp_path, capsys, caplog):
    class Untidy:
        evaluate_batch_num = 1

        def eval_model(self, model_file, weights_file, batch_num):
            print("accuracy so far")
            os.chdir(tmp_path)
            return 0.5

    before = Path.cwd()
    with caplog.at_level(logging.WARNING):
        assert score(Untidy(), PAIR) == 0.5
    assert Path.cwd() == before
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "accuracy so far\n")
    assert "eval_model changed the working directory" in caplog.text


class Wrapped:
    """The task's evaluator with another predicate."""

    evaluate_batch_num = 8

    def __init__(self, inner, predicate):
        self.eval_model, self.is_satisfied = getattr(inner, "eval_model", None), predicate


def without_edge(original, new):
    return new in (original, 1.0) or round(1000 * new) % 2 == 0


def test_a_predicate_without_an_edge_leaves_the_verdict_and_says_so(task):
    messages = []
    evaluator = Wrapped(task.evaluator, without_edge)
    wanted = replace(task, evaluator=evaluator, n_trials=8)
    study = StudyRun(wanted, lambda step: messages.append(step.message)).run(exists=False)
    trials = [trial for trial in study.record().trials if trial.metric != 1.0]
    assert trials
    assert all(trial.margin == (-1.0 if trial.satisfied else 1.0) for trial in trials)
    assert any("verdict alone: is_satisfied shows no single edge" in message for message in messages)


@pytest.mark.parametrize("verdict", [None, float("nan"), "no", 1, np.array([True]), []], ids=repr)
def test_a_verdict_is_a_bool(verdict):
    with pytest.raises(EvaluatorError, match=r"is_satisfied must return True or False. Got .* instead"):
        is_satisfied(Wrapped(Wrapped, lambda original, new: verdict), 0.9, 0.8)


@pytest.mark.parametrize("verdict", [True, np.True_, np.bool_(False)])
def test_a_verdict_may_be_numpys(verdict):
    assert is_satisfied(Wrapped(Wrapped, lambda original, new: verdict), 0.9, 0.8) is bool(verdict)


def test_a_predicate_that_changes_its_mind(task):
    answers = iter([True, *[index % 2 == 0 for index in range(100_000)]])
    study = StudyRun(
        replace(task, evaluator=Wrapped(task.evaluator, lambda original, new: next(answers)), n_trials=6)
    ).run(exists=False)
    for trial in study.record().trials:
        assert (trial.margin <= 0) == trial.satisfied
    assert study.best is None or study.record().best.satisfied


def test_a_predicate_that_raises_for_some_metrics_fails_those_trials_only(task):
    scored = []

    def picky(original, new):
        if len(scored) == 4:  # the original, the calibration and two trials have been run
            raise LookupError(f"no table for {new}")
        return True

    evaluator = Wrapped(task.evaluator, picky)
    evaluator.eval_model = lambda *arguments: scored.append(task.evaluator.eval_model(*arguments)) or scored[-1]
    study = StudyRun(replace(task, evaluator=evaluator, n_trials=4)).run(exists=False)
    failed = [trial for trial in study.record().trials if trial.state == "failed"]
    assert [trial.number for trial in failed] == [1]
    assert "is_satisfied raised LookupError: no table for" in failed[0].error


class Falling(Wrapped):
    """Disagreement, which should fall."""

    def __init__(self, inner):
        super().__init__(inner, lambda original, new: new - original < 0.1)
        self.eval_model = lambda *arguments: 1.0 - inner.eval_model(*arguments)


def test_metrics_that_should_fall_give_the_same_study(task):
    rising = StudyRun(replace(task, n_trials=8)).run(exists=False).record()
    other = replace(task, evaluator=Falling(task.evaluator), out=task.out / "f", storage=f"sqlite:///{task.out}/f.db")
    falling = StudyRun(replace(other, n_trials=8)).run(exists=False).record()
    assert [trial.points for trial in falling.trials] == [trial.points for trial in rising.trials]


def test_a_class_typed_at_a_prompt_has_a_name_and_a_fingerprint(monkeypatch):
    """Asked for its source, Python raises OSError, not TypeError as for a built-in class."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    typed = type("Typed", (), {"__module__": "__main__", "evaluate_batch_num": 3})()
    assert evaluator_name(typed) == "__main__.Typed"
    assert len(evaluator_fingerprint(typed)) == 64


def test_an_interrupt_while_a_compiled_module_is_loaded_is_one(tmp_path):
    (tmp_path / "weird.py").write_text(
        WEIRD.replace("self.calls += 1", 'raise ImportError("initialization failed") from KeyboardInterrupt()')
    )
    with pytest.raises(KeyboardInterrupt):
        score(load_evaluator("weird.py:Weird", tmp_path, 3), PAIR)
