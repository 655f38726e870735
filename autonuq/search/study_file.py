"""Study files: TOML that says what to tune; relative paths are relative to the file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from autonuq.compress import ModelPair
from autonuq.errors import StudyError
from autonuq.quant.codecs import CODEC_NAMES
from autonuq.search.sampler import SAMPLERS
from autonuq.search.storage import absolute_url, default_url

_KEYS: Mapping[str, Mapping[str, type]] = {
    "": {"name": str, "out": str},
    "model": {"prototxt": str, "weights": str},
    "evaluator": {"class": str, "evaluate_batch_num": int},
    "quantization": {"cfg": str, "batch_num": int, "activation_offset": bool, "codec": str},
    "search": {"trials": int, "sampler": str, "storage": str, "seed": int, "artifacts": str},
}
_REQUIRED = (
    ("", "name"),
    ("model", "prototxt"),
    ("model", "weights"),
    ("evaluator", "class"),
    ("evaluator", "evaluate_batch_num"),
)


@dataclass(frozen=True)
class StudyFile:
    """A checked study file.

    Attributes
    ----------
    path : Path
    name : str
    source : ModelPair
    evaluator : str
        `file.py:Class` or `package.module:Class`.
    evaluate_batch_num : int
    cfg : Path or None
        AMCT's simplified configuration; then `batch_num` and `activation_offset` come from there.
    batch_num : int
    activation_offset : bool
    codec, sampler : str
    trials, seed : int
    storage : str
        URL with absolute paths.
    artifacts : str
        Folder or `s3://bucket/prefix`; empty for a folder in `out`.
    out : Path
    """

    path: Path
    name: str
    source: ModelPair
    evaluator: str
    evaluate_batch_num: int
    cfg: Path | None
    batch_num: int
    activation_offset: bool
    codec: str
    sampler: str
    trials: int
    seed: int
    storage: str
    artifacts: str
    out: Path


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
        evaluator=values["evaluator", "class"],
        evaluate_batch_num=values["evaluator", "evaluate_batch_num"],
        cfg=folder / cfg if cfg else None,
        batch_num=values.get(("quantization", "batch_num"), 1),
        activation_offset=values.get(("quantization", "activation_offset"), True),
        codec=values.get(("quantization", "codec"), "entropy"),
        sampler=values.get(("search", "sampler"), "rate-distortion"),
        trials=values.get(("search", "trials"), 40),
        seed=values.get(("search", "seed"), 0),
        storage=absolute_url(storage, Path.cwd()) if storage else file_url,
        artifacts=_location(artifacts, Path.cwd()) or _location(values.get(("search", "artifacts")), folder),
        out=target,
    )


def _location(artifacts: str | None, folder: Path) -> str:
    if not artifacts or "://" in artifacts:
        return artifacts or ""
    return str((folder / artifacts).resolve())


def _checked(tables: Mapping[str, Any], path: Path) -> dict[tuple[str, str], Any]:
    """Flatten the tables to (table, key) -> value after checking every name and kind."""
    values: dict[tuple[str, str], Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            _known(key, [table for table in _KEYS if table], path, "table")
            values.update({(key, inner): entry for inner, entry in value.items()})
        else:
            values["", key] = value
    for (table, key), value in values.items():
        _known(key, list(_KEYS[table]), path, f"key of [{table}]" if table else "key")
        wanted = _KEYS[table][key]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise StudyError(f"'{_dotted(table, key)}' must be a {wanted.__name__}. Got {value!r} instead.", path=path)
    for table, key in _REQUIRED:
        if (table, key) not in values:
            raise StudyError(f"'{_dotted(table, key)}' is missing", path=path)
    _check_values(values, path)
    return values


def _check_values(values: Mapping[tuple[str, str], Any], path: Path) -> None:
    for place in (("evaluator", "evaluate_batch_num"), ("quantization", "batch_num"), ("search", "trials")):
        if values.get(place, 1) < 1:
            raise StudyError(f"'{_dotted(*place)}' must be positive. Got {values[place]} instead.", path=path)
    for place, choices in ((("quantization", "codec"), CODEC_NAMES), (("search", "sampler"), SAMPLERS)):
        if place in values and values[place] not in choices:
            raise StudyError(
                f"'{_dotted(*place)}' must be one of {', '.join(choices)}. Got '{values[place]}' instead.", path=path
            )
    if ("quantization", "cfg") in values:
        extra = [key for key in ("batch_num", "activation_offset") if ("quantization", key) in values]
        if extra:
            raise StudyError(f"'quantization.{extra[0]}' comes from the cfg file; remove it here", path=path)


def _known(name: str, known: list[str], path: Path, kind: str) -> None:
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise StudyError(f"unknown {kind} '{name}'; {hint}", path=path)


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key
