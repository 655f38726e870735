"""The few loops that arrays cannot say, compiled when they are first called.

numba is loaded then and no earlier: most commands need no such loop. What it compiled is kept on disk where that can be
written, so that one process in the life of an installation waits for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any, TypeVar, cast

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """Compile a function of arrays and numbers at its first call, for the types that it is called with.

    The function calls nothing of ours: what is not compiled yet cannot be called from compiled code. It runs without
    Python's lock, and its arithmetic is IEEE 754's, in the order that is written.
    """

    @cache
    def machine_code() -> Callable[..., Any]:
        import numba

        try:
            return cast(Callable[..., Any], numba.njit(nogil=True, cache=True)(loop))
        except RuntimeError:  # neither the installation nor the user's folder can be written
            return cast(Callable[..., Any], numba.njit(nogil=True)(loop))

    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    return cast(Loop, update_wrapper(call, loop))
