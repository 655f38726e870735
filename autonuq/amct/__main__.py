"""What can be run of `autonuq.amct`: a script written for AMCT, AMCT's own command, and the opting in.

::

    python -m autonuq.amct [--allow-python-layers] script.py [arguments ...]   see `runner`
    python -m autonuq.amct calibration --model ...               see `command`, which is called amct_caffe, too
    python -m autonuq.amct --install | --uninstall [--target DIR]    see `stand_ins`
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from autonuq.amct.command import ALLOW, COMMANDS, OneLineParser, run_command
from autonuq.amct.runner import run_script
from autonuq.amct.stand_ins import remove_stand_ins, search_path, write_stand_ins
from autonuq.graph.hosted.permission import allow_python_layers

_USAGE = (
    f"python -m autonuq.amct [{ALLOW}] script.py [arguments ...] | calibration [options] | --install [--target DIR] | "
    "--uninstall [--target DIR]"
)


def main() -> None:
    """Do what the command line says."""
    if ALLOW in sys.argv[1:2]:
        allow_python_layers()
        del sys.argv[1]
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in COMMANDS and not Path(first).is_file():
        run_command()
    elif first.startswith("-"):
        _change_stand_ins()
    elif Path(first).is_file():
        del sys.argv[0]
        run_script(Path(first))
    else:
        sys.stderr.write(f"error: there is no script '{first}'\n" if first else f"usage: {_USAGE}\n")
        raise SystemExit(2)


def _change_stand_ins() -> None:
    parser = OneLineParser("python -m autonuq.amct", usage=_USAGE, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--install", action="store_true", help="let 'import amct_caffe' and 'import caffe' find autonuq")
    what.add_argument("--uninstall", action="store_true", help="take away what --install wrote")
    parser.add_argument("--target", type=Path, help="where to; this environment's packages by default")
    given = parser.parse_args()
    folder = given.target or Path(sysconfig.get_path("purelib"))
    try:
        said = write_stand_ins(folder, search_path()) if given.install else remove_stand_ins(folder)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    sys.stdout.write("\n".join(said) + "\n")


if __name__ == "__main__":
    main()
