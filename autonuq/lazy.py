"""Packages that load what they offer when it is first used (PEP 562), so that importing them costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(package: str, owners: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package.

    Parameters
    ----------
    package : str
        Its `__name__`.
    owners : mapping of str to str
        Every name that it offers -> the module that the name is in, or that it is. The package's other modules can be
        had as attributes, too, as if they were imported already.

    Returns
    -------
    tuple of two callables
    """

    def load(name: str) -> Any:
        module = owners.get(name, f"{package}.{name}")
        is_module = module == f"{package}.{name}"
        if is_module and (name.startswith("__") or find_spec(module) is None):
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = import_module(module) if is_module else getattr(import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *owners})

    return load, names
