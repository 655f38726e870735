"""What a study reads of what it left: moments, inputs, points, networks, artifacts, its journal and the values in it.

Beside being read or refused, nothing may be silently another number: who reads a journal compares every trial, the best
one and what the study began with with those of the good one, and whoever exports compares the files.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutations import Parser
from mutators import TEXT, ZIP, change_json, change_value

from autonuq.cli.documents import SCHEMAS
from autonuq.cli.looking import _status
from autonuq.compress.packed_file import load_packed
from autonuq.errors import AutonuqError
from autonuq.records import SEAL, TRIAL, StudyRecord
from autonuq.report import data as figures
from autonuq.runtime.inputs import load_inputs
from autonuq.runtime.moments import load_moments, moments_file, rows_file
from autonuq.study.artifacts import Artifacts, load_config
from autonuq.study.locate import open_study
from autonuq.study.points_cache import INDEX, load_points
from autonuq.study.run import StudyRun
from autonuq.study.study_file import load_task
from autonuq.study.task import Task, file_digest

sys.path.append(str(Path(__file__).parents[3] / "tests"))
from tiny_network import write_tiny, write_tiny_study  # noqa: E402


class SilentlyWrongError(Exception):
    """A damaged file was believed."""


@dataclass(frozen=True)
class _Finished:
    """A good study: its task, its record, and copies of what its preparation removed."""

    task: Task
    record: StudyRecord
    moments: Path


@cache
def _finished() -> _Finished:
    """Run the tiny study once, in a folder that stays while the process lives."""
    folder = Path(tempfile.mkdtemp(prefix="campaign-study-"))
    write_tiny(folder)
    task = load_task(write_tiny_study(folder), trials=5)
    moments = folder / "moments"

    def keep(progress: Any) -> None:
        if progress.stage == "calibration" and progress.done == 1:
            shutil.copytree(task.record_file.parent, moments)

    run = StudyRun(task, keep)
    study = run.run(exists=False)
    written = run.export(study, formats=("caffe", "packed"))
    load_packed(next(path for path in written if path.suffix == ".nuq"))  # compiles the decoder
    return _Finished(run.task, study.record(), moments)


# Files of the preparation


def _layer(name: str) -> Any:
    return StudyRun(_finished().task).model.graph.by_name[name]


def _moments_originals(folder: Path) -> Sequence[bytes]:
    found = [moments_file(_finished().moments / "record.txt", name) for name in ("conv", "fc")]
    return [path.read_bytes() for path in found if path.stat().st_size] or [_made_moments()]


def _made_moments() -> bytes:
    buffer, columns = io.BytesIO(), _layer("conv").blobs[0][0].size
    np.save(buffer, np.ones((1, columns + 2, columns), np.float32))
    return buffer.getvalue()


def _read_moments(path: Path) -> None:
    record = path.with_name("record.txt")
    target = moments_file(record, "conv")
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, target)
    rows_file(target).unlink(missing_ok=True)
    _naming(target, path, lambda: load_moments(record, _layer("conv")))


def _read_rows(path: Path) -> None:
    record = path.with_name("record.txt")
    target = moments_file(record, "conv")
    target.parent.mkdir(exist_ok=True)
    target.touch()
    shutil.copyfile(path, rows_file(target))
    _naming(rows_file(target), path, lambda: load_moments(record, _layer("conv")))


def _rows_originals(folder: Path) -> Sequence[bytes]:
    columns = _layer("conv").blobs[0][0].size
    return [b"\0\0\x80\x3f" * columns * 5]


def _inputs_originals(folder: Path) -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted((_finished().moments / "record.txt.inputs").glob("*.npz"))]


def _read_inputs(path: Path) -> None:
    record = path.with_name("record.txt")
    target = record.with_name("record.txt.inputs") / "0.npz"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, target)
    _naming(target, path, lambda: load_inputs(record))


def _naming(target: Path, path: Path, read: Callable[[], object]) -> None:
    """Read a file that was copied from the damaged one; an error has to name the copy."""
    try:
        read()
    except AutonuqError as error:
        if target.name not in str(error):
            raise SilentlyWrongError(f"no file named: {error}") from error
        raise type(error)(f"{path.name}: {error.message}") from error


def _points_originals(folder: Path) -> Sequence[bytes]:
    shutil.copytree(_finished().task.points_folder, folder / "points")
    return [(_finished().task.points_folder / INDEX).read_bytes()]


def _read_points(path: Path) -> None:
    """Once as of a study that was killed before it knew of them, once as of one that knows."""
    folder, good = path.with_name("points"), _finished().task.points_folder
    shutil.copyfile(path, folder / INDEX)
    load_points(folder, _key(good), _calibration(good), {})
    found = load_points(folder, "", "", _digests(good))
    if found is not None and path.read_bytes() != (good / INDEX).read_bytes():
        raise SilentlyWrongError("an index that is not the study's")


def _codes_originals(folder: Path) -> Sequence[bytes]:
    shutil.copytree(_finished().task.points_folder, folder / "points")
    return [path.read_bytes() for path in sorted(_finished().task.points_folder.glob("*.npy"))]


def _read_codes(path: Path) -> None:
    folder, good = path.with_name("points"), _finished().task.points_folder
    shutil.copyfile(path, folder / "0.npy")
    if load_points(folder, "", "", _digests(good)) and path.read_bytes() != (good / "0.npy").read_bytes():
        raise SilentlyWrongError("codes that are not the study's")


@cache
def _digests(folder: Path) -> dict[str, str]:
    return {INDEX: file_digest(folder / INDEX)}


@cache
def _index(folder: Path, name: str) -> str:
    with np.load(folder / INDEX) as arrays:
        return str(arrays[name])


def _key(folder: Path) -> str:
    return _index(folder, "key")


def _calibration(folder: Path) -> str:
    return _index(folder, "calibration")


# Artifacts


def _configuration_originals(folder: Path) -> Sequence[bytes]:
    return [json.dumps(asdict(StudyRun(_finished().task).model.config)).encode()]


def _artifact_originals(folder: Path) -> Sequence[bytes]:
    shutil.copytree(_finished().task.out / "artifacts", folder / "artifacts")
    return [_artifact().read_bytes()]


def _artifact() -> Path:
    good = _finished().task
    return min((good.out / "artifacts").iterdir(), key=lambda path: path.stat().st_size)


def _read_artifact(path: Path) -> None:
    """Fetch what a worker elsewhere needs, one file of it damaged."""
    good, store = _finished().task, path.with_name("artifacts")
    target = store / _artifact().name
    target.unlink(missing_ok=True)  # it may be a link
    shutil.copyfile(path, target)
    with tempfile.TemporaryDirectory(dir=path.parent) as elsewhere:
        task = replace(good, out=Path(elsewhere), artifacts=str(store))
        Artifacts(str(store)).fetch(task, open_study(good.name, good.storage).optuna)
        if path.read_bytes() != _artifact().read_bytes():
            raise SilentlyWrongError("an artifact that is not the study's")


# The journal


def _journal() -> bytes:
    task = _finished().task
    return Path(task.storage.removeprefix("journal://")).read_bytes()


def _journal_originals(folder: Path) -> Sequence[bytes]:
    return [_journal()]


def _older_originals(folder: Path) -> Sequence[bytes]:
    """Return the journal as versions wrote it that had neither seals nor digests."""
    lines = []
    for line in _journal().splitlines():
        entry = json.loads(line)
        own = entry.get("user_attr", {})
        if TRIAL in own:
            own[TRIAL].pop("digest")
        if SEAL not in own:
            lines.append(json.dumps(entry, separators=(",", ":")).encode())
    return [b"\n".join(lines) + b"\n"]


def _read_older_journal(path: Path) -> None:
    """Do what status, plot and report do; what has no digest may have other numbers, if these go together."""
    _shown(open_study(_finished().task.name, f"journal://{path}").record())


def change_stored_value(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change one value in one line of a journal: of an attribute, or of what Optuna says of a trial."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    try:
        entry = json.loads(lines[place])
    except (ValueError, RecursionError):
        return data
    if not isinstance(entry, dict):
        return data
    keys = [key for key in entry if key not in ("op_code", "worker_id")]
    attributes = [key for key in keys if key.endswith(("_attr", "_attrs", "params", "values")) and entry[key]]
    if not keys:
        return data
    key = rng.choice(attributes if attributes and rng.random() < 0.85 else keys)
    entry[key] = _changed(rng, entry[key])
    lines[place] = json.dumps(entry, separators=(",", ":")).encode()
    return b"\n".join(lines) + b"\n"


def _changed(rng: Random, value: Any) -> Any:
    """Change something in a value; a long attribute's text is JSON itself."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: _changed(rng, value[key])}
    if isinstance(value, str) and value[:1] in "{[" and rng.random() < 0.9:
        try:
            return json.dumps(change_value(rng, json.loads(value)))
        except (ValueError, RecursionError):
            pass
    return change_value(rng, value)


