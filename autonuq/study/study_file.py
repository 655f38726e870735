"""Study files: TOML that says what to tune; relative paths are relative to the file."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from autonuq.errors import StudyError, suggest_name
from autonuq.evaluate.builtin import (
    KINDS,
    AccuracySettings,
    DataSettings,
    Drop,
    TransformSettings,
    make_accuracy,
    parse_drop,
)
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.evaluate.isolation import IsolatedEvaluator
from autonuq.graph.files import ModelPair
from autonuq.quant.codecs import CODEC_NAMES
from autonuq.search.sampler import SAMPLERS
from autonuq.storage.open import absolute_url, default_url

_NUMBER = (int, float)
_DATA: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("npz", "folder", "lmdb", "images", "labels", "layout"), str),
    **dict.fromkeys(("start", "count"), int),
}
_KEYS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "": {"name": str, "out": str},
    "model": {"prototxt": str, "weights": str},
    "evaluator": {
        "class": str,
        "evaluate_batch_num": int,
        "kind": str,
        "drop": (*_NUMBER, str),
        "batch_size": int,
        "input": str,
        "output": str,
        "timeout": _NUMBER,
    },
    "evaluator.data": _DATA,
    "evaluator.calibration": _DATA,
    "evaluator.transform": {
        "resize": (int, list),
        "crop": (int, list),
        "mean": (*_NUMBER, list),
        "mean_file": str,
        "scale": _NUMBER,
        "channels": str,
    },
    "quantization": {
        "cfg": str,
        "batch_num": int,
        "activation_offset": bool,
        "python_layers": bool,
        "codec": str,
        "levels": str,
    },
    "search": {
        "trials": int,
        "sampler": str,
        "storage": str,
        "seed": int,
        "artifacts": str,
        "stop_gain": _NUMBER,
    },
    "confirm": {},
}
_RETIRED: Mapping[tuple[str, str], tuple[type, str]] = {("search", "racing"): (bool, "because it did not pay")}
"""Keys of earlier versions, their kinds, and why they are gone: a study that was made with one must go on."""
_REQUIRED = (
    ("", "name"),
    ("model", "prototxt"),
    ("model", "weights"),
)
_KIND_NAMES = {str: "text", int: "a whole number", bool: "true or false", list: "a list", float: "a number"}
_POSITIVE = (
    *(("evaluator", key) for key in ("evaluate_batch_num", "batch_size", "timeout")),
    *((f"evaluator.{table}", "count") for table in ("data", "calibration")),
    ("quantization", "batch_num"),
    ("search", "trials"),
)
_CHOICES: Mapping[tuple[str, str], Sequence[str]] = {
    ("quantization", "codec"): CODEC_NAMES,
    ("quantization", "levels"): ("any", "amct"),
    ("search", "sampler"): tuple(SAMPLERS),
    ("evaluator", "kind"): tuple(KINDS),
    ("evaluator.transform", "channels"): ("RGB", "BGR"),
    **{(f"evaluator.{table}", "layout"): ("NHWC", "NCHW") for table in ("data", "calibration")},
}


@dataclass(frozen=True)
class StudyFile:
    """A checked study file.

    Attributes
    ----------
    path : Path
    name : str
    source : ModelPair
    evaluator : str or AccuracySettings
        `file.py:Class` or `package.module:Class`, or a built-in one.
    evaluate_batch_num : int or None
        None where a built-in evaluator scores all images.
    cfg : Path or None
        AMCT's simplified configuration; then `batch_num` and `activation_offset` come from there.
    batch_num : int
    activation_offset, python_layers : bool
    amct_levels : bool
        `levels = "amct"`: 32 or 16 levels or uniform steps; otherwise any number.
    codec, sampler : str
    trials, seed : int
    storage : str
        URL with absolute paths.
    artifacts : str
        Folder or `s3://bucket/prefix`; empty for a folder in `out`.
    out : Path
    stop_gain : float
    timeout_s : float or None
        Of one evaluation.
    confirm : StudyFile or None
        The same with what [confirm] says in place of [evaluator].
    """

    path: Path
    name: str
    source: ModelPair
    evaluator: str | AccuracySettings
    evaluate_batch_num: int | None
    cfg: Path | None
    batch_num: int
    activation_offset: bool
    amct_levels: bool
    python_layers: bool
    codec: str
    sampler: str
    trials: int
    seed: int
    storage: str
    artifacts: str
    out: Path
    stop_gain: float
    timeout_s: float | None
    confirm: StudyFile | None = None


def load_study_file(
    path: Path, *, out: Path | None = None, storage: str | None = None, artifacts: str | None = None
) -> StudyFile:
    """Read and check a study file.

    Parameters
    ----------
    path : Path
    out, storage, artifacts : optional
        Override the file's; relative ones are relative to the working directory. The default folder is
        `out/<name>` beside the file, the default storage `study.journal` in that folder (`study.db` if an earlier
        version started the study there).

    Raises
    ------
    StudyError
        The file cannot be read, is no TOML, or a key is unknown, missing, or of the wrong kind.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise StudyError(f"study file cannot be read: {error.strerror}", path=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"study file is no TOML: {error}", path=path) from error
    _drop_retired(tables, path)
    confirming = tables.pop("confirm", None)
    file = _study_file(tables, path, out, storage)
    file = replace(file, artifacts=_location(artifacts or "", Path.cwd()) or file.artifacts)
    if confirming is None:
        return file
    try:
        return replace(file, confirm=_study_file(_with_confirming(tables, confirming), path, out, storage))
    except StudyError as error:
        raise StudyError(f"in [confirm], which is read like [evaluator]: {error}") from error


