"""What Optuna could not replay is refused with the journal's line; what it wrote itself passes."""

import json

import optuna
import pytest

from autonuq.errors import StudyError
from autonuq.storage.journal_entries import check_entry
from autonuq.storage.open import open_storage


@pytest.fixture
def journal(tmp_path):
    """Write a journal with every operation that Optuna has, and return its path."""
    study = open_storage(f"journal://{tmp_path}/j").create("net")
    study.set_user_attr("a", {"b": [1, None]})
    study.enqueue_trial({"x": 1.0})
    study.add_trial(optuna.trial.create_trial(value=float("inf"), intermediate_values={1: 2.0}))

    def objective(trial):
        trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("y", ["a", "b"])
        trial.report(1.0, step=3)
        trial.set_user_attr("k", "v")
        trial.set_constraint("c", -1.0)
        return 1.0

    study.optimize(objective, n_trials=2)
    open_storage(f"journal://{tmp_path}/j").create("gone")
    optuna.delete_study(study_name="gone", storage=study._storage)
    return tmp_path / "j"


def test_what_optuna_writes_passes(journal):
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {entry["op_code"] for entry in entries} >= {0, 1, 2, 4, 5, 6, 7, 8, 9}
    for entry in entries:
        check_entry(entry)
        check_entry({**entry, "of a later version": 1})


VALUES = [None, True, -1, 10**400, 1.5, float("nan"), "", "x", [], [[]], {}, {"a": {}}]


def test_any_value_anywhere_is_refused_or_read(journal):
    """Never an exception of another kind: neither by the check nor by the replay behind it."""
    lines = journal.read_text().splitlines()
    refused = 0
    for number, line in enumerate(lines):
        entry = json.loads(line)
        for key in entry:
            for value in VALUES:
                changed = json.dumps({**entry, key: value})
                journal.write_text("\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n")
                try:
                    storage = open_storage(f"journal://{journal}")
                    if "net" in storage.names():
                        storage.load("net").get_trials()
                except StudyError as error:
                    refused += 1
                    assert f"line {number + 1} of the journal is damaged" in str(error)
    assert refused > len(lines)
