"""Which files a study may have among its artifacts: their names come from the storage, and become paths here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from autonuq.errors import StudyError
from autonuq.file_names import file_below
from autonuq.runtime.inputs import inputs_folder
from autonuq.study.points_cache import CODES_SUFFIX, INDEX
from autonuq.study.task import Task

PROTOTXT, WEIGHTS, CONFIG = "model/model.prototxt", "model/weights.caffemodel", "model/quantization.json"
_NUMBER = r"[0-9]{1,9}"
_DIGEST = re.compile("[0-9a-f]{64}")


def artifact_files(task: Task, digests: Mapping[str, object]) -> dict[str, Path]:
    """Return where each artifact of a study goes.

    Parameters
    ----------
    task : Task
        With the folder.
    digests : mapping of str to object
        What the storage says: name -> digest.

    Raises
    ------
    StudyError
        A name is none that a study has, or leaves the folder by a link; or a digest is none.
    """
    pattern = _names(task)
    files = {}
    for name, digest in digests.items():
        path = file_below(task.out, name) if pattern.fullmatch(name) else None
        if path is None or not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise StudyError(
                f"the storage names an artifact that no study has, or that would leave {task.out}: {name!r}; nothing "
                "was fetched. Who else writes to this storage?",
                study=task.name,
            )
        files[name] = path
    return files


def _names(task: Task) -> re.Pattern[str]:
    """Return what the names are matched with."""

    def within(folder: Path, name: str) -> str:
        return f"{re.escape(folder.relative_to(task.out).as_posix())}/{name}"

    calibration = [
        within(task.record_file.parent, re.escape(task.record_file.name)),
        within(task.points_folder, re.escape(INDEX)),
        within(task.points_folder, _NUMBER + re.escape(CODES_SUFFIX)),
        within(inputs_folder(task.record_file), rf"{_NUMBER}\.npz"),
    ]
    return re.compile("|".join([*map(re.escape, (PROTOTXT, WEIGHTS, CONFIG)), *calibration]))
