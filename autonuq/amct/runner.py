"""Run a script written for AMCT as Python itself would, in the world that it was written for."""

from __future__ import annotations

import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType

from autonuq.amct.imports import install
from autonuq.amct.old_names import restore_old_names
from autonuq.atomic import is_out_of_room, say_system_error
from autonuq.errors import AutonuqError, WriteFailure

SCRIPT_VARIABLE = "AUTONUQ_AMCT_SCRIPT"
"""Environment variable that tells `spawned` the script's absolute path."""


def prepare() -> None:
    """Make this process one in which scripts for AMCT run: `caffe`, `amct_caffe` and the names of their time."""
    install()
    restore_old_names()


def run_script(script: Path) -> None:
    """Run a script, whose arguments are in `sys.argv` behind its name; an error of ours is one line.

    Notes
    -----
    The script becomes `__main__`, with the `__spec__` of `spawned`: from that, `multiprocessing` knows what a process
    that is not forked has to import in its place.
    """
    prepare()
    os.environ[SCRIPT_VARIABLE] = str(script.resolve())
    sys.path[0] = str(script.resolve().parent)
    main = ModuleType("__main__")
    vars(main).update(__file__=str(script.absolute()), __spec__=find_spec("autonuq.amct.spawned"))
    sys.modules["__main__"] = main
    try:
        exec(code_of(script), vars(main))
    except AutonuqError as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
        where = f" ({script}, line {own[-1].lineno})" if own else ""
        sys.stderr.write(f"error: {error}{where}\n")
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        if not is_out_of_room(error):
            raise  # the script's own business
        sys.stderr.write(f"error: {say_system_error(error)}\n")
        raise SystemExit(WriteFailure.exit_code) from error


def code_of(script: Path) -> CodeType:
    """Compile a script; its frames go by the path that it is given by."""
    return compile(script.read_bytes(), str(script), "exec", dont_inherit=True)
