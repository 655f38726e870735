"""Storages by URL: the default, what is damaged, what is missing, what is lost for a while."""

import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage
from sqlalchemy.exc import InternalError, OperationalError

from autonuq.errors import StudyError
from autonuq.storage import open as opening
from autonuq.storage import retries
from autonuq.storage.exclusion import no_exclusion
from autonuq.storage.journal_file import FileLock, JournalFile
from autonuq.storage.open import default_url, open_storage
from autonuq.storage.retries import patient
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.locate import load_study


def test_default_is_a_journal(tmp_path):
    assert default_url(tmp_path) == f"journal://{tmp_path}/study.journal"


def test_a_study_of_an_earlier_version_is_found(tmp_path):
    """Its default was SQLite; it goes on there."""
    open_storage(f"sqlite:///{tmp_path}/study.db").create("net")
    assert default_url(tmp_path) == f"sqlite:///{tmp_path}/study.db"
    assert load_study("net", default_url(tmp_path)).name == "net"


@pytest.mark.parametrize("scheme", ["journal://", "sqlite:///"])
def test_looking_for_a_study_makes_no_file(tmp_path, scheme):
    with pytest.raises(StudyError, match="there is no .*start it with 'autonuq tune'"):
        load_study("net", f"{scheme}{tmp_path}/none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_journal_cut_in_mid_line_is_mended_by_the_next_writer(tmp_path, cut):
    """Optuna glues the next line to what a killed writer left of one; then no reader can read the study any more."""
    url, path = f"journal://{tmp_path}/j", tmp_path / "j"
    open_storage(url).create("first").set_user_attr("key", "v" * 100)
    path.write_bytes(path.read_bytes()[:-cut])
    reader = open_storage(url)  # opened while the line is cut
    open_storage(url).create("second")
    assert [study.study_name for study in reader.backend.get_all_studies()] == ["first", "second"]
    assert load_study("first", url).optuna.user_attrs == {}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_journal_damaged_in_the_middle_names_the_line(tmp_path):
    url, path = f"journal://{tmp_path}/j", tmp_path / "j"
    for name in ("a", "b", "c"):
        open_storage(url).create(name)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20] + lines[2])
    open_storage(url)  # the last line may be one that is being written
    path.write_bytes(path.read_bytes() + lines[2])
    with pytest.raises(StudyError, match="j: line 2 of the journal is damaged"):
        open_storage(url)


def test_a_writer_that_is_killed_leaves_no_lock(tmp_path):
    """Optuna's own lock would keep everybody out for 30 seconds."""
    killed = (
        "import os, sys, pathlib; from autonuq.storage.journal_file import JournalFile;"
        "JournalFile(pathlib.Path(sys.argv[1]))._lock.acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "j")], check=False).returncode == -9
    journal = JournalFile(tmp_path / "j")
    writer = threading.Thread(target=journal.append_logs, args=([{"op_code": 10}],), daemon=True)
    writer.start()
    writer.join(10)
    assert not writer.is_alive()


def test_file_lock_excludes_threads(tmp_path):
    inside, most = 0, 0

    def enter():
        nonlocal inside, most
        for _ in range(50):
            with FileLock(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_file_lock_is_the_one_that_earlier_versions_took(tmp_path):
    """Workers of an earlier version may run beside those of this one."""
    fcntl = pytest.importorskip("fcntl")
    entered = threading.Event()

    def enter():
        with FileLock(tmp_path / "lock"):
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    with (tmp_path / "lock").open("w") as earlier:
        fcntl.flock(earlier, fcntl.LOCK_EX)
        waiting.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    waiting.join()
    with (tmp_path / "lock").open() as earlier, FileLock(tmp_path / "lock"), pytest.raises(BlockingIOError):
        fcntl.flock(earlier, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_sqlite_writes_ahead(tmp_path):
    open_storage(f"sqlite:///{tmp_path}/s.db").create("net")
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/s.db")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://me:secret@db/x", "psycopg", "postgres"),
        ("mysql://me:secret@db/x", "pymysql", "mysql"),
        ("redis://:secret@db/0", "redis", "redis"),
        ("grpc://db:1", "grpc", "grpc"),
    ],
)
def test_a_missing_driver_names_the_extra(monkeypatch, url, module, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StudyError, match=rf"needs a driver.*pip install 'autonuq\[{extra}\]'") as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_is_an_error_at_once():
    pytest.importorskip("psycopg")
    with pytest.raises(StudyError, match="postgresql://me:\\*\\*\\*@127.0.0.1:1/x cannot be used: .*refused") as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)


def test_a_worker_waits_for_a_server_that_is_being_restarted(slept, monkeypatch):
    answers = iter([ConnectionRefusedError("refused")] * 3)

    def opened(url):
        for error in answers:
            raise error
        return InMemoryStorage(), no_exclusion

    monkeypatch.setattr(opening, "_OPEN", {"db": opened})
    assert open_storage("db://x", patience_s=60).names() == []
    assert len(slept) == 3


