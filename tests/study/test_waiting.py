"""`work --wait`: a worker that is started before its study, its storage's file or its server are there."""

import subprocess
import sys

import pytest
import typer
from servers import free_port

from autonuq.cli.console import read_duration
from autonuq.study.locate import load_study

CLI = [sys.executable, "-c", "from autonuq.cli import main; main()"]


def start(study, *arguments):
    command = [*CLI, arguments[0], str(study), *arguments[1:]]
    return subprocess.Popen(command, cwd=study.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "storage_url",
    ["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)],
    indirect=True,
)
def test_a_worker_may_be_there_before_its_study(tiny_study, storage_url):
    study = f"waited-{tiny_study.parent.name}"
    tiny_study.write_text(tiny_study.read_text().replace('name = "tiny"', f'name = "{study}"'))
    worker = start(tiny_study, "work", "--storage", storage_url, "--wait", "2m")
    line = worker.stderr.readline()
    assert line.startswith("waiting 0/1 not found"), line + worker.stderr.read()
    first = start(tiny_study, "tune", "--storage", storage_url)
    messages = [process.communicate(timeout=300)[1] for process in (first, worker)]
    assert worker.returncode == 0, messages[1]
    assert first.returncode in (0, 8, 9), messages[0]
    assert load_study(study, storage_url).record().counts.finished == 8


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("journal:///tmp/is-not/there", "not found: there is no /tmp/is-not/there"),
        ("sqlite:////tmp/is-not/there.db", "not found: there is no /tmp/is-not/there.db"),
        ("postgresql://me:secret@127.0.0.1:{port}/x", "refused"),
    ],
)
def test_waiting_in_vain(run, tiny_study, storage, words):
    done = run("work", tiny_study, "--storage", storage.format(port=free_port()), "--wait", "3s")
    assert done.returncode == 6
    first, last = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert first.startswith("waiting 0/1 ")
    assert words in first
    assert "waited 3 s in vain: " in last
    assert words in last
    assert "secret" not in done.stderr


def test_waiting_for_a_study_in_a_storage_that_is_there(run, tiny_study):
    run("tune", tiny_study, "--trials", "1", "--storage", f"sqlite:///{tiny_study.parent}/s.db")
    tiny_study.write_text(tiny_study.read_text().replace('name = "tiny"', 'name = "other"'))
    done = run("work", tiny_study, "--storage", f"sqlite:///{tiny_study.parent}/s.db", "--wait", "0")
    assert done.returncode == 6
    assert "waited 0 s in vain: not found in sqlite:///" in done.stderr
    assert "it holds tiny" in done.stderr


def test_what_cannot_come_is_not_waited_for(run, tiny_study):
    database = tiny_study.parent / "s.db"
    database.write_bytes(b"no database at all, however long one waits" * 100)
    done = run("work", tiny_study, "--storage", f"sqlite:///{database}", "--wait", "1h")
    assert done.returncode == 6
    assert "file is not a database" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("1h30m", 5400), ("1d", 86400), ("0", 0)],
)
def test_durations(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10 minutes", "-5", "inf", "nan", "1.2.3s", "10x", "5m-1s"])
def test_what_is_no_duration(text):
    with pytest.raises(typer.BadParameter, match="such as 90s, 10m, 2h"):
        read_duration(text)
