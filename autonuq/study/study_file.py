"""Study files: TOML that says what to tune; relative paths are relative to the file."""

from __future__ import annotations

import math
import os
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autonuq.errors import StudyError, suggest_name
from autonuq.evaluate.builtin import KINDS, BuiltinSettings, DataSettings, TransformSettings, parse_drop
from autonuq.evaluate.recipe import EvaluatorRecipe
from autonuq.file_names import RULE, is_file_name
from autonuq.graph.files import ModelPair
from autonuq.quant.atc.chips import DDR_RATES, MARKS
from autonuq.quant.codecs import CODEC_NAMES, broken_rule
from autonuq.quant.config import Target
from autonuq.reading import reading
from autonuq.search.sampler import SAMPLERS
from autonuq.storage.open import VARIABLE, absolute_url, default_url
from autonuq.study.detection_table import (
    DETECTION_CHOICES,
    DETECTION_KEYS,
    broken_detection_rule,
    detection_settings,
)
from autonuq.study.engines import BACKENDS, Workers
from autonuq.study.task import FLOAT_RULES, Task

_MOST_BYTES = 1 << 20
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""", re.ASCII)
"""tomllib takes memory and time by the square of a key's parts; no key of ours has more than three."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_INTEGERS = 1 << 63
_NUMBER = (int, float)
_DATA: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("npz", "folder", "lmdb", "images", "labels", "layout"), str),
    **dict.fromkeys(("start", "count"), int),
}
_KEYS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "": {"name": str, "out": str},
    "model": {"prototxt": str, "weights": str, "allow_python_layers": bool},
    "evaluator": {
        "class": str,
        "evaluate_batch_num": int,
        "kind": str,
        "drop": (*_NUMBER, str),
        "batch_size": int,
        "input": str,
        "output": str,
        "timeout": _NUMBER,
        "outputs": list,
        "measure": str,
        "snr": _NUMBER,
        "cosine": _NUMBER,
        "axis": int,
        "classes": list,
        "ignore": int,
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
    "evaluator.detections": DETECTION_KEYS,
    "quantization": {
        "cfg": str,
        "batch_num": int,
        "activation_offset": bool,
        "python_layers": bool,
        "codec": str,
        "chip": str,
        "marks": str,
        "levels": str,
    },
    "search": {
        "trials": int,
        "sampler": str,
        "storage": str,
        "seed": int,
        "artifacts": str,
        "stop_gain": _NUMBER,
        "confidence": _NUMBER,
        "confirm": bool,
        "float_layers": (str, list),
    },
    "workers": {"backend": str, "scheduler": str, "address": str, "jobs": int},
    "confirm": {},
}
_RETIRED: Mapping[tuple[str, str], tuple[type, str]] = {("search", "racing"): (bool, "because it did not pay")}
"""Keys of earlier versions, their kinds, and why they are gone: a study that was made with one must go on."""
_FIELDS = {
    ("", "name"): "name",
    ("model", "allow_python_layers"): "allow_python_layers",
    ("quantization", "batch_num"): "batch_num",
    ("quantization", "activation_offset"): "activation_offset",
    ("quantization", "python_layers"): "python_layers",
    ("quantization", "codec"): "codec",
    ("quantization", "chip"): "chip",
    ("quantization", "marks"): "marks",
    ("search", "trials"): "n_trials",
    ("search", "sampler"): "sampler",
    ("search", "seed"): "seed",
    ("search", "stop_gain"): "stop_gain",
    ("search", "confidence"): "confidence",
    ("search", "float_layers"): "float_layers",
}
"""Keys that are fields of `Task` as they stand, where defaults are."""
_BUILTIN_FIELDS = (
    *("kind", "evaluate_batch_num", "batch_size", "input", "output"),
    *("measure", "snr", "cosine", "axis", "ignore"),
)
"""Keys of [evaluator] that are fields of `BuiltinSettings` as they stand."""
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
    ("workers", "jobs"),
)
_CHOICES: Mapping[tuple[str, str], Sequence[str]] = {
    ("quantization", "codec"): CODEC_NAMES,
    ("quantization", "chip"): tuple(DDR_RATES),
    ("quantization", "marks"): MARKS,
    ("quantization", "levels"): ("any", "amct"),
    ("search", "sampler"): tuple(SAMPLERS),
    ("evaluator", "kind"): tuple(KINDS),
    ("evaluator", "measure"): ("snr", "cosine"),
    ("evaluator.transform", "channels"): ("RGB", "BGR"),
    ("workers", "backend"): BACKENDS,
    **{(f"evaluator.{table}", "layout"): ("NHWC", "NCHW") for table in ("data", "calibration")},
    **{("evaluator.detections", key): choices for key, choices in DETECTION_CHOICES.items()},
}


