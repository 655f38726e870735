"""The few loops that arrays cannot say, compiled when they are first called.

numba is loaded then and no earlier: most commands need no such loop. What it compiled is kept on disk where that can be
written, so that one process in the life of an installation waits for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, update_wrapper
from types import FunctionType
from typing import Any, TypeVar, cast

Loop = TypeVar("Loop", bound=Callable[..., Any])
_MACHINE_CODE = "machine_code"


def compiled(loop: Loop) -> Loop:
    """Compile a function of arrays and numbers at its first call, for the types that it is called with.

    Of ours the function calls nothing but other compiled functions of its module. It runs without Python's lock, and
    its arithmetic is IEEE 754's, in the order that is written.
    """

    @cache
    def machine_code() -> Callable[..., Any]:
        import numba

        function = _with_machine_code(cast(FunctionType, loop))
        try:
            return cast(Callable[..., Any], numba.njit(nogil=True, cache=True, inline="always")(function))
        except RuntimeError:  # neither the installation nor the user's folder can be written
            return cast(Callable[..., Any], numba.njit(nogil=True, inline="always")(function))

    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    setattr(call, _MACHINE_CODE, machine_code)
    return cast(Loop, update_wrapper(call, loop))


def _with_machine_code(function: FunctionType) -> FunctionType:
    """Return the function with the machine code of the compiled functions that it names."""
    known = function.__globals__
    named = {name: known[name] for name in function.__code__.co_names if hasattr(known.get(name), _MACHINE_CODE)}
    if not named:
        return function
    found = {name: getattr(value, _MACHINE_CODE)() for name, value in named.items()}
    copy = FunctionType(function.__code__, {**known, **found}, function.__name__, function.__defaults__)
    return cast(FunctionType, update_wrapper(copy, function))