def _read_journal(path: Path) -> None:
    """Do what status, plot and report do, and compare the numbers."""
    good = _finished()
    record = open_study(good.task.name, f"journal://{path}").record()
    _shown(record)
    _compare(record, good.record)


_FIGURES: tuple[Callable[[StudyRecord], object], ...] = (
    *(figures.history_data, figures.front_data, figures.layers_data, figures.curves_data),
    *(figures.predicted_data, figures.codebooks_data, figures.timeline_data),
)


def _shown(record: StudyRecord) -> None:
    if SCHEMAS["status"]["required"] and not set(SCHEMAS["status"]["required"]) <= _status(record).keys():
        raise SilentlyWrongError("status lacks a key")
    record.say_best(), record.say_transfer(), record.confirmed
    for make in _FIGURES:
        make(record)


def _compare(record: StudyRecord, good: StudyRecord) -> None:
    """Refuse numbers that are not those of the good study; a trial that is said to be ignored may lack."""
    before = {trial.number: trial for trial in good.trials}
    for trial in record.trials:
        was = before.get(trial.number)
        if trial.state != "complete":
            continue
        numbers = ("ratio", "metric", "satisfied", "margin", "size_bytes", "points", "loss_error")
        if was is None or any(getattr(trial, name) != getattr(was, name) for name in numbers):
            raise SilentlyWrongError(f"trial {trial.number} has other numbers")
    if not record.trials and not record.layers:
        return  # as before the preparation
    for name in ("original_metric", "layers", "confidence", "unit", "float_layers", "codec"):
        if getattr(record, name) != getattr(good, name):
            raise SilentlyWrongError(f"the study has another {name}")
    is_whole = not record.ignored and len(record.trials) == len(good.trials)
    if (
        is_whole
        and record.counts == good.counts
        and (record.best and record.best.number) != (good.best and good.best.number)
    ):
        raise SilentlyWrongError("another trial is the best")


