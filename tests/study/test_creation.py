"""A study is made by one step, or finished by whoever comes next; of several who make it, one does."""

import threading
from collections import Counter
from dataclasses import replace

import optuna
import pytest

from autonuq.amct.auto_nuq import _goes_on
from autonuq.errors import StudyError, StudyExists
from autonuq.records import CHIP, CODEC, CONFIDENCE, FINGERPRINT, FLOAT_LAYERS, PROVENANCE, TARGET_TRIALS, TASK
from autonuq.storage.journal_file import FileLock
from autonuq.storage.open import open_storage
from autonuq.study import creation
from autonuq.study.creation import continue_study, is_begun, start_study
from autonuq.study.locate import load_study
from autonuq.study.run import StudyRun
from autonuq.study.task import make_folders

STORAGES = [
    "journal",
    "sqlite",
    "redis",
    "grpc",
    pytest.param("postgresql", marks=pytest.mark.postgres),
    pytest.param("mysql", marks=pytest.mark.postgres),
]
DIGESTS = {"prototxt": "0" * 64}


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(creation, "MAKING_S", 0.5)


def describe(study):
    study.set_user_attr(CODEC, "entropy")


def half_made(storage, name):
    def die(_):
        raise Killed

    with pytest.raises(Killed):
        start_study(storage, name, die, DIGESTS)


@pytest.mark.slow
@pytest.mark.parametrize("storage_url", STORAGES, indirect=True)
@pytest.mark.parametrize("go_on", [start_study, continue_study])
def test_a_half_made_study_is_finished(storage_url, go_on, tmp_path):
    name = f"{tmp_path.name}-{go_on.__name__}"
    half_made(open_storage(storage_url), name)
    study = go_on(open_storage(storage_url), name, describe, DIGESTS)
    assert study.user_attrs[FINGERPRINT] == DIGESTS
    assert study.user_attrs[CODEC] == "entropy"
    with pytest.raises(StudyExists, match="exists already"):
        start_study(open_storage(storage_url), name, describe, DIGESTS)


@pytest.mark.slow
@pytest.mark.parametrize("storage_url", STORAGES, indirect=True)
@pytest.mark.parametrize("is_half_made", [False, True], ids=["new", "half made"])
def test_of_several_who_start_a_study_one_wins(storage_url, is_half_made, tmp_path):
    storages = [open_storage(storage_url) for _ in range(4)]
    if is_half_made:
        half_made(storages[0], tmp_path.name)
    barrier, found = threading.Barrier(len(storages)), Counter()

    def start(storage):
        barrier.wait()
        try:
            start_study(storage, tmp_path.name, describe, DIGESTS)
            found["won"] += 1
        except StudyExists:
            found["exists"] += 1

    threads = [threading.Thread(target=start, args=(storage,)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"won": 1, "exists": 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda url: optuna.create_study(storage=url, study_name="net", direction="minimize"),
        lambda url: optuna.create_study(storage=url, study_name="net", directions=["maximize", "minimize"]),
        lambda url: optuna.create_study(storage=url, study_name="net", direction="maximize").ask(),
    ],
    ids=["minimizes", "two objectives", "has a trial"],
)
def test_what_somebody_else_made_is_left_alone(make, tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    make(url)
    with pytest.raises(StudyExists, match="exists already"):
        start_study(open_storage(url), "net", describe, DIGESTS)
    with pytest.raises(StudyError, match="was not made by autonuq; choose another name or storage"):
        continue_study(open_storage(url), "net", describe, DIGESTS)
    assert not open_storage(url).load("net").user_attrs


def killed_at(number, monkeypatch):
    """Die in place of writing an attribute of a study, the one with a number."""
    write, calls = optuna.Study.set_user_attr, iter(range(1000))

    def set_user_attr(study, key, value):
        if next(calls) == number:
            raise Killed
        write(study, key, value)

    monkeypatch.setattr(optuna.Study, "set_user_attr", set_user_attr)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("exists", [True, False], ids=["resume", "tune"])
def test_killed_at_each_attribute(task, number, exists, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_at(number, patched)
        StudyRun(task)._opened(exists=False)
    study = load_study(task.name, task.storage)
    assert not study.best  # whoever looks at it meanwhile sees a study without trials
    assert StudyRun(task).resumability().changed == ()
    found = StudyRun(replace(task, n_trials=7))._opened(exists=exists)[1].user_attrs
    assert {PROVENANCE, CODEC, CHIP, CONFIDENCE, FLOAT_LAYERS, TASK, FINGERPRINT} <= found.keys()
    assert found[TARGET_TRIALS] == 7


def test_a_call_of_amct_goes_on_with_a_half_made_study(task):
    task = replace(task, storage=f"journal://{task.out}/study.journal")
    task.out.mkdir()
    half_made(open_storage(task.storage), task.name)
    run = StudyRun(task)
    assert _goes_on(run)
    assert is_begun(run._opened(exists=True)[1])


def test_two_processes_do_not_prepare_in_one_folder(task):
    """Two calibrations would add their moments up."""
    make_folders(task)
    lock, told, waits = FileLock(task.out / ".preparation"), [], threading.Event()

    def tell(step):
        told.append(step.stage)
        if step.stage == "waiting":
            waits.set()

    with lock:
        thread = threading.Thread(target=StudyRun(task, tell).run, kwargs={"exists": False})
        thread.start()
        assert waits.wait(60)
        assert "calibration" not in told
    thread.join()
    assert "calibration" in told
