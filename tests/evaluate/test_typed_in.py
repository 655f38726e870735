"""Evaluators that no file holds: what their fingerprint tells, and that they can be sent."""

import linecache
import pickle
import subprocess
import sys

import pytest

from autonuq.evaluate.evaluator import check_evaluator, evaluator_fingerprint, evaluator_name
from autonuq.evaluate.sending import dumps_by_value
from autonuq.evaluate.typed_in import source_file, typed_code

TEXT = '''
import functools
import math

import autonuq as nuq

FLAG = False
calls = 0


def helper(x):
    return [x * math.pi for _ in range(2)][0]


def limited(limit):
    def judge(self, original, new):
        return original - new < limit

    return judge


@functools.lru_cache(maxsize=3)
def kept(x):
    return x + 1


class Base(nuq.Evaluator):
    evaluate_batch_num = 3


class Typed(Base):
    """Scores nothing."""

    count = 0
    limit = 0.25

    def eval_model(self, model_file, weights_file, batch_num, *, word="word"):
        global calls
        calls += 1
        Typed.count += 1
        return kept(helper(0.0)) + helper(1.0) if model_file in {"x", "y", "z"} else 0.5

    is_satisfied = limited(0.1)

    @functools.cached_property
    def data(self):
        return (lambda q: q + 1)(2)

    @staticmethod
    def load(path):
        return path

    @property
    def shape(self):
        return 1, 2
'''
CHANGES = {
    "a number in a method": ("0.5", "0.6"),
    "a word in a set": ('"y"', '"v"'),
    "a default": ('word="word"', 'word="other"'),
    "a function that it names": ("x * math.pi", "x / math.pi"),
    "what a function encloses": ("limited(0.1)", "limited(0.2)"),
    "a function behind a cache": ("x + 1", "x + 2"),
    "a lambda": ("q + 1", "q + 2"),
    "a static method": ("return path", "return path.strip()"),
    "a property": ("return 1, 2", "return 1, 3"),
    "a number of the class": ("limit = 0.25", "limit = 0.5"),
    "its base": ("evaluate_batch_num = 3", "evaluate_batch_num = 3\n    more = 1"),
    "another name in a call": ("path", "place"),
}
SAME = {"a flag of the notebook": ("FLAG = False", "FLAG = True"), "a counter": ("calls = 0", "calls = 7")}


def executed(text):
    """Make the evaluator as `exec` does: nobody has its text."""
    space = {}
    exec(text, space)
    return space["Typed"]()


def in_a_cell(text, number=[0]):  # noqa: B006
    """Make the evaluator as IPython does: the text is in `linecache`, under a name that changes with the process."""
    number[0] += 1
    name, space = f"/nowhere/ipykernel_{number[0]}/{hash(text)}.py", {"__name__": "__main__"}
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), space)
    return space["Typed"]()


@pytest.fixture(autouse=True)
def prompt(monkeypatch):
    """Let `__main__` come from no file, as in a notebook and at a prompt."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)


WAYS = pytest.mark.parametrize("make", [executed, in_a_cell])


@WAYS
def test_the_same_text_is_the_same_evaluator(make):
    one, other = make(TEXT), make("\n\n# something above\n" + TEXT)
    assert source_file(type(one)) is None
    check_evaluator(one)
    assert evaluator_fingerprint(one) == evaluator_fingerprint(other)
    assert evaluator_name(one).endswith(".Typed")


@WAYS
def test_using_it_does_not_change_it(make):
    evaluator = make(TEXT)
    before = evaluator_fingerprint(evaluator)
    assert evaluator.eval_model("x", "w", 1) > 4
    assert evaluator.data == 3
    assert evaluator_fingerprint(evaluator) == before


@WAYS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(make, change):
    assert change[0] in TEXT
    assert evaluator_fingerprint(make(TEXT)) != evaluator_fingerprint(make(TEXT.replace(*change)))


@WAYS
@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_values_that_a_notebook_changes_between_two_runs_do_not_count(make, change):
    assert change[0] in TEXT
    assert evaluator_fingerprint(make(TEXT)) == evaluator_fingerprint(make(TEXT.replace(*change)))


def test_a_method_that_was_replaced_is_seen():
    evaluator = in_a_cell(TEXT)
    before = evaluator_fingerprint(evaluator)
    type(evaluator).is_satisfied = lambda self, original, new: True
    assert evaluator_fingerprint(evaluator) != before


def test_bytecode_is_the_same_in_another_process_and_with_another_hash_seed():
    code = (
        f"from autonuq.evaluate.typed_in import typed_code\nspace = {{}}\nexec({TEXT!r}, space)\n"
        "print(typed_code(space['Typed']))"
    )
    command = [sys.executable, "-c", code]
    found = {
        subprocess.run(command, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}, capture_output=True)
        .stdout.decode()
        .strip()
        for seed in "01"
    }
    assert found == {typed_code(type(executed(TEXT)))}


def test_a_class_of_a_file_is_that_file(tiny):
    from autonuq.evaluate.evaluator import load_evaluator

    evaluator = load_evaluator("evaluate.py:Agreement", tiny, 8)
    assert source_file(type(evaluator)) == tiny / "evaluate.py"
    space = {"__name__": type(evaluator).__module__}
    exec(TEXT, space)
    assert source_file(space["Typed"]) is None, "executed where a file's classes are"


@WAYS
def test_it_can_be_sent(make):
    sent = pickle.loads(dumps_by_value(make(TEXT)))
    assert sent.eval_model("x", "w", 1) > 4
    assert sent.data == 3
    assert sent.eval_model("none", "w", 1) == 0.5
    assert sent.is_satisfied(1.0, 0.95)
    assert not sent.is_satisfied(1.0, 0.85)