def load_task(
    path: str | Path,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    artifacts: str | None = None,
    trials: int | None = None,
) -> Task:
    """Read and check a study file; its evaluators are recipes, made when they are needed (`Task.made`).

    Parameters
    ----------
    path : str or Path
    out, storage, artifacts, trials : optional
        Override the file's; relative ones are relative to the working directory. Without a `storage` the environment
        variable `AUTONUQ_STORAGE` overrides the file's, too, so that no password need stand there. The default folder
        is `out/<name>` beside the file, the default storage `study.journal` in that folder (`study.db` if an earlier
        version started the study there).

    Raises
    ------
    StudyError
        The file cannot be read, is no TOML, or a key is unknown, missing, or of the wrong kind.
    """
    path = Path(path)
    text, tables = _parsed(path)
    _check_plain(tables, "", path)
    _drop_retired(tables, path)
    confirming = tables.pop("confirm", None)
    values = _checked(tables, path)
    if trials is not None:
        values["search", "trials"] = trials
    folder = path.resolve().parent
    with reading(path, StudyError, "are no paths", what="what its keys name"):
        evaluator, confirm = _evaluators(tables, values, confirming, path)
        target = _folder(values, path, out)
        url = _storage_url(values, folder, target, storage)
        artifacts_url = absolute_location(artifacts, Path.cwd()) or absolute_location(
            values.get(("search", "artifacts")), folder
        )
    return Task(
        source=ModelPair(folder / values["model", "prototxt"], folder / values["model", "weights"]),
        evaluator=evaluator,
        confirm=confirm,
        out=target,
        storage=url,
        artifacts=artifacts_url,
        cfg=folder / values["quantization", "cfg"] if ("quantization", "cfg") in values else None,
        amct_levels=values.get(("quantization", "levels")) == "amct",
        provenance={"study file": text},
        study_file=path.resolve(),
        workers=_workers(values),
        **{field: values[place] for place, field in _FIELDS.items() if place in values},
    )


