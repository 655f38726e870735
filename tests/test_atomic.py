"""Files are written whole or not at all, a full disk is named, and what killed processes leave behind goes."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autonuq import processes
from autonuq.atomic import (
    allocate,
    append_text,
    is_out_of_room,
    replace_file,
    replacing,
    say_system_error,
    temporary_folder,
    writing,
)
from autonuq.processes import is_left_behind, new_mark


def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "net.prototxt"
    replace_file(path, [b"old"])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as caught:
        replace_file(path, [b"new"])
    assert caught.value.filename == str(path) and is_out_of_room(caught.value)
    said = say_system_error(caught.value)
    assert said.startswith(f"{path}: cannot be written: No space left on device; make room there, then run this again")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, writing(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert caught.value.filename == str(tmp_path / "b")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_appending_to_a_full_disk():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        append_text(Path("/dev/full"), "line\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
def test_there_is_a_remedy(number):
    said = say_system_error(OSError(number, os.strerror(number), "x"))
    assert said.startswith("x: cannot be written: ") and said.count(";") == 1
    assert say_system_error(OSError(errno.ENOENT, "No such file", "x")) == "x: cannot be used: No such file"


KILLED = """
import os, sys
from autonuq.atomic import replacing, temporary_folder
with temporary_folder(sys.argv[1]) as folder, replacing(sys.argv[1] + "/file") as file:
    (folder / "inside").write_text("")
    file.write(b"part")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    print(flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run([*command, "die"], check=False).returncode < 0
    assert len(list(tmp_path.iterdir())) == 2
    live = subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    live.stdout.readline()
    kept = set(tmp_path.iterdir())
    assert len(kept) == 2
    with temporary_folder(tmp_path):
        replace_file(tmp_path / "file", [b"whole"])
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "file"}
    live.communicate(b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"] and (tmp_path / "file").read_bytes() == b"part"


@pytest.mark.parametrize("told", ["machine", "start_time"])
def test_of_another_machine_only_what_is_old_is_removed(tmp_path, monkeypatch, told):
    """And of an emulated process, which is told another start time than others are."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(processes, told, lambda *_: "another")
        path = tmp_path / f".file.{new_mark()}"
    path.touch()
    assert not is_left_behind(path)
    two_days_ago = time.time() - 2 * 86_400
    os.utime(path, (two_days_ago, two_days_ago))
    assert is_left_behind(path)
    named = tmp_path / ".file.txt"
    named.touch()
    os.utime(named, (two_days_ago, two_days_ago))
    assert not is_left_behind(named)


@pytest.mark.parametrize("how", ["blocks", "zeros", "no such call"])
@pytest.mark.parametrize("size_bytes", [0, 1, 3_000_001])
def test_allocated_files_are_zeros(how, size_bytes, tmp_path, monkeypatch):
    if how == "zeros":
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "")))
    elif how == "no such call":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with replacing(tmp_path / "file") as file:
        allocate(file, size_bytes)
    assert (tmp_path / "file").read_bytes() == bytes(size_bytes)


MAPPED = """
import sys
from pathlib import Path
import numpy as np
from autonuq.atomic import say_system_error
from autonuq.runtime.moments import _make_array_file
path = Path(sys.argv[1], "moments.npy")
try:
    _make_array_file(path, (1, 102, 100))
    stored = np.load(path, mmap_mode="r+")
    stored[...] = 1
except OSError as error:
    print(say_system_error(error))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("size, said", [("16k", "moments.npy: cannot be written: No space left"), ("128k", "")])
def test_a_mapped_file_on_a_full_disk_is_an_error_and_no_signal(size, said, tmp_path):
    """`numpy.memmap` makes a file without blocks: to write into it ended the process, by SIGBUS."""
    script = f'mount -t tmpfs -o size={size} none "$1" || exit 77; exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, MAPPED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode in (1, 77):
        pytest.skip("this machine lets nobody mount")
    assert ended.returncode == 0, ended.stderr
    assert said in ended.stdout and bool(ended.stdout) == bool(said)


def test_arrays_that_are_mapped_begin_with_zeros(tmp_path):
    from autonuq.runtime.moments import _make_array_file

    _make_array_file(tmp_path / "a.npy", (2, 5, 3))
    stored = np.load(tmp_path / "a.npy", mmap_mode="r+")
    assert stored.dtype == np.float32 and stored.shape == (2, 5, 3) and not stored.any()
