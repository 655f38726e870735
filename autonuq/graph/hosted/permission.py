"""Whether `Python` layers may run: their code is the file's, not this package's, so that somebody has to say so.

A prototxt names a module and a class, and to execute the layer means to import the one and to call the other: any file
beside the prototxt, and anything that is installed. Permission is given for a process, by a command's option, a study
file's key or a call, and never by what is read: neither a network nor a storage can give it. The layers of
`autonuq_layers` need none: they are this package's own, and are taken from it, whatever lies beside the prototxt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path

from autonuq.errors import ModelError
from autonuq.graph.model import Graph, Layer

OWN_MODULE = "autonuq_layers"
OWN_CLASSES = ("Quant", "DeQuant", "IFMR", "HFMG")

_is_allowed = False


def allow_python_layers() -> None:
    """Let networks run their own `Python` layers in this process from now on: code that a prototxt names.

    Notes
    -----
    Workers and processes that a study of this process starts may do so, too; others say it themselves.
    """
    _set(True)


def python_layers_allowed() -> bool:
    """Say whether this process may run them."""
    return _is_allowed


@contextmanager
def python_layers(allowed: bool) -> Iterator[None]:
    """Allow them for the time, if `allowed`; what is allowed already stays so."""
    before = _is_allowed
    _set(before or allowed)
    try:
        yield
    finally:
        _set(before)


def _set(allowed: bool) -> None:
    global _is_allowed
    _is_allowed = allowed


def is_own(layer: Layer) -> bool:
    """Say whether a `Python` layer is one of those that this package writes."""
    parameters = layer.message.python_param
    return parameters.module == OWN_MODULE and parameters.layer in OWN_CLASSES


def is_refused(layer: Layer) -> bool:
    """Say whether a layer would run code that nobody has allowed."""
    return layer.type == "Python" and not is_own(layer) and not _is_allowed


def check_permission(graph: Graph) -> None:
    """Refuse a network that is about to be run, if one of its layers may not.

    Raises
    ------
    ModelError
        See `refusal`.
    """
    for layer in graph.layers:
        if is_refused(layer):
            raise refusal(layer, graph.path)


def refusal(layer: Layer, path: Path | None) -> ModelError:
    """Make the error that says what would have been run, and how to allow it."""
    parameters = layer.message.python_param
    where = _place_of(parameters.module, path)
    return ModelError(
        f"type 'Python' would run class '{parameters.layer}' of module '{parameters.module}' ({where}), code that the "
        "prototxt names; where you trust it, allow it: --allow-python-layers, 'allow_python_layers = true' under "
        "[model] in the study file, or autonuq.allow_python_layers() in Python",
        path=path,
        layer=layer.name,
    )


def _place_of(module: str, path: Path | None) -> str:
    """Say where a module would come from, without running any of it: not even a package that it is in."""
    if module.partition(".")[0] in sys.builtin_module_names:
        return "built into Python"
    beside = [] if path is None else [str(path.resolve().parent)]
    found = _found(module, [*sys.path, *beside])
    if found is None:
        return "not found"
    return found.origin or ", ".join(found.submodule_search_locations or [])


def _found(module: str, places: list[str]) -> ModuleSpec | None:
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            spec = PathFinder.find_spec(name, places) or FrozenImporter.find_spec(name)
        except (ImportError, ValueError):  # a name that no file can have
            return None
        if spec is None or (count < len(parts) and not spec.submodule_search_locations):
            return None
        places = list(spec.submodule_search_locations or [])
    return spec
