"""What whoever writes to the storage can do: say numbers, and nothing about files and code of this machine."""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import autonuq as nuq
from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.evaluate.sending import arrived_file
from autonuq.records import ARTIFACTS, PROVENANCE, TASK
from autonuq.report.page import build_page
from autonuq.storage.open import VARIABLE, open_storage
from autonuq.study.artifact_names import artifact_files
from autonuq.study.artifacts import Artifacts
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.locate import open_study
from autonuq.study.started import NAME
from autonuq.study.study_file import load_task

SECRET = "Pa55wOrd"
DIGEST = "0" * 64
NAMES = [
    "../victim/evaluate.py",
    "calibration/../../evaluate.py",
    "/etc/passwd",
    "C:/x",
    "calibration\\..\\..\\x",
    "model/model.prototxt\x00",
    "Model/model.prototxt",
    "model/evaluate.py",
    "calibration/points/index.py",
    "calibration/points/../index.npz",
    "calibration/points/0.npy/x",
    "calibration/points/-1.npy",
    "calibration/record.txt.inputs/x.npz",
    "sitecustomize.py",
    "",
]


@pytest.fixture
def tuned(tiny_study):
    """Run two trials of a study file and return (file, folder, storage)."""
    folder = tiny_study.parent / "out/tiny"
    nuq.tune_file(tiny_study, trials=2)
    return tiny_study, folder, f"journal://{folder}/study.journal"


@pytest.fixture
def victim(tiny_study):
    """Put a study file elsewhere whose evaluator tells when it is run; return the file."""
    folder = tiny_study.parent / "victim"
    folder.mkdir()
    own = (tiny_study.parent / "evaluate.py").read_text()
    (folder / "evaluate.py").write_text(f"from pathlib import Path\nPath(__file__).with_name('RAN').touch()\n{own}")
    text = tiny_study.read_text().replace('"tiny.', '"../tiny.').replace("[model]", 'out = "../out/tiny"\n[model]', 1)
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def rewritten(name, storage, **values):
    study = open_study(name, storage).optuna
    study.set_user_attr(TASK, {**study.user_attrs[TASK], **values})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_only_what_a_study_has_is_fetched(task, tmp_path, name):
    with pytest.raises(StudyError, match="names an artifact that no study has"):
        artifact_files(task, {"model/model.prototxt": DIGEST, name: DIGEST})


@pytest.mark.parametrize("digest", ["../" * 21 + "x", DIGEST.upper() + "A", "", 5, None, "g" * 64])
def test_a_digest_is_one(task, digest):
    with pytest.raises(StudyError, match="names an artifact"):
        artifact_files(task, {"model/model.prototxt": digest})


def test_all_that_is_published_is_known_and_a_name_outside_is_refused(tuned, tmp_path):
    file, folder, storage = tuned
    study = open_study("tiny", storage).optuna
    task = load_task(file, out=tmp_path / "elsewhere", storage=storage, artifacts=str(folder / "artifacts"))
    task.out.mkdir()
    assert set(artifact_files(task, StudyAttributes(study).long(ARTIFACTS, Mapping[str, str])).values())
    Artifacts(task.artifacts_location).fetch(task, study)
    before = sorted(tmp_path.rglob("*"))
    digests = StudyAttributes(study).long(ARTIFACTS, Mapping[str, str])
    store_long(study, ARTIFACTS, {**digests, "../evaluate.py": digests["model/model.prototxt"]})
    with pytest.raises(StudyError, match="would leave"):
        Artifacts(task.artifacts_location).fetch(task, study)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_folder_is_not_followed_out(task, tmp_path):
    task.out.mkdir()
    (tmp_path / "target").mkdir()
    (task.out / "model").symlink_to(tmp_path / "target", target_is_directory=True)
    with pytest.raises(StudyError, match="would leave"):
        artifact_files(task, {"model/model.prototxt": DIGEST})


def test_the_study_file_that_the_storage_names_is_not_run(tuned, victim):
    file, folder, storage = tuned
    rewritten("tiny", storage, study_file=str(victim))
    assert nuq.resume(folder, trials=3).record().counts.complete == 3  # by its own
    rewritten("tiny", storage, study_file=str(victim))
    assert nuq.resume("tiny", storage, trials=4).record().counts.complete == 4
    rewritten("tiny", storage, study_file=str(victim))
    (folder / NAME).unlink()
    with pytest.raises(StudyError, match="only its storage says that its study file is .*victim"):
        nuq.resume(folder, trials=5)
    with pytest.raises(StudyError, match="does not say so itself"):
        nuq.resume("tiny", storage, trials=5)
    assert not (victim.parent / "RAN").exists()
    assert nuq.resume(file, trials=5).record().counts.complete == 5