def _drop_retired(tables: Mapping[str, Any], path: Path) -> None:
    """Check the keys that were taken out, say that they are ignored, and remove them."""
    for (table, key), (kind, why) in _RETIRED.items():
        if isinstance(tables.get(table), dict) and key in tables[table]:
            _check_kind((table, key), tables[table].pop(key), kind, path)
            warnings.warn(f"'{_dotted(table, key)}' was taken out, {why}; it is ignored", stacklevel=3)


def _with_confirming(tables: Mapping[str, Any], confirming: object) -> dict[str, Any]:
    """Put [confirm] in the place of [evaluator]; where it names no evaluator of its own, it changes that one's keys."""
    if not isinstance(confirming, dict):
        raise StudyError(f"'confirm' must be a table. Got {confirming!r} instead.")
    own = "class" in confirming or "kind" in confirming
    return {**tables, "evaluator": confirming if own else {**tables["evaluator"], **confirming}}


def _study_file(tables: Mapping[str, Any], path: Path, out: Path | None, storage: str | None) -> StudyFile:
    values = _checked(tables, path)
    folder = path.resolve().parent
    name = values["", "name"]
    target = (out or folder / values.get(("", "out"), f"out/{name}")).resolve()
    url = values.get(("search", "storage"))
    file_url = absolute_url(url, folder) if url else default_url(target)
    cfg = values.get(("quantization", "cfg"))
    return StudyFile(
        path=path,
        name=name,
        source=ModelPair(folder / values["model", "prototxt"], folder / values["model", "weights"]),
        evaluator=values.get(("evaluator", "class")) or _accuracy_settings(values, folder),
        evaluate_batch_num=values.get(("evaluator", "evaluate_batch_num")),
        cfg=folder / cfg if cfg else None,
        batch_num=values.get(("quantization", "batch_num"), 1),
        activation_offset=values.get(("quantization", "activation_offset"), True),
        amct_levels=values.get(("quantization", "levels")) == "amct",
        python_layers=values.get(("quantization", "python_layers"), False),
        codec=values.get(("quantization", "codec"), "entropy"),
        sampler=values.get(("search", "sampler"), "rate-distortion"),
        trials=values.get(("search", "trials"), 40),
        seed=values.get(("search", "seed"), 0),
        storage=absolute_url(storage, Path.cwd()) if storage else file_url,
        artifacts=_location(values.get(("search", "artifacts"), ""), folder),
        out=target,
        stop_gain=float(values.get(("search", "stop_gain"), 0)),
        timeout_s=values.get(("evaluator", "timeout")),
    )


def _location(artifacts: str, folder: Path) -> str:
    is_absolute = not artifacts or "://" in artifacts
    return artifacts if is_absolute else str((folder / artifacts).resolve())