def _parsed(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text and what it says."""
    with reading(path, StudyError, "is no TOML", what="study file"):
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise StudyError(f"study file has {size:,} bytes; it must have at most {_MOST_BYTES:,}", path=path)
        text = path.read_text("utf-8")
        if deep := _DEEP_KEY.search(text):
            line = text.count("\n", 0, deep.start()) + 1
            raise StudyError(f"study file has a key of too many parts in line {line}", path=path)
        return text, tomllib.loads(text)


def _check_plain(value: object, place: str, path: Path) -> None:
    """Refuse what no key takes, wherever it stands: control characters, numbers without an end or of any size."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, _dotted(place, key), path)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, place, path)
    elif isinstance(value, str) and (control := _CONTROL.search(value)):
        raise StudyError(f"'{place}' must be text without control characters. Got {control[0]!r} in it.", path=path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise StudyError(f"'{place}' must be finite. Got {value} instead.", path=path)
    elif isinstance(value, int) and not -_INTEGERS <= value < _INTEGERS:
        raise StudyError(f"'{place}' must be a whole number of 64 bits, as TOML's are", path=path)


def _folder(values: Mapping[tuple[str, str], Any], path: Path, out: str | Path | None) -> Path:
    """Return the study's folder; only where none is given is it called like the study."""
    given = out or values.get(("", "out"))
    if given is None and not is_file_name(values["", "name"]):
        name = values["", "name"]
        raise StudyError(f"its name makes no folder: {RULE}; give another name, or --out", path=path, study=name)
    return Path(out or path.resolve().parent / (given or f"out/{values['', 'name']}")).resolve()


def _workers(values: Mapping[tuple[str, str], Any]) -> Workers:
    """Put the checked keys of [workers] together."""
    own = {key: value for (table, key), value in values.items() if table == "workers"}
    address = own.pop("scheduler", "") or own.pop("address", "")
    return Workers(address=address, **{key: own[key] for key in ("backend", "jobs") if key in own})


def _drop_retired(tables: Mapping[str, Any], path: Path) -> None:
    """Check the keys that were taken out, say that they are ignored, and remove them."""
    for (table, key), (kind, why) in _RETIRED.items():
        if isinstance(tables.get(table), dict) and key in tables[table]:
            _check_kind((table, key), tables[table].pop(key), kind, path)
            warnings.warn(f"'{_dotted(table, key)}' was taken out, {why}; it is ignored", stacklevel=3)


def _evaluators(
    tables: Mapping[str, Any], values: Mapping[tuple[str, str], Any], confirming: object, path: Path
) -> tuple[EvaluatorRecipe, EvaluatorRecipe | None]:
    """Return the evaluator and the confirming one: what [confirm] says, or data that a built-in one holds back."""
    own = _recipe(values, path.resolve().parent)
    if not values.get(("search", "confirm"), True):
        if confirming is not None:
            raise StudyError("'search.confirm' is false, but there is a [confirm]; remove one of them", path=path)
        return own, None
    if confirming is not None:
        found = _confirming(tables, confirming, path)
        _check_apart(own, found, path)
        return own, found
    return own.of_part("search"), own.of_part("held back") if isinstance(own.what, BuiltinSettings) else None


def _check_apart(own: EvaluatorRecipe, confirming: EvaluatorRecipe, path: Path) -> None:
    """Refuse to confirm on images that the search sees."""
    same = own == confirming
    if isinstance(own.what, BuiltinSettings) and isinstance(confirming.what, BuiltinSettings):
        one, other = own.what.data, confirming.what.data
        same = one.path.resolve() == other.path.resolve() and one.overlaps(other)
    if same:
        raise StudyError(
            "[confirm] scores data that the search sees; name others ('start' and 'count' choose images), or leave it "
            "out: built-in evaluators hold images back by themselves",
            path=path,
        )


def _confirming(tables: Mapping[str, Any], confirming: object, path: Path) -> EvaluatorRecipe:
    """Read [confirm] like [evaluator]; where it names no evaluator of its own, it changes that one's keys."""
    if not isinstance(confirming, dict):
        raise StudyError(f"'confirm' must be a table. Got {confirming!r} instead.", path=path)
    own = "class" in confirming or "kind" in confirming
    evaluator = confirming if own else {**tables["evaluator"], **confirming}
    try:
        return _recipe(_checked({**tables, "evaluator": evaluator}, path), path.resolve().parent)
    except StudyError as error:
        raise StudyError(f"in [confirm], which is read like [evaluator]: {error.message}", path=error.path) from error


def _storage_url(values: Mapping[tuple[str, str], Any], folder: Path, target: Path, storage: str | None) -> str:
    """Return the URL with absolute paths: the given one's from here, the file's from its folder, or the default."""
    storage = storage or os.environ.get(VARIABLE)
    if storage:
        return absolute_url(storage, Path.cwd())
    url = values.get(("search", "storage"))
    return absolute_url(url, folder) if url else default_url(target)


def _recipe(values: Mapping[tuple[str, str], Any], folder: Path) -> EvaluatorRecipe:
    return EvaluatorRecipe(
        what=values["evaluator", "class"] if ("evaluator", "class") in values else _builtin_settings(values, folder),
        folder=folder,
        evaluate_batch_num=values.get(("evaluator", "evaluate_batch_num"), EvaluatorRecipe.evaluate_batch_num),
        timeout_s=values.get(("evaluator", "timeout")),
    )


def absolute_location(artifacts: str | None, folder: Path) -> str:
    """Make the folder of artifacts relative to `folder`."""
    is_absolute = not artifacts or "://" in artifacts
    return artifacts or "" if is_absolute else str((folder / str(artifacts)).resolve())


def _builtin_settings(values: Mapping[tuple[str, str], Any], folder: Path) -> BuiltinSettings:
    """Put the checked keys of a built-in evaluator together."""
    own = {key: value for (table, key), value in values.items() if table == "evaluator"}
    given = {key: own[key] for key in _BUILTIN_FIELDS if key in own}
    lists: dict[str, Any] = {key: tuple(own[key]) for key in ("outputs", "classes") if key in own}
    detections = {key: value for (table, key), value in values.items() if table == "evaluator.detections"}
    data = _data_settings("evaluator.data", values, folder)
    calibrates = any(table == "evaluator.calibration" for table, _ in values)
    return BuiltinSettings(
        data=data,
        calibration=_data_settings("evaluator.calibration", values, folder) if calibrates else data,
        transform=_transform_settings(values, folder),
        drop=parse_drop(own["drop"]) if "drop" in own else None,
        detections=detection_settings(detections, folder),
        **given,
        **lists,
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
    if not 0 <= values.get(("search", "confidence"), 0) < 1:
        got = values["search", "confidence"]
        raise StudyError(f"'search.confidence' must be at least 0 and less than 1. Got {got} instead.", path=path)
    if values.get(("search", "stop_gain"), 0) < 0:
        raise StudyError("'search.stop_gain' must not be negative; 0 never stops", path=path)
    _check_float_layers(values.get(("search", "float_layers"), []), path)
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
    _check_target(values, path)
    _check_workers(values, path)


def _check_workers(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Check that the workers' backend and address go together, and that there is one address."""
    if {("workers", "scheduler"), ("workers", "address")} <= values.keys():
        raise StudyError("'workers.scheduler' and 'workers.address' are the same thing; remove one", path=path)
    if broken := _workers(values).broken_rule:
        raise StudyError(f"[workers]: {broken}", path=path)


def _check_target(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Check that chip, marks and codec go together; a cfg may have the chip."""
    codec, chip, marks = (values.get(("quantization", key), "") for key in ("codec", "chip", "marks"))
    broken = broken_rule(Target(codec, chip, marks))
    if broken and (chip or ("quantization", "cfg") not in values):
        words = f"must be {broken.words}. Got '{broken.got}' instead.{broken.hint}"
        raise StudyError(f"'quantization.{broken.key}' {words}", path=path)


def _check_float_layers(value: str | list[Any], path: Path) -> None:
    """Check the form; whether the network has layers of these names shows when it is read."""
    if isinstance(value, str) and value not in FLOAT_RULES:
        hint = suggest_name(value, FLOAT_RULES)
        rule = f"one of {', '.join(FLOAT_RULES)} or a list of layer names"
        raise StudyError(f"'search.float_layers' must be {rule}. Got '{value}' instead.{hint}", path=path)
    if not isinstance(value, str) and not all(isinstance(name, str) for name in value):
        raise StudyError(f"'search.float_layers' must hold names of layers. Got {value!r} instead.", path=path)


def _check_evaluator(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Check that there is one evaluator: a class with its number of batches, or a built-in one with its data."""
    own = {_dotted(table, key) for table, key in values if table.partition(".")[0] == "evaluator"}
    if ("evaluator.class" in own) == ("evaluator.kind" in own):
        what = "both are there" if own >= {"evaluator.class", "evaluator.kind"} else "both are missing"
        rule = f"a class of yours, or one of {', '.join(KINDS)}"
        keys = "either 'evaluator.class' or 'evaluator.kind'"
        raise StudyError(f"{keys} must say how to score ({rule}); {what}", path=path)
    if "evaluator.class" in own:
        if not values["evaluator", "class"]:
            raise StudyError("'evaluator.class' must name a class, e.g. 'evaluate.py:Top1'. Got '' instead.", path=path)
        if "evaluator.evaluate_batch_num" not in own:
            raise StudyError("'evaluator.evaluate_batch_num' is missing", path=path)
        foreign = sorted(own - {"evaluator.class", "evaluator.evaluate_batch_num", "evaluator.timeout"})
        if foreign:
            raise StudyError(f"'{foreign[0]}' belongs to a built-in evaluator; 'evaluator.class' has none", path=path)
        return
    _check_keys_of_kind(values, path)
    for table in ("data", "calibration"):
        _check_data(f"evaluator.{table}", values, path)
    _check_transform(values, path)
    _check_numbers_of_kind(values, path)
    try:
        parse_drop(values.get(("evaluator", "drop"), 0))
    except ValueError as error:
        drop = values["evaluator", "drop"]
        rule = "a number of points (1.0) or per cent of the original metric in quotes ('1 %')"
        raise StudyError(f"'evaluator.drop' must be {rule}. Got {drop!r} instead.", path=path) from error


def _check_keys_of_kind(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Check that the keys are of the kind, and that those are there which it cannot do without."""
    kind = values["evaluator", "kind"]
    of_some = {key for cls in KINDS.values() for key in cls.keys}
    for table, key in values:
        own = _KEY_OF_KIND.get((table, key), "detections" if table == "evaluator.detections" else key)
        is_special = table in ("evaluator", "evaluator.detections") or (table, key) in _KEY_OF_KIND
        if is_special and own in of_some and own not in KINDS[kind].keys:
            takers = [name for name, cls in KINDS.items() if own in cls.keys]
            which = f"kind {takers[0]}" if len(takers) == 1 else f"the kinds {', '.join(takers)}"
            raise StudyError(f"'{_dotted(table, key)}' belongs to {which}; '{kind}' does not take it", path=path)
    for place, what in _NEEDED.get(kind, {}).items():
        if place not in values:
            raise StudyError(f"'{_dotted(*place)}' is missing: kind '{kind}' needs {what}", path=path)


_KEY_OF_KIND: Mapping[tuple[str, str], str] = {
    **{(f"evaluator.{table}", "labels"): "labels" for table in ("data", "calibration")},
    ("evaluator.detections", "annotations"): "annotations",
}
"""Keys in tables of their own that some kinds take, by the names in `ImageEvaluator.keys`."""
_NEEDED: Mapping[str, Mapping[tuple[str, str], str]] = {
    "miou": {("evaluator.data", "labels"): "the folder of the masks"},
    "map": {("evaluator.detections", "annotations"): "a folder of VOC's XML files, or a COCO JSON file"},
}


def _check_numbers_of_kind(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Check the values of the keys that only some kinds take."""
    classes = values.get(("evaluator", "classes"), [0])
    rules = {
        "outputs": (_are_names(values.get(("evaluator", "outputs"), ["any"])), "a list of names of blobs"),
        "classes": (bool(classes) and all(type(one) is int and one >= 0 for one in classes), "a list of class numbers"),
        "snr": (values.get(("evaluator", "snr"), 1) > 0, "a positive number of decibels"),
        "cosine": (0 < values.get(("evaluator", "cosine"), 0.5) < 1, "between 0 and 1"),
        "ignore": (values.get(("evaluator", "ignore"), 0) >= 0, "a value of pixels"),
    }
    broken = {("evaluator", key): rule for key, (holds, rule) in rules.items() if not holds}
    for table, key in values:
        if table == "evaluator.detections" and (rule := broken_detection_rule(key, values[table, key])):
            broken[table, key] = rule
    for place, rule in broken.items():
        raise StudyError(f"'{_dotted(*place)}' must be {rule}. Got {values[place]!r} instead.", path=path)
    limits = [key for key in ("snr", "cosine") if ("evaluator", key) in values]
    measure = values.get(("evaluator", "measure"), limits[0] if limits else "snr")
    if limits not in ([], [measure]):
        raise StudyError(f"'evaluator.{limits[-1]}' is no limit of the measure '{measure}'; remove one", path=path)


def _are_names(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


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
