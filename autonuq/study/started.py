"""What a study's folder knows of the study: by what it was started, and from which files.

The storage says so, too, but whoever writes to the storage could name any file of this machine there: the study file's
evaluator would be run, and the folder written to. So those who resume a study by its folder, or by its name, take paths
from the folder alone, which the user has named, or which says itself that it is this study's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from autonuq.atomic import replace_text
from autonuq.masking import MASK, masked
from autonuq.study.task import Task

NAME = ".study.json"


def write_started(task: Task) -> None:
    """Leave in the folder of a task what it is; what it says of a study file stays where this run had none."""
    found = {"study": task.name, "storage": _account(task.storage), **task.as_attribute()}
    before = load_started(task.out, task.name)
    if before is not None and found["study_file"] is None:
        found["study_file"] = before["study_file"]
    if found != before:
        replace_text(task.out / NAME, json.dumps(found, indent=1))


def load_started(folder: Path, study: str, storage: str | None = None) -> Mapping[str, Any] | None:
    """Return what a folder knows of a study; None if it is not that study's, or not of that storage's.

    Folders of earlier versions know nothing.
    """
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / NAME).read_text("utf-8"))
        if _is_whole(found) and found["study"] == study and (storage is None or _account(storage) == found["storage"]):
            return dict(found)
    return None


def _account(url: str) -> str:
    """Return the URL as it is with a password and without."""
    return masked(url).replace(f":{MASK}@", "@")


def _is_whole(found: object) -> bool:
    paths = ("prototxt", "weights", "study", "storage", "artifacts")
    optional = ("study_file", "cfg")
    return (
        isinstance(found, dict)
        and all(isinstance(found.get(key), str) for key in paths)
        and all(key in found and isinstance(found[key], str | None) for key in optional)
    )
