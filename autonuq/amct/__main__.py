"""Run a script written for AMCT: `python -m autonuq.amct script.py arguments ...`."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path

from autonuq.amct import install
from autonuq.errors import AutonuqError


def main() -> None:
    """Run the script of the command line as Python itself would; an error of ours is one line."""
    if len(sys.argv) < 2:
        sys.stderr.write("usage: python -m autonuq.amct script.py [arguments ...]\n")
        raise SystemExit(2)
    script = Path(sys.argv[1])
    if not script.is_file():
        sys.stderr.write(f"error: there is no script '{script}'\n")
        raise SystemExit(2)
    install()
    del sys.argv[0]
    sys.path[0] = str(script.resolve().parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except AutonuqError as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
        where = f" ({script}, line {own[-1].lineno})" if own else ""
        sys.stderr.write(f"error: {error}{where}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
