"""How an evaluator gets into a process elsewhere, where the installed packages are and nothing else.

One of a file is sent as that file, with the modules beside it that it imported, and is made anew there; any other is
sent by value: its class with all that it uses of the user's own modules, which nobody can import there.
"""

from __future__ import annotations

import atexit
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from autonuq.atomic import temporary_folder
from autonuq.errors import EvaluatorError
from autonuq.file_names import RULE, file_below

_HERE = Path(__file__).parent.parent


def _made_cached_property(function: Any, name: str | None) -> cached_property[Any]:
    made: cached_property[Any] = cached_property(function)
    made.attrname = name
    return made


def _made_cache(function: Any, parameters: Mapping[str, Any]) -> Any:
    return lru_cache(**parameters)(function)


def _reduce_cache(cached: Any) -> Any:
    """Pickle a function behind a cache by value, as cloudpickle does with others of a prompt or of the user's."""
    module = cached.__module__
    by_name = getattr(sys.modules.get(module), cached.__qualname__, None) is cached
    if by_name and module not in {"__main__", *cloudpickle.list_registry_pickle_by_value()}:
        return cached.__reduce__()
    return _made_cache, (cached.__wrapped__, cached.cache_parameters())


# What cloudpickle, joblib's, too, leaves out: before Python 3.12 a cached property has a lock, and a cache is sent as a
# name that nobody knows there.
cloudpickle.CloudPickler.dispatch_table[cached_property] = lambda made: (
    _made_cached_property,
    (made.func, made.attrname),
)
cloudpickle.CloudPickler.dispatch_table[type(cache(len))] = _reduce_cache


def read_own_files(main: Path) -> dict[str, bytes]:
    """Return a file of the user's and the modules that it has imported from its folder: the name there -> content.

    The file is given by an absolute path without links.
    """
    folder = main.parent
    beside = [path for path in map(_users_file, list(sys.modules.values())) if path and path.is_relative_to(folder)]
    files = {main, *filter(Path.is_file, beside)}  # some were there only while they were loaded
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def arrived_file(main: Path, files: Mapping[str, bytes]) -> Path:
    """Return where a file lies that was sent with its modules: in its place, if it is the same, or in a new folder.

    Raises
    ------
    EvaluatorError
        One of the names would leave the folder.
    """
    folder = main.parent
    for name in files:
        if file_below(folder, name) is None:
            raise EvaluatorError(f"{name!r}, sent with the evaluator, is no file of its folder: {RULE}", path=main)
    if all((folder / name).is_file() and (folder / name).read_bytes() == content for name, content in files.items()):
        return main
    kept = ExitStack()
    place = kept.enter_context(temporary_folder())
    atexit.register(kept.close)
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place / main.name


def dumps_by_value(thing: Any) -> bytes:
    """Pickle something with all that it uses of the user's modules; installed packages are named only.

    Raises
    ------
    Exception
        Whatever pickling the user's objects raises.
    """
    modules = {module.__name__: module for module in list(sys.modules.values()) if _users_file(module)}
    known = {"__main__", *cloudpickle.list_registry_pickle_by_value()}  # those are sent by value anyway
    own = [module for name, module in modules.items() if name not in known and name in sys.modules]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        content: bytes = cloudpickle.dumps(thing)
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)
    return content


def _users_file(module: ModuleType) -> Path | None:
    """Return the file of a module that is no installed package's and not ours; None elsewhere."""
    name = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    if not isinstance(name, str) or not name.endswith(".py"):
        return None
    return None if is_installed(name) else Path(name).resolve()


@cache
def is_installed(name: str) -> bool:
    """Say whether a file is of Python, of a package that is installed, or of this one."""
    path = Path(name).resolve()
    places = [_HERE, *(Path(place).resolve() for key, place in sysconfig.get_paths().items() if "lib" in key)]
    packages = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(packages) or any(path.is_relative_to(place) for place in places)
