"""From Python a study is one call, by its study file, by the folder that it left, or by its name and storage."""

import inspect
import shutil

import pytest

import autonuq as nuq
from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.records import FINGERPRINT, TASK
from autonuq.storage.open import open_storage
from autonuq.study.run import Resumability, StudyRun
from autonuq.study.study_file import load_task


@pytest.fixture
def tuned(tiny_study):
    """Run two trials of a study file and return (file, folder, storage)."""
    folder = tiny_study.parent / "out/tiny"
    study = nuq.tune_file(tiny_study, trials=2)
    assert study.best is None or (folder / "tiny.nuq").exists()
    return tiny_study, folder, f"journal://{folder}/study.journal"


def count(study):
    return study.record().counts.complete


def test_options_are_spelled_out():
    for function in (nuq.tune, nuq.tune_file, nuq.resume, nuq.load_study):
        parameters = inspect.signature(function).parameters.values()
        assert all(one.kind is not one.VAR_KEYWORD and one.annotation is not one.empty for one in parameters)


def test_load_study(tuned, monkeypatch):
    file, folder, storage = tuned
    monkeypatch.chdir(folder.parent)
    for place in ((file,), (str(file),), (folder,), ("tiny",), ("tiny", storage)):
        study = nuq.load_study(*place)
        assert (study.name, count(study)) == ("tiny", 2)


def test_load_study_with_a_folder_of_its_own(tiny_study, tmp_path):
    nuq.tune_file(tiny_study, trials=1, out=tmp_path / "mine")
    assert count(nuq.load_study(tiny_study, out=tmp_path / "mine")) == 1
    with pytest.raises(StudyError, match="start it with 'autonuq tune'"):
        nuq.load_study(tiny_study)


def test_resume(tuned):
    file, folder, storage = tuned
    for trials, place in ((3, (file,)), (4, (folder,)), (5, ("tiny", storage))):
        assert count(nuq.resume(*place, trials=trials)) == trials
    assert count(nuq.resume(file)) == 8  # as the file says
    assert {path.name for path in folder.parent.iterdir()} == {"tiny"}


def test_resume_what_python_started(tiny):
    evaluator = load_evaluator("evaluate.py:Agreement", tiny, 8)
    options = {"codec": "fixed", "seed": 3, "batch_num": 2}
    nuq.tune(tiny / "tiny.prototxt", tiny / "tiny.caffemodel", evaluator, out=tiny / "own", n_trials=2, **options)
    with pytest.raises(StudyError, match="its evaluator must be given"):
        nuq.resume(tiny / "own", trials=4)
    study = nuq.resume(tiny / "own", evaluator=evaluator, trials=4)
    assert (count(study), study.record().codec, study.record().target_trials) == (4, "fixed", 4)
    storage = f"journal://{tiny}/own/study.journal"
    assert count(nuq.resume("own", storage, evaluator=evaluator, trials=5)) == 5
    with pytest.raises(StudyError, match="was started with another evaluator"):
        nuq.resume(tiny / "own", evaluator=load_evaluator("evaluate.py:Agreement", tiny, 7))


def test_a_folder_that_was_moved_brings_its_network(tiny):
    evaluator = load_evaluator("evaluate.py:Agreement", tiny, 8)
    nuq.tune(tiny / "tiny.prototxt", tiny / "tiny.caffemodel", evaluator, out=tiny / "own", n_trials=2)
    (tiny / "own").rename(tiny / "moved")
    (tiny / "tiny.caffemodel").unlink()
    assert count(nuq.resume(tiny / "moved", evaluator=evaluator, trials=3)) == 3
    assert not (tiny / "own").exists()


def test_a_study_file_that_is_gone(tuned):
    file, folder, _ = tuned
    file.unlink()
    with pytest.raises(StudyError, match=r"its study file .*study\.toml is gone"):
        nuq.resume(folder)
    assert count(nuq.resume(folder, evaluator=load_evaluator("evaluate.py:Agreement", file.parent, 8), trials=3)) == 3


def test_mistakes(tuned, tmp_path):
    file, folder, storage = tuned
    with pytest.raises(StudyError, match="neither a study file nor the folder that a study left"):
        nuq.load_study("nothing")
    with pytest.raises(StudyError, match="there is no .*study.journal; where the storage is elsewhere"):
        nuq.load_study(tmp_path)
    with pytest.raises(StudyError, match="study 'other': not found in .*it holds tiny"):
        nuq.load_study("other", storage)
    with pytest.raises(StudyError, match="the number of trials must be positive. Got 0 instead"):
        nuq.resume(file, trials=0)
    with pytest.raises(StudyError, match="exists already"):
        nuq.tune_file(file)
    second = open_storage(storage).create("second")
    with pytest.raises(StudyError, match=r"holds 2 studies \(tiny, second\); give a name, and this storage"):
        nuq.load_study(folder)
    assert TASK not in second.user_attrs
    with pytest.raises(StudyError, match="was killed while it was made; start it again"):
        nuq.resume("second", storage)
    second.set_user_attr(FINGERPRINT, {})
    with pytest.raises(StudyError, match="did not store its task; give its study file"):
        nuq.resume("second", storage)
    shutil.rmtree(folder)
    with pytest.raises(StudyError, match="not found: there is no"):
        nuq.resume(file)
    assert not folder.exists()


def test_a_file_of_the_studys_name_is_not_taken_for_its_study_file(tuned, tmp_path, monkeypatch):
    file, _, storage = tuned
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("a file that has nothing to do with the study")
    assert count(nuq.load_study("tiny", storage)) == 2
    assert count(nuq.resume("tiny", storage, trials=3)) == 3
    assert StudyRun(load_task(file)).resumability() == Resumability(3, (), None)  # how AMCT's call finds what it left


def test_relative_paths_are_those_of_the_start(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    evaluator = load_evaluator("evaluate.py:Agreement", tiny, 8)
    places = {"out": "own", "storage": "journal://my.journal", "artifacts": "shared"}
    nuq.tune("tiny.prototxt", "tiny.caffemodel", evaluator, n_trials=1, **places)
    (tiny / "elsewhere").mkdir()
    monkeypatch.chdir(tiny / "elsewhere")
    assert count(nuq.resume("own", "journal://../my.journal", evaluator=evaluator, trials=2)) == 2
    assert not list((tiny / "elsewhere").iterdir())
