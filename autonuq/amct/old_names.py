"""Names that scripts for AMCT take for granted, of the time of Python 3.7 and NumPy 1.16, and that are gone today.

`restore_old_names` gives them back to a process that is a script's own. What the installed packages still have is left
alone. Methods of built-in types (`ndarray.tostring`, `Element.getchildren`) cannot be given back.
"""

from __future__ import annotations

import collections.abc
import math
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import numpy as np

OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    "numpy": {
        **{name: f"builtins:{name}" for name in ("bool", "complex", "float", "int", "object", "str")},
        "long": "builtins:int",
        "unicode": "builtins:str",
        "bool8": "numpy:bool_",
        "int0": "numpy:intp",
        "uint0": "numpy:uintp",
        "float_": "numpy:float64",
        "complex_": "numpy:complex128",
        "longfloat": "numpy:longdouble",
        "object0": "numpy:object_",
        "string_": "numpy:bytes_",
        "unicode_": "numpy:str_",
        **dict.fromkeys(("Inf", "Infinity", "infty", "PINF"), "numpy:inf"),
        "NINF": "autonuq.amct.old_names:_NINF",
        **dict.fromkeys(("NaN", "NAN"), "numpy:nan"),
        "alltrue": "numpy:all",
        "sometrue": "numpy:any",
        "product": "numpy:prod",
        "cumproduct": "numpy:cumprod",
        "mat": "numpy:asmatrix",
        "rank": "numpy:ndim",
        "round_": "numpy:round",
        "row_stack": "numpy:vstack",
        "trapz": "numpy:trapezoid",
        "asfarray": "autonuq.amct.old_names:_asfarray",
        "asscalar": "autonuq.amct.old_names:_asscalar",
        "in1d": "autonuq.amct.old_names:_in1d",
        "msort": "autonuq.amct.old_names:_msort",
        "math": "math",
        "warnings": "warnings",
        **{
            name: f"numpy.exceptions:{name}"
            for name in ("AxisError", "ComplexWarning", "RankWarning", "VisibleDeprecationWarning")
        },
    },
    "PIL.Image": {"ANTIALIAS": "PIL.Image:LANCZOS", "LINEAR": "PIL.Image:BILINEAR", "CUBIC": "PIL.Image:BICUBIC"},
    "base64": {"decodestring": "base64:decodebytes", "encodestring": "base64:encodebytes"},
    "collections": {name: f"collections.abc:{name}" for name in collections.abc.__all__},
    "fractions": {"gcd": "math:gcd"},
    "time": {"clock": "time:process_time"},
    "xml.etree": {"cElementTree": "xml.etree.ElementTree"},
}
"""Module -> name that it had -> what the notes of the release that took it away name as its equivalent."""

_NINF = -math.inf
_fromstring: Any = np.fromstring


def restore_old_names() -> None:
    """Give this process the names of `OLD_NAMES` that its packages lack, and `np.fromstring` its binary mode."""
    for module, names in OLD_NAMES.items():
        owner = import_module(module)
        for name, equivalent in names.items():
            if not _has(owner, name):
                value = resolve_name(equivalent)
                setattr(owner, name, value)
                if isinstance(value, ModuleType):
                    sys.modules[f"{module}.{name}"] = value
    if not _reads_bytes():
        vars(np)["fromstring"] = _fromstring_of_bytes


def _has(owner: ModuleType, name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is going to be gone
        return hasattr(owner, name)


def _reads_bytes() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _fromstring(b"\0", np.uint8)
        except ValueError:
            return False
        return True


def _fromstring_of_bytes(
    string: bytes | str, dtype: Any = float, count: int = -1, *, sep: str = "", **options: Any
) -> Any:
    """Read numbers from bytes, as NumPy did up to 2.2, or from text, which it still does."""
    if sep:
        return _fromstring(string, dtype, count, sep=sep, **options)
    content = string.encode("latin-1") if isinstance(string, str) else string
    return np.frombuffer(content, dtype, count, **options).copy()


def _asfarray(a: Any, dtype: Any = np.float64) -> Any:
    return np.asarray(a, dtype if np.issubdtype(dtype, np.inexact) else np.float64)


def _asscalar(a: Any) -> Any:
    return a.item()


def _in1d(ar1: Any, ar2: Any, assume_unique: bool = False, invert: bool = False) -> Any:
    return np.isin(np.ravel(ar1), ar2, assume_unique=assume_unique, invert=invert)


def _msort(a: Any) -> Any:
    return np.sort(a, axis=0)
