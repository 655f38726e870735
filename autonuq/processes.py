"""Which process something belongs to, and whether that is still there: of trials and of temporary files.

Process numbers come back, and are those of one machine, boot and container: all three are part of an answer.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
import uuid
from pathlib import Path

_PROC = Path("/proc")  # Linux's
_RANDOM_ADDRESS = 1 << 40  # the multicast bit, see uuid.getnode
_MARK = re.compile(r"([0-9a-f]{8})-([0-9a-f]+)-([0-9a-f]{8})-[0-9a-f]{8}$")
_OLD_S = 86_400.0


def machine() -> str:
    """Return what process numbers are unique within; empty if that is unknown."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return _machine_without_proc()


def _machine_without_proc() -> str:
    """Return the name and the network address; without an address each process has a random one, which has its bit."""
    address = uuid.getnode()
    return "" if address & _RANDOM_ADDRESS else f"{socket.gethostname()} {address:x}"


def start_time(pid: int) -> str:
    """Return the start time of a process, empty if there is none or it only waits for its parent to notice."""
    if not _PROC.is_dir():
        return _start_time_without_proc(pid)
    try:
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _start_time_without_proc(pid: int) -> str:
    import psutil  # not installed on Linux

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.NoSuchProcess:
        return ""


def new_mark() -> str:
    """Return the end of a temporary file's name: unique, and it tells which process made it."""
    pid = os.getpid()
    return f"{_digest(machine())}-{pid:x}-{_digest(start_time(pid))}-{secrets.token_hex(4)}"


def is_left_behind(path: Path) -> bool:
    """Say whether a file or folder has a mark for its name's end, and nobody works with it any more.

    Of another machine's processes, and where machines cannot be told apart, nothing is known, nor whether one that
    started at another time has only got the number, for an emulated process is told another start time than others
    are: what they have not touched for a day is left behind.
    """
    found = _MARK.search(path.name)
    if found is None:
        return False
    host, pid, since = found.groups()
    if machine() and host == _digest(machine()):
        started = start_time(int(pid, 16))
        if not started or since == _digest(started):
            return not started
    return time.time() - path.lstat().st_mtime > _OLD_S


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