def make_evaluator(file: StudyFile) -> Any:
    """Make the evaluator that a study file names.

    Raises
    ------
    EvaluatorError
        It cannot be loaded, or its data do not fit the network.
    ModelError
        A built-in evaluator cannot read the prototxt.
    """
    make = partial(_evaluator_here, file)
    return make() if file.timeout_s is None else IsolatedEvaluator(make, file.timeout_s)


def _evaluator_here(file: StudyFile) -> Any:
    if isinstance(file.evaluator, AccuracySettings):
        return make_accuracy(file.evaluator, file.source.model)
    return load_evaluator(file.evaluator, file.path.resolve().parent, file.evaluate_batch_num or 1)


def _accuracy_settings(values: Mapping[tuple[str, str], Any], folder: Path) -> AccuracySettings:
    """Put the checked keys of a built-in evaluator together."""
    own = {key: value for (table, key), value in values.items() if table == "evaluator"}
    given = {key: own[key] for key in ("kind", "evaluate_batch_num", "batch_size", "input", "output") if key in own}
    data = _data_settings("evaluator.data", values, folder)
    calibrates = any(table == "evaluator.calibration" for table, _ in values)
    return AccuracySettings(
        data=data,
        calibration=_data_settings("evaluator.calibration", values, folder) if calibrates else data,
        transform=_transform_settings(values, folder),
        drop=parse_drop(own["drop"]) if "drop" in own else Drop(),
        **given,
    )


def _data_settings(table: str, values: Mapping[tuple[str, str], Any], folder: Path) -> DataSettings:
    own = {key: value for (name, key), value in values.items() if name == table}
    kind = next(kind for kind in ("npz", "folder", "lmdb") if kind in own)
    path = folder / own.pop(kind)
    if kind == "folder":
        own["labels"] = str(folder / own["labels"]) if "labels" in own else str(path / "labels.txt")
    return DataSettings(kind=kind, path=path, **own)


def _transform_settings(values: Mapping[tuple[str, str], Any], folder: Path) -> TransformSettings:
    own = {key: value for (table, key), value in values.items() if table == "evaluator.transform"}
    for key in ("resize", "crop", "mean"):
        if key in own:
            own[key] = tuple(own[key]) if isinstance(own[key], list) else (own[key],)
    if "crop" in own:
        own["crop"] = (own["crop"][0], own["crop"][-1])
    if "mean_file" in own:
        own["mean_file"] = str(folder / own["mean_file"])
    return TransformSettings(**own)


def _checked(tables: Mapping[str, Any], path: Path) -> dict[tuple[str, str], Any]:
    """Flatten the tables to (table, key) -> value after checking every name and kind."""
    values = dict(_flattened(tables, "", path))
    for (table, key), value in values.items():
        _check_kind((table, key), value, _KEYS[table][key], path)
    for table, key in _REQUIRED:
        if (table, key) not in values:
            raise StudyError(f"'{_dotted(table, key)}' is missing", path=path)
    _check_values(values, path)
    _check_evaluator(values, path)
    return values


def _check_kind(place: tuple[str, str], value: object, wanted: type | tuple[type, ...], path: Path) -> None:
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        rule = " or ".join(_KIND_NAMES[kind] for kind in kinds if kind is not int or float not in kinds)
        raise StudyError(f"'{_dotted(*place)}' must be {rule}. Got {value!r} instead.", path=path)


