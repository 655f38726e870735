"""A prepared study's attributes are sealed: what is not what was stored is an error that names the attribute."""

import json
from dataclasses import replace

import pytest

from autonuq.errors import StudyError
from autonuq.records import CONFIDENCE, LAYERS, ORIGINAL_METRIC, SEAL, TARGET_TRIALS, TASK, UNIT
from autonuq.study.attributes import StudyAttributes
from autonuq.study.locate import load_stored_task
from autonuq.study.run import StudyRun

VALUES = [None, True, -1, 0.25, 10**400, "", "x", [], [1, 2], {}, {"name": 3}]


@pytest.fixture
def task(task):
    return replace(task, storage=f"journal://{task.out}/study.journal")


@pytest.fixture
def study(task):
    return StudyRun(task).run(exists=False)


@pytest.mark.parametrize("key", [ORIGINAL_METRIC, CONFIDENCE, UNIT, LAYERS, f"{LAYERS}:0"])
def test_another_value_is_an_error(study, key):
    for value in VALUES:
        study.optuna.set_user_attr(key, value)
        with pytest.raises(StudyError, match=f"study 'tiny': its attribute '{key.removesuffix(':0')}' .* is damaged"):
            study.record()


def test_every_attribute_may_hold_anything(study, task):
    """Also those that are not sealed, and all of them without a seal: never an exception of another kind."""
    good = dict(study.optuna.user_attrs)
    for key in good:
        for value in (None, 10**400, "x", [1, 2]):
            study.optuna.set_user_attr(SEAL, {})
            study.optuna.set_user_attr(key, value)
            for use in (study.record, lambda: load_stored_task(task.name, task.storage, evaluator=task.evaluator)):
                try:
                    use()
                except StudyError as error:
                    assert len(str(error)) < 600
            study.optuna.set_user_attr(key, good[key])


def test_a_seal_is_given_once(study, task):
    seal = study.optuna.user_attrs[SEAL]
    assert {ORIGINAL_METRIC, LAYERS, CONFIDENCE} <= seal.keys() and TASK not in seal and TARGET_TRIALS not in seal
    again = StudyRun(replace(task, n_trials=4)).run(exists=True)
    assert again.optuna.user_attrs[SEAL] == seal


def test_a_study_without_a_seal_gets_one_when_it_goes_on(study, task):
    seal = study.optuna.user_attrs[SEAL]
    study.optuna.set_user_attr(SEAL, {})
    assert not StudyAttributes(study.optuna).is_sealed
    assert StudyRun(replace(task, n_trials=4)).run(exists=True).optuna.user_attrs[SEAL] == seal


def test_no_json_in_a_long_attribute(study):
    study.optuna.set_user_attr(SEAL, {})
    for text in ("{", "[" * 50_000, json.dumps([{}])):
        study.optuna.set_user_attr(f"{LAYERS}:0", text)
        with pytest.raises(StudyError, match="'autonuq:layers' in the storage is damaged"):
            study.record()
