"""Memory that this process holds for networks to come, and what the machine has left."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from contextlib import suppress
from pathlib import Path

from autonuq.graph import caffemodel
from autonuq.runtime import session

_NAME_WIDTH = 26  # characters of a limit's name, as Linux lists them


def give_back_memory() -> None:
    """Return memory to the system: what the next network would have taken, and what the C library keeps of the freed.

    Notes
    -----
    After the calibration of a ResNet-50 that is 0.2 GB of a file and its weights and, with 8 images at a time, 0.7 GB
    of activations, while the operating points that are built next want blocks of other sizes. Only glibc can be told
    of what is free; others do as they do.

    **Cost**: some milliseconds; the next network takes fresh memory.
    """
    caffemodel.release_file_memory()
    session.release_weight_memory()
    session.release_blob_memory()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def available_memory() -> float | None:
    """Return how much memory this process may still take, in bytes, or None where that is not known (not Linux)."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
        return min(free, _left_to_the_group(), _left_to_the_process())
    return None


def resident_memory() -> float | None:
    """Return what this process has of memory now, in bytes, or None where that is not known (not Linux)."""
    with suppress(OSError, ValueError, IndexError):
        return float(Path("/proc/self/statm").read_text("ascii").split()[1]) * mmap.PAGESIZE
    return None


def _left_to_the_process() -> float:
    """Return what its own limits leave this process, infinite where there are none."""
    pages = Path("/proc/self/statm").read_text("ascii").split()
    taken = {"Max address space": pages[0], "Max data size": pages[5]}
    limits = Path("/proc/self/limits").read_text("ascii").splitlines()
    left = math.inf
    for line in limits:
        name, (soft, *_) = line[:_NAME_WIDTH].strip(), line[_NAME_WIDTH:].split()
        if name in taken and soft != "unlimited":
            left = min(left, float(soft) - int(taken[name]) * mmap.PAGESIZE)
    return left


def _left_to_the_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the control group of this process leaves, infinite where there is no limit; cached files can go."""
    with suppress(OSError, ValueError, StopIteration):
        limit, used = (float((folder / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        statistics = (folder / "memory.stat").read_text("ascii").splitlines()
        return limit - used + float(next(line.split()[1] for line in statistics if line.startswith("file ")))
    return float("inf")
