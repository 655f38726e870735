"""What an evaluator's code is where no file holds it: typed into a notebook, at a prompt, or given to `exec`.

Its text counts where a notebook or a newer Python keeps it, its bytecode elsewhere. So do the functions and classes of
the same kind that it names, wherever they were typed, and what its functions enclose. The values of other names do not:
data, flags and counters of a notebook come and go between two runs of a study.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import hashlib
import inspect
import linecache
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from autonuq.evaluate.sending import is_installed

_CACHED: Any = type(functools.cache(len))
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type(...))


def source_file(cls: type) -> Path | None:
    """Return the file that defines a class, None for one that was typed in."""
    try:
        source = inspect.getsourcefile(cls)
    except (TypeError, OSError):  # OSError: typed in at a prompt
        return None
    places = {function.__code__.co_filename for function in _own_functions(cls)}
    if places and not any(Path(place).is_file() for place in places):  # in the namespace of a module that has a file
        return None
    return Path(source) if source and Path(source).is_file() else None


def typed_code(cls: type) -> str:
    """Return a text that is the same for the same code, in whatever process it was typed in."""
    reading = _Reading()
    reading.read_class(cls)
    return "\n".join(reading.parts)


class _Reading:
    """Collects what a class is made of; each thing once."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: set[int] = set()

    def read_class(self, cls: type) -> None:
        """Read the class and the classes that it is derived from."""
        for base in cls.__mro__:
            file = None if base is cls else source_file(base)
            if _is_typed_in(base):
                self._read_own(base)
            elif file is not None and not is_installed(str(file)):
                self._say("file", hashlib.sha256(file.read_bytes()).hexdigest())
            else:
                self._say("class", f"{base.__module__}.{base.__qualname__}")

    def _read_own(self, cls: type) -> None:
        """Read what stands in the class itself."""
        if self._is_known(cls):
            return
        text = _class_text(cls)
        self._say("class", cls.__qualname__ if text is None else text)
        functions = list(_own_functions(cls))
        assigned = {name for function in functions for name in _names(function.__code__, "STORE_ATTR")}
        for name, value in sorted(vars(cls).items()):
            if text is None and name not in assigned and not name.startswith("__"):
                self._read(name, value)
        for function in functions:
            self._read_function(function, is_said=text is not None and _is_within(function, cls))

    def _read_function(self, function: FunctionType, *, is_said: bool = False) -> None:
        """Read a function and what it uses; `is_said`: its text stands in that of its class."""
        if self._is_known(function):
            return
        code = function.__code__
        if not is_said:
            self._say("function", _function_text(function) or _say_code(code))
        for value in function.__defaults__ or ():
            self._read("default", value)
        for name, value in sorted((function.__kwdefaults__ or {}).items()):
            self._read(name, value)
        for name, value in sorted(_enclosed(function)):
            self._read(name, value)
        for name in sorted(set(_names(code, "LOAD_GLOBAL", "LOAD_NAME"))):
            value = _unwrapped(function.__globals__.get(name))
            if isinstance(value, FunctionType | type | functools.partial):
                self._read(name, value)

    def _read(self, name: str, value: Any) -> None:
        """Read what a name stands for; of what is neither code nor a constant, nothing."""
        value = _unwrapped(value)
        if isinstance(value, FunctionType):
            if _is_typed_in(value):
                self._read_function(value)
            else:
                self._say(name, f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, type):
            if _is_typed_in(value):
                self.read_class(value)
            else:
                self._say(name, f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, property):
            for function in filter(None, (value.fget, value.fset, value.fdel)):
                self._read(name, function)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *(value.keywords[key] for key in sorted(value.keywords))):
                self._read(name, part)
        elif _is_constant(value):
            self._say(name, _say_constant(value))

    def _is_known(self, thing: object) -> bool:
        known = id(thing) in self._seen
        self._seen.add(id(thing))
        return known

    def _say(self, name: str, text: str) -> None:
        self.parts.append(f"{name}: {text}")


def _own_functions(cls: type) -> Iterator[FunctionType]:
    """Yield the functions of a class, by their names, as they were before a decorator of Python's own."""
    for _, value in sorted(vars(cls).items()):
        value = _unwrapped(value)
        parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        yield from (part for part in parts if isinstance(part, FunctionType))


def _unwrapped(value: Any) -> Any:
    """Return what is inside of a method, or behind a cache."""
    if isinstance(value, functools.cached_property):
        return value.func
    if isinstance(value, _CACHED):
        return value.__wrapped__
    return getattr(value, "__func__", value) if isinstance(value, staticmethod | classmethod) else value


def _enclosed(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function has of the one around it, by name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _is_typed_in(thing: FunctionType | type) -> bool:
    """Say whether code stands in no file, and is not Python's own either."""
    if isinstance(thing, FunctionType):
        name = thing.__code__.co_filename
        return not name.startswith("<frozen ") and not Path(name).is_file()
    return getattr(builtins, thing.__name__, None) is not thing and source_file(thing) is None


def _is_within(function: FunctionType, cls: type) -> bool:
    """Say whether a function was typed in as a part of the class."""
    return function.__qualname__.startswith(f"{cls.__qualname__}.")


def _class_text(cls: type) -> str | None:
    """Return the text of a class as it was typed in, None where nobody kept it.

    `inspect` refuses classes of `__main__` before Python 3.13; the lines are known by the file name of their functions.
    """
    for function in _own_functions(cls):
        lines = linecache.getlines(function.__code__.co_filename)
        if not lines or not _is_within(function, cls):
            continue
        text, line = "".join(lines), function.__code__.co_firstlineno
        try:
            found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
        except SyntaxError:
            continue
        around = [one for one in found if one.name == cls.__name__ and one.lineno <= line <= (one.end_lineno or 0)]
        if around:
            first = min([around[-1].lineno, *(decorator.lineno for decorator in around[-1].decorator_list)])
            return "".join(lines[first - 1 : around[-1].end_lineno])
    return None


def _function_text(function: FunctionType) -> str | None:
    """Return the text of a function as it was typed in; none of a lambda, which shares its lines with others."""
    if function.__name__ == "<lambda>":
        return None
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return text if f"def {function.__name__}" in text else None  # "<string>" is the file name of many


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code and that of every function, class and comprehension within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType, *operations: str) -> Iterator[str]:
    """Yield the names that the operations have, with those of the code within."""
    for part in _codes(code):
        yield from (one.argval for one in dis.get_instructions(part) if one.opname in operations)


def _say_code(code: CodeType) -> str:
    """Put bytecode into words that do not depend on where it was compiled, and in which process."""
    constants = [
        _say_code(constant) if isinstance(constant, CodeType) else _say_constant(constant)
        for constant in code.co_consts
    ]
    names = (*code.co_names, *code.co_varnames, *code.co_freevars)
    return f"{code.co_name} {code.co_code.hex()} {names} [{', '.join(constants)}]"


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_constant, value))
    return isinstance(value, _CONSTANTS)


def _say_constant(value: object) -> str:
    """Write a constant; the order of a set changes with the process."""
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_say_constant, value)))}}}"
    return f"({', '.join(map(_say_constant, value))})" if isinstance(value, tuple) else repr(value)
