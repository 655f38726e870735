"""Plain data, as JSON has it, read back as the dataclasses that it was made from: one edge for all that is stored.

What stands in a storage or a file may have been damaged, or edited by hand. Here it is compared with the type hints of
the dataclass that it shall become, once, so that nobody behind has to wonder what a field holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

ANY_NUMBER: Mapping[str, bool] = types.MappingProxyType({"any number": True})
"""Metadata of a dataclass's field: infinities and NaN, which are refused elsewhere, are among what it may hold."""

_DIGEST = "digest"
_SHOWN = 60  # characters of a value in a message
_LARGEST_INT = 1 << 63


def from_plain(kind: type[T] | Any, data: Any, name: str = "it", *, retired: Sequence[str] = ()) -> T:
    """Return plain data as what a type hint says.

    Parameters
    ----------
    kind : type
        A dataclass, or a hint made of dataclasses, str, int, float, bool, None, Literal, unions, tuples, sequences
        and mappings of str; `Any` takes all.
    data : object
        What `json.loads` returns, or `dataclasses.asdict`.
    name : str
        What messages call it.
    retired : sequence of str
        Keys of a dataclass that earlier versions wrote and nobody reads any more.

    Raises
    ------
    ValueError
        A field is missing, unknown, of another type, not finite or beyond 64 bits.

    Examples
    --------
    >>> from autonuq.records import Unit
    >>> from_plain(Unit, {"name": "points", "factor": 100})
    Unit(name='points', factor=100.0, samples='samples')
    """
    found: T = _read(kind, data, name, any_number=False, retired=retired)
    return found


def plain_digest(data: Any) -> str:
    """Return the SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with their digest among them."""
    return {**data, _DIGEST: plain_digest(data)}


def without_digest(data: Mapping[str, Any], name: str = "it") -> dict[str, Any]:
    """Return what `with_digest` was given; data without a digest are of a version that wrote none.

    Raises
    ------
    ValueError
        They are not what they were.
    """
    own = {key: value for key, value in data.items() if key != _DIGEST}
    if data.get(_DIGEST, plain_digest(own)) != plain_digest(own):
        raise ValueError(f"{name} is not what was stored")
    return own


def _read(kind: Any, data: Any, name: str, *, any_number: bool, retired: Sequence[str] = ()) -> Any:
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _read_dataclass(kind, data, name, retired)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(parts, data, name, any_number)
    if origin is Literal:
        if not any(data is part or (type(data) is type(part) and data == part) for part in parts):
            raise _wrong(name, f"one of {', '.join(map(repr, parts))}", data)
        return data
    if origin is not None and issubclass(origin, Mapping):
        return _read_mapping(parts[1], data, name, any_number)
    if origin is not None and issubclass(origin, Sequence):
        return _read_sequence(origin, parts, data, name, any_number)
    return _read_scalar(kind, data, name, any_number)


def _read_dataclass(kind: Any, data: Any, name: str, retired: Sequence[str]) -> Any:
    own = _fields(kind)
    if not isinstance(data, Mapping):
        raise _wrong(name, f"an object with the fields of {kind.__name__}", data)
    if unknown := next((key for key in data if key not in own and key not in retired), None):
        raise ValueError(f"{name} has an unknown field {_shown(unknown)}; was it written by a newer version?")
    values = {}
    for key, field in own.items():
        if key in data:
            values[key] = _read(field.hint, data[key], f"{name}.{key}", any_number=field.any_number)
        elif not field.has_default:
            raise ValueError(f"{name} has no field '{key}'")
    return kind(**values)


class _Field(NamedTuple):
    hint: Any
    any_number: bool
    has_default: bool


@cache
def _fields(kind: Any) -> dict[str, _Field]:
    """Return what there is to know of a dataclass's fields, by their names."""
    hints = get_type_hints(kind)
    return {
        one.name: _Field(
            hints[one.name],
            "any number" in one.metadata,
            one.default is not MISSING or one.default_factory is not MISSING,
        )
        for one in fields(kind)
    }


def _read_union(parts: Sequence[Any], data: Any, name: str, any_number: bool) -> Any:
    if data is None and type(None) in parts:
        return None
    kinds = [part for part in parts if part is not type(None)]
    for kind in kinds[:-1]:
        try:
            return _read(kind, data, name, any_number=any_number)
        except ValueError:
            continue
    return _read(kinds[-1], data, name, any_number=any_number)


def _read_mapping(kind: Any, data: Any, name: str, any_number: bool) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise _wrong(name, "an object", data)
    if kind is Any:
        return dict(data)
    return {key: _read(kind, value, f"{name}[{_shown(key)}]", any_number=any_number) for key, value in data.items()}


def _read_sequence(origin: Any, parts: Sequence[Any], data: Any, name: str, any_number: bool) -> Any:
    if not isinstance(data, list | tuple):
        raise _wrong(name, "a list", data)
    is_even = origin is not tuple or parts[-1] is Ellipsis
    if not is_even and len(data) != len(parts):
        raise _wrong(name, f"a list of {len(parts)}", data)
    kinds = [parts[0]] * len(data) if is_even else parts
    read = (
        _read(kind, one, f"{name}[{index}]", any_number=any_number)
        for index, (kind, one) in enumerate(zip(kinds, data, strict=True))
    )
    return tuple(read) if origin is tuple else list(read)


def _read_scalar(kind: Any, data: Any, name: str, any_number: bool) -> Any:
    if kind is float:
        return _read_number(data, name, any_number)
    if kind is int and (not isinstance(data, int) or isinstance(data, bool) or abs(data) >= _LARGEST_INT):
        raise _wrong(name, "a whole number of at most 64 bits", data)
    if not isinstance(data, kind):
        raise _wrong(name, {str: "a text", bool: "true or false"}.get(kind, kind.__name__), data)
    return data


def _read_number(data: Any, name: str, any_number: bool) -> float:
    if isinstance(data, int | float) and not isinstance(data, bool):
        try:
            number = float(data)
        except OverflowError:
            number = math.nan
        if math.isfinite(number) or (any_number and isinstance(data, float)):
            return number
    raise _wrong(name, "a finite number", data)


def _wrong(name: str, rule: str, data: Any) -> ValueError:
    return ValueError(f"{name} must be {rule}. Got {_shown(data)} instead.")


def _shown(data: Any) -> str:
    """Return a value in a few characters, without writing out what is long."""
    if isinstance(data, int) and not isinstance(data, bool) and data.bit_length() > 200:
        return f"a number of {data.bit_length()} bits"
    if isinstance(data, list | tuple | dict):
        return f"{type(data).__name__} of {len(data)}"
    text = repr(data[:_SHOWN] if isinstance(data, str) else data)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