def _flattened(tables: Mapping[str, Any], parent: str, path: Path) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield ((table, key), value) of a table and the tables in it; refuse names that are not known."""
    inner = [_last(name) for name in _KEYS if name and name.rpartition(".")[0] == parent]
    for key, value in tables.items():
        if isinstance(value, dict) and key not in _KEYS[parent]:
            _known(key, inner, path, "table")
            yield from _flattened(value, _dotted(parent, key), path)
        elif key in inner:
            raise StudyError(f"'{_dotted(parent, key)}' must be a table. Got {value!r} instead.", path=path)
        else:
            _known(key, list(_KEYS[parent]), path, f"key of [{parent}]" if parent else "key")
            yield (parent, key), value


def _last(table: str) -> str:
    return table.rpartition(".")[2]


def _check_values(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    for place in _POSITIVE:
        if values.get(place, 1) <= 0:
            raise StudyError(f"'{_dotted(*place)}' must be positive. Got {values[place]} instead.", path=path)
    if values.get(("search", "stop_gain"), 0) < 0:
        raise StudyError("'search.stop_gain' must not be negative; 0 never stops", path=path)
    for place, choices in _CHOICES.items():
        if place in values and values[place] not in choices:
            hint = suggest_name(values[place], choices)
            raise StudyError(
                f"'{_dotted(*place)}' must be one of {', '.join(choices)}. Got '{values[place]}' instead.{hint}",
                path=path,
            )
    if ("quantization", "cfg") in values:
        extra = [key for key in ("batch_num", "activation_offset") if ("quantization", key) in values]
        if extra:
            raise StudyError(f"'quantization.{extra[0]}' comes from the cfg file; remove it here", path=path)


def _check_evaluator(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Check that there is one evaluator: a class with its number of batches, or a built-in one with its data."""
    own = {_dotted(table, key) for table, key in values if table.partition(".")[0] == "evaluator"}
    if ("evaluator.class" in own) == ("evaluator.kind" in own):
        what = "both are there" if own >= {"evaluator.class", "evaluator.kind"} else "both are missing"
        rule = f"a class of yours, or '{' or '.join(KINDS)}'"
        keys = "either 'evaluator.class' or 'evaluator.kind'"
        raise StudyError(f"{keys} must say how to score ({rule}); {what}", path=path)
    if "evaluator.class" in own:
        if "evaluator.evaluate_batch_num" not in own:
            raise StudyError("'evaluator.evaluate_batch_num' is missing", path=path)
        foreign = sorted(own - {"evaluator.class", "evaluator.evaluate_batch_num", "evaluator.timeout"})
        if foreign:
            raise StudyError(f"'{foreign[0]}' belongs to a built-in evaluator; 'evaluator.class' has none", path=path)
        return
    for table in ("data", "calibration"):
        _check_data(f"evaluator.{table}", values, path)
    _check_transform(values, path)
    try:
        parse_drop(values.get(("evaluator", "drop"), 0))
    except ValueError as error:
        drop = values["evaluator", "drop"]
        rule = "a number of points (1.0) or per cent of the original metric in quotes ('1 %')"
        raise StudyError(f"'evaluator.drop' must be {rule}. Got {drop!r} instead.", path=path) from error


def _check_data(table: str, values: Mapping[tuple[str, str], Any], path: Path) -> None:
    own = {key for name, key in values if name == table}
    if not own and table == "evaluator.calibration":
        return
    kinds = sorted(own & {"npz", "folder", "lmdb"})
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise StudyError(f"[{table}] must name one of 'npz', 'folder', 'lmdb'. Got {got} instead.", path=path)
    allowed = {"npz": {"images", "labels", "layout"}, "folder": {"labels"}, "lmdb": set()}[kinds[0]]
    foreign = sorted(own - allowed - {kinds[0], "start", "count"})
    if foreign:
        raise StudyError(f"'{table}.{foreign[0]}' has no meaning beside '{kinds[0]}'", path=path)
    if values.get((table, "start"), 0) < 0:
        raise StudyError(f"'{table}.start' must not be negative. Got {values[table, 'start']} instead.", path=path)


def _check_transform(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    table = "evaluator.transform"
    for key in ("resize", "crop"):
        size = values.get((table, key), 1)
        sides = size if isinstance(size, list) else [size]
        if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides):
            rule = "a positive whole number or [height, width]"
            raise StudyError(f"'{table}.{key}' must be {rule}. Got {size!r} instead.", path=path)
    mean = values.get((table, "mean"), 0)
    if isinstance(mean, list) and not (mean and all(isinstance(value, _NUMBER) for value in mean)):
        raise StudyError(f"'{table}.mean' must hold a number for each channel. Got {mean!r} instead.", path=path)
    if (table, "mean") in values and (table, "mean_file") in values:
        raise StudyError(f"'{table}.mean' and '{table}.mean_file' exclude each other", path=path)


def _known(name: str, known: list[str], path: Path, kind: str) -> None:
    if name not in known:
        near = suggest_name(name, known).strip()
        hint = near[0].lower() + near[1:] if near else f"known: {', '.join(known)}"
        raise StudyError(f"unknown {kind} '{name}'; {hint}", path=path)


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key