def test_the_folder_that_the_storage_names_is_not_written_to(tuned, tmp_path):
    file, _, storage = tuned
    evaluator = load_evaluator("evaluate.py:Agreement", file.parent, 8)
    for place in (tmp_path / "other", "relative", "../../x", "/"):
        rewritten("tiny", storage, out=str(place))
        with pytest.raises(StudyError, match="does not say so itself; name the folder"):
            nuq.resume("tiny", storage, evaluator=evaluator, trials=3)
    assert not (tmp_path / "other").exists()


def test_files_and_artifacts_that_the_storage_names_are_not_used(tuned, tmp_path):
    file, folder, storage = tuned
    evaluator = load_evaluator("evaluate.py:Agreement", file.parent, 8)
    rewritten("tiny", storage, prototxt="/etc/passwd", weights="/etc/passwd", artifacts=str(tmp_path / "theirs"))
    assert nuq.resume(folder, evaluator=evaluator, trials=3).record().counts.complete == 3
    rewritten("tiny", storage, prototxt="/etc/passwd", weights="/etc/passwd", artifacts=str(tmp_path / "theirs"))
    (folder / NAME).unlink()  # of an earlier version: the network is among its own artifacts
    assert nuq.resume(folder, evaluator=evaluator, trials=4).record().counts.complete == 4
    assert not (tmp_path / "theirs").exists()


def test_a_study_of_a_name_that_leaves_the_folder_writes_within_it(tmp_path, task):
    from dataclasses import replace

    evil = replace(task, name="../../evil")
    assert evil.log_file.resolve().parent == Path(evil.prefix).resolve().parent == task.out.resolve()


def test_redis_snapshots_are_not_unpickled(monkeypatch):
    pytest.importorskip("redis")
    from optuna.storages import JournalStorage

    from autonuq.storage.journal_redis import JournalRedis

    class Server:
        def get(self, key):
            return pickle.dumps(print) if "snapshot" in key else None

    monkeypatch.setattr("redis.Redis.from_url", lambda url: Server())
    monkeypatch.setattr("pickle.loads", lambda data: pytest.fail("it was unpickled"))
    assert JournalStorage(JournalRedis("redis://server/0")).get_all_studies() == []


@pytest.mark.parametrize("name", ["../x.py", "/x.py", "a/../../x.py", "C:\\x.py"])
def test_a_module_that_is_sent_stays_in_its_folder(tmp_path, name):
    with pytest.raises(EvaluatorError, match="is no file of its folder"):
        arrived_file(tmp_path / "evaluate.py", {"evaluate.py": b"", name: b""})


@pytest.mark.parametrize("name", ["a/b", "../../esc", "/abs", "nul", "x\u202ey", "dot.", "y" * 300], ids=ascii)
def test_a_new_study_has_a_name_that_files_can_have(tiny_study, tmp_path, name):
    text = tiny_study.read_text().replace('"tiny"', json.dumps(name), 1)
    tiny_study.write_text(text)
    with pytest.raises(StudyError, match="its name makes no folder: a name that becomes a file has 1 to 200 bytes"):
        load_task(tiny_study)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StudyError, match="its name cannot be used: a name that becomes a file"):
        nuq.tune_file(tiny_study, out=tmp_path / "given")
    assert sorted(tmp_path.rglob("*")) == before
    url = f"sqlite:///{tmp_path}/old.db"
    open_storage(url).create(name)  # an earlier version did
    assert nuq.load_study(tiny_study, url, out=tmp_path / "given").name == name


def test_no_password_is_stored_or_shown(tiny_study, tmp_path, monkeypatch):
    url = f"postgresql://me:{SECRET}@127.0.0.1:1/studies"
    text = tiny_study.read_text().replace("[search]", f'[search]\nstorage = "{url}"  # PGPASSWORD={SECRET}', 1)
    tiny_study.write_text(text)
    assert load_task(tiny_study).storage == url
    monkeypatch.setenv(VARIABLE, f"journal://{tmp_path}/own.journal")  # overrides the file's, as --storage does
    arguments = ["tune", str(tiny_study), "--trials", "1", "--artifacts", f"s3x://key:{SECRET}@x"]
    code = "from autonuq.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert SECRET not in ran.stdout + ran.stderr
    study = nuq.tune_file(tiny_study, trials=1, out=tmp_path / "again", storage=f"journal://{tmp_path}/again.journal")
    assert "postgresql://me:***@127.0.0.1:1/studies" in study.record().provenance["study file"]
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and path != tiny_study):
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_report_of_an_old_study_hides_what_that_stored(tuned):
    _, _, storage = tuned
    study = open_study("tiny", storage)
    url = f"postgresql://me:{SECRET}@server/db"
    study.optuna.set_user_attr(
        PROVENANCE, {"command": f"autonuq tune x --storage '{url}'", "study file": f'storage = "{url}"'}
    )
    page = build_page(study.record())
    assert SECRET not in page
    assert "postgresql://me:***@server/db" in page


def test_a_masked_url_is_not_tried():
    with pytest.raises(StudyError, match=f"has no password, only its mask; give the URL in {VARIABLE}"):
        open_storage("postgresql://me:***@server/db")
