"""Reading files that may be damaged, or made to do damage: whatever their content causes is one error that names them.

Libraries raise what they like about a file's content: `zlib.error`, `struct.error`, `SyntaxError`, `RecursionError`,
`MemoryError`. Each reader puts `reading` around what it asks of them, once, and nothing else into it: an exception of
our own code is no fault of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autonuq.errors import AutonuqError


@contextmanager
def reading(
    path: str | Path, kind: type[AutonuqError], fault: str, *, what: str = "", layer: str | None = None
) -> Iterator[None]:
    """Turn whatever a file's content causes inside into an error that names the file.

    Parameters
    ----------
    path : str or Path
        Of the file.
    kind : type of AutonuqError
        What is raised; one of ours that comes from inside goes through as it is.
    fault : str
        What is wrong with a file that raises, e.g. ``"is no record file"``; what the library says comes behind it.
    what : str, optional
        What the file is, in front of either sentence, e.g. ``"mean file"``.
    layer : str, optional
        Which it was read for.

    Raises
    ------
    AutonuqError
        Of that kind: the file cannot be opened or read, or its content raised something.

    Examples
    --------
    >>> with reading("a.txt", AutonuqError, "holds no number", what="length file"):
    ...     int("x")
    Traceback (most recent call last):
    ...
    autonuq.errors.AutonuqError: a.txt: length file holds no number: invalid literal for int() with base 10: 'x'
    """
    subject = f"{what} " if what else ""
    try:
        yield
    except AutonuqError:
        raise
    except OSError as error:
        said = f"cannot be read: {error.strerror}" if error.strerror else f"{fault}: {_reason(error)}"
        raise kind(f"{subject}{said}", path=path, layer=layer) from error
    except MemoryError as error:
        raise kind(f"{subject}{fault}: it asks for more memory than there is", path=path, layer=layer) from error
    except RecursionError as error:
        raise kind(f"{subject}{fault}: it is nested too deeply", path=path, layer=layer) from error
    except Exception as error:
        raise kind(f"{subject}{fault}: {_reason(error)}", path=path, layer=layer) from error


def _reason(error: Exception) -> str:
    """Return what a library says, or the name of what it raised where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
