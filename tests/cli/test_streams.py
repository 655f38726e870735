"""Closed, full and broken streams cost no work, hide no failure, and keep nobody waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autonuq.streams import Forgiving, forgiving_streams

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full and a shell")


def call(folder, arguments, redirections):
    command = f"{sys.executable} -c 'from autonuq.cli import main; main()' {arguments} {redirections}; echo $? > code"
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, timeout=120, capture_output=True)
    return int((folder / "code").read_text())


@pytest.mark.parametrize(
    "redirections, code",
    [
        (">/dev/full", 6),
        pytest.param("2>&-", 0, marks=pytest.mark.slow),
        pytest.param(">&- 2>&- <&-", 0, marks=pytest.mark.slow),
    ],
)
def test_a_study_ends_with_its_files(tiny_study, redirections, code):
    assert call(tiny_study.parent, "tune study.toml", redirections) == code
    written = {path.name for path in (tiny_study.parent / "out/tiny").iterdir()}
    assert {"report.html", "tiny.nuq", "tiny_deploy_model.prototxt"} <= written


@pytest.mark.parametrize(
    "arguments, redirections, code",
    [
        ("inspect tiny.prototxt tiny.caffemodel --json", ">/dev/full", 6),
        ("inspect tiny.prototxt tiny.caffemodel --json", ">&-", 0),
        ("inspect tiny.prototxt tiny.caffemodel --json", "2>&- <&-", 0),
        ("inspect nothing.prototxt tiny.caffemodel", "2>/dev/full", 3),
        ("inspect nothing.prototxt tiny.caffemodel", "2>&-", 3),
    ],
)
def test_codes(tiny, arguments, redirections, code):
    assert call(tiny, arguments, redirections) == code


def test_a_reader_that_leaves(tiny):
    command = [sys.executable, "-c", "from autonuq.cli import main; main()", "inspect", "tiny.prototxt"]
    process = subprocess.Popen(
        [*command, "tiny.caffemodel"], cwd=tiny, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_the_number_of_a_closed_stream_is_not_given_to_a_file(tmp_path):
    """Else what a library has to say would be written into it."""
    script = (
        "import sys; from autonuq.streams import forgiving_streams\n"
        "with forgiving_streams():\n"
        "    print(open(sys.argv[1], 'w').fileno(), file=open(sys.argv[2], 'w'))"
    )
    command = f'{sys.executable} -c "{script}" {tmp_path}/a {tmp_path}/b <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert int((tmp_path / "b").read_text()) > 2


def test_an_error_is_remembered_and_what_follows_is_lost():
    with Path("/dev/full").open("w", buffering=1) as full:
        stream = Forgiving(full)
        for _ in range(2):
            stream.write("word\n")
        stream.flush()
        assert "No space" in str(stream.error)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        stream = Forgiving(pipe)
        stream.write("word\n")
        stream.flush()
        assert stream.error is None  # somebody has had enough


def test_streams_are_what_they_were_afterwards():
    before = sys.stdout, sys.stderr
    with forgiving_streams():
        assert isinstance(sys.stdout, Forgiving)
    assert (sys.stdout, sys.stderr) == before
