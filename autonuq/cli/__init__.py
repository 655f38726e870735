"""The commands: thin layers over the public functions, and the only room that prints.

Results go to stdout, progress and messages to stderr. Exit codes are those of `errors`, and 8 where a study finished
without a satisfied trial, 9 where its best is not confirmed, 130 where it was interrupted. `COMMANDS` says which module
has which command; `console` has the consoles and what every command takes, `documents` the schemas of `--json`. The
progress of a study is shown by `study.display`, as from Python.
"""

from __future__ import annotations

import ast
import io
import signal
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from autonuq.atomic import say_system_error
from autonuq.cli.console import Verbosity, common_options, show_error, warn
from autonuq.errors import AutonuqError, StudyError
from autonuq.streams import forgiving_streams, lead_nowhere

CANNOT_WRITE = StudyError.exit_code

COMMANDS: Mapping[str, str] = {
    "inspect": "models",
    "new": "starting",
    "check": "starting",
    "tune": "studies",
    "resume": "studies",
    "work": "studies",
    "status": "looking",
    "plot": "drawing",
    "report": "drawing",
    "dashboard": "drawing",
    "compare": "comparing",
    "export": "studies",
    "unpack": "models",
    "config": "static",
    "quantize": "static",
}
"""Name -> module of this package with a function of that name."""


def read_summaries() -> dict[str, str]:
    """Return the first line of each command's docstring, out of the source: what the commands need is not loaded."""
    summaries = {}
    for module in set(COMMANDS.values()):
        source = (Path(__file__).parent / f"{module}.py").read_text("utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and COMMANDS.get(node.name) == module:
                summaries[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return summaries


def load_command(name: str) -> Any:
    """Load one command, with the options that all of them take."""
    carrier = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    carrier.command(name)(getattr(import_module(f"{__name__}.{COMMANDS[name]}"), name))
    command = typer.main.get_command(carrier)
    command.params += common_options()
    Verbosity.apply()
    return command


class CommandGroup(TyperGroup):
    """A group that knows its commands by their names and summaries, and loads the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.params += common_options()
        summaries = read_summaries()
        for name in COMMANDS:
            self.add_command(TyperCommand(name, help=summaries[name]))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments begin with."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Make trained Caffe networks smaller without retraining.\n\nExit codes: 0 done, 2 usage, 3 model, "
    "4 quantization, 5 runtime, 6 study or storage, 7 evaluator, 8 finished but nothing satisfied the constraint, "
    "9 finished but the best is not confirmed, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"autonuq {version('autonuq')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, expose_value=False, help="Print the version."
        ),
    ] = False,
) -> None:
    """Carry the option that only `autonuq` itself takes."""


def _print_any_name() -> None:
    """Escape what the terminal's encoding lacks: layers may be called anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_as_by_ctrl_c() -> None:
    """End in order, too, where a cluster wants its machine back, or the terminal is closed; not under nohup."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is None or signal.getsignal(hang_up) == signal.SIG_IGN:
        return
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def interrupt(*_: object) -> None:
        for number in terminals:  # nobody sees any more what is written there
            lead_nowhere(number)
        raise KeyboardInterrupt

    signal.signal(hang_up, interrupt)


def main() -> None:
    """Run a command and turn its error into one line and an exit code."""
    Verbosity.reset()
    _print_any_name()
    with forgiving_streams() as results:
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        _end_as_by_ctrl_c()
        code = _run()
        results.flush()
        if results.error is not None:
            show_error(results.error, f"standard output cannot be written: {results.error.strerror}")
            code = code or CANNOT_WRITE
    sys.exit(code)


def _run() -> str | int | None:
    """Run a command, print what it fails with, and return the exit code."""
    try:
        app()
    except SystemExit as ended:
        return ended.code
    except AutonuqError as error:
        show_error(error, str(error))
        return error.exit_code
    except OSError as error:
        show_error(error, say_system_error(error))
        return CANNOT_WRITE
    return None