class Flaky(InMemoryStorage):
    """Loses the connection a number of times."""

    losses = 0
    error: Exception = OperationalError("SELECT", {}, ConnectionRefusedError("the server is gone"))

    def get_all_studies(self):
        if self.losses:
            self.losses -= 1
            raise self.error
        return super().get_all_studies()


@pytest.fixture
def slept(monkeypatch):
    """Let sleeping take no time, and return how long was slept."""
    pauses = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    monkeypatch.setattr(retries.time, "monotonic", lambda: sum(pauses))
    return pauses


def test_a_lost_connection_is_tried_again(slept):
    flaky = Flaky()
    flaky.losses = 10
    assert patient(flaky, "db://x").get_all_studies() == []
    assert len(slept) == 10


def test_patience_ends_after_the_stated_time(slept):
    flaky = Flaky()
    flaky.losses = 10**6
    with pytest.raises(StudyError, match="db://x has been out of reach for 60 s; go on with 'autonuq resume'"):
        patient(flaky, "db://x", patience_s=60).get_all_studies()
    assert 50 < sum(slept) <= 60


def test_what_is_no_lost_connection_is_not_tried_again(slept):
    flaky = Flaky()
    flaky.losses, flaky.error = 1, OSError(28, "No space left on device")
    with pytest.raises(StudyError, match="db://x failed; what it holds is not touched, .*No space left"):
        patient(flaky, "db://x").get_all_studies()
    with pytest.raises(KeyError):
        patient(flaky, "db://x").get_study_id_from_name("none")
    assert not slept


@pytest.mark.parametrize(("code", "is_lost"), [("25P03", True), (None, True), ("25P02", False)])
def test_a_session_that_the_server_ended_is_a_lost_connection(code, is_lost):
    """PostgreSQL's word for a transaction that was idle for too long; behind a pooler the driver says it garbled."""
    cause = Exception("terminating connection")
    cause.sqlstate = code
    assert retries.is_connection_lost(InternalError("COMMIT", {}, cause)) == is_lost


def test_every_operation_is_patient():
    made = patient(InMemoryStorage(), "db://x")
    public = {name for name in dir(BaseStorage) if not name.startswith("_")}
    assert all(name in vars(type(made)) for name in public)


def test_long_attributes_fit_into_mysql(tmp_path):
    """Its TEXT holds 65,535 bytes; the curves of fifty layers take more."""
    study = open_storage(f"journal://{tmp_path}/j").create("net")
    value = [{"name": "ä" * 10, "numbers": [1 / 3] * 1000} for _ in range(20)]
    store_long(study, "key", value)
    assert max(len(json.dumps(part).encode()) for part in study.user_attrs.values()) < 65_535
    assert len(study.user_attrs) > 3
    assert StudyAttributes(study).long("key", Any) == value
    study.set_user_attr("whole", value)  # as earlier versions did
    assert StudyAttributes(study).long("whole", Any) == value


@pytest.mark.parametrize("code, is_lost", [("53100", False), ("57P01", True), (1114, False), (2013, True)])
def test_a_full_server_is_no_lost_connection(code, is_lost):
    """Both are an OperationalError, but nobody is to wait two minutes for room."""
    cause = Exception(code, "could not extend file")
    if isinstance(code, str):
        cause.sqlstate = code
    assert retries.is_connection_lost(OperationalError("INSERT", {}, cause)) == is_lost


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal://"])
def test_a_storage_that_is_removed_is_missed_at_once(scheme, tmp_path):
    """SQLite would go on in the file that has no name any more, and say nothing."""
    storage = open_storage(f"{scheme}{tmp_path}/s")
    study = storage.create("net")
    for file in tmp_path.glob("s*"):
        file.unlink()
    with pytest.raises(StudyError, match="s was removed meanwhile, with all trials; restore a copy, or start"):
        study.set_user_attr("a", 1)
    assert not (tmp_path / "s").exists()


def test_errors_of_servers_are_mapped(slept):
    redis = pytest.importorskip("redis")
    flaky = Flaky()
    flaky.losses, flaky.error = 1, redis.exceptions.ResponseError("OOM command not allowed when used memory > max")
    with pytest.raises(StudyError, match="db://x failed; .*OOM command not allowed"):
        patient(flaky, "db://x").get_all_studies()


def test_a_journal_on_a_full_disk_is_named_and_goes_on(tmp_path, monkeypatch):
    url = f"journal://{tmp_path}/j"
    study = open_storage(url).create("net")
    before = (tmp_path / "j").read_bytes()

    def fail(_):
        (tmp_path / "j").write_bytes(before + b'{"op_code":')  # a part of the line found room
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        with pytest.raises(StudyError, match="j failed; what it holds .* make room there"):
            study.set_user_attr("a", 1)
    open_storage(url).load("net").set_user_attr("b", 2)
    assert open_storage(url).load("net").user_attrs == {"b": 2}


def test_the_lock_of_a_lost_server_is_an_error_of_ours(tmp_path):
    storage = open_storage(f"journal://{tmp_path}/j")
    (tmp_path / "j.claims").mkdir()
    with pytest.raises(StudyError, match="study 'net': storage journal://.*cannot be used"), storage.exclusive("net"):
        pass