def _resume_journal(path: Path) -> None:
    """Go on with the study on a copy of its folder, export the best, and compare the numbers that had been there."""
    good = _finished()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        out = Path(name) / "out"
        shutil.copytree(good.task.out, out, ignore=shutil.ignore_patterns("*.journal*"))
        journal = out / "study.journal"
        shutil.copyfile(path, journal)
        task = replace(good.task, out=out, storage=f"journal://{journal}", n_trials=good.task.n_trials + 1)
        run = StudyRun(task)
        study = run.run(exists=True)
        record = study.record()
        _compare_first(record, good.record)
        if record.best is not None:
            run.export(study, formats=("packed",))


def _compare_first(record: StudyRecord, good: StudyRecord) -> None:
    before = {trial.number: trial for trial in good.trials}
    for trial in record.trials:
        was = before.get(trial.number)
        is_known = was is not None and trial.started == was.started and trial.state == "complete"
        if is_known and (trial.ratio, trial.metric, trial.satisfied) != (was.ratio, was.metric, was.satisfied):
            raise SilentlyWrongError(f"trial {trial.number} has other numbers")
    if record.original_metric != good.original_metric:
        raise SilentlyWrongError("another original metric")


# The calibration's record in a study


def _record_originals(folder: Path) -> Sequence[bytes]:
    return [_finished().task.record_file.read_bytes()]


def _export_of_record(path: Path) -> None:
    """Export from a folder whose record is damaged: it is mended from the artifacts, or refused."""
    good = _finished()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        out = Path(name) / "out"
        shutil.copytree(good.task.out, out)
        shutil.copyfile(path, out / "calibration" / "record.txt")
        run = StudyRun(replace(good.task, out=out, artifacts=str(good.task.out / "artifacts")))
        study = open_study(good.task.name, good.task.storage)
        found = run.export(study, formats=("packed",), prefix=str(out / "again"))
        before = {file.name.removeprefix("again"): file.read_bytes() for file in found if file.suffix == ".nuq"}
        for suffix, content in before.items():
            if content != Path(f"{good.task.prefix}{suffix}").read_bytes():
                raise SilentlyWrongError("another network was exported")


PARSERS = [
    Parser("moments .npy", ".npy", _moments_originals, _read_moments),
    Parser("moments .rows", ".rows", _rows_originals, _read_rows),
    Parser("inputs of the calibration", ".npz", _inputs_originals, _read_inputs, ZIP),
    Parser("points' index", ".npz", _points_originals, _read_points, ZIP, names_file=False),
    Parser("points' codes", ".npy", _codes_originals, _read_codes, names_file=False),
    Parser("artifacts' configuration", ".json", _configuration_originals, load_config, (change_json, *TEXT)),
    Parser("an artifact", ".bin", _artifact_originals, _read_artifact, names_file=False),
    Parser("journal text", ".journal", _journal_originals, _read_journal, TEXT, names_file=False),
    Parser(
        "journal values", ".journal", _journal_originals, _read_journal, (change_stored_value,), True, names_file=False
    ),
    Parser(
        "journal values, older",
        ".journal",
        _older_originals,
        _read_older_journal,
        (change_stored_value,),
        True,
        names_file=False,
    ),
    Parser(
        "journal values, resumed",
        ".journal",
        _journal_originals,
        _resume_journal,
        (change_stored_value,),
        True,
        names_file=False,
    ),
    Parser("record in a study", ".txt", _record_originals, _export_of_record, TEXT, names_file=False),
]
