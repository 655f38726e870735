"""The commands: thin layers over the public functions, and the only room that prints.

Results go to stdout, progress and messages to stderr. Exit codes are those of `errors`, and 8 where a study finished
without a satisfied trial, 130 where it was interrupted. `COMMANDS` says which module has which command; `console` has
the consoles and what every command takes, `display` the progress of a study, `documents` the schemas of `--json`.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from autonuq.cli.console import Verbosity, common_options, show_error, warn
from autonuq.errors import AutonuqError

CANNOT_WRITE = 6

COMMANDS: Mapping[str, tuple[str, str]] = {
    "inspect": ("models", "Say of each layer what can be quantized and why not."),
    "new": (
        "starting",
        "Write a study file and an evaluator that runs at once on random data; comments say what to fill in.",
    ),
    "check": (
        "starting",
        "Take every step of a study on one batch, and say how long the study will take; nothing stays behind.",
    ),
    "tune": ("studies", "Start a study, run it, and write the best network."),
    "resume": ("studies", "Go on with a study where its storage stands."),
    "work": ("studies", "Run trials of a study that was started elsewhere, until none is left."),
    "status": ("looking", "Say how far a study is."),
    "plot": ("drawing", "Draw a study; without KIND every figure, as HTML and PNG in the study's folder."),
    "report": ("drawing", "Write one self-contained page about a study."),
    "dashboard": ("drawing", "Open optuna-dashboard on a study, with its figures, report and plans, until Ctrl-C."),
    "export": ("studies", "Write the files of a trial."),
    "unpack": (
        "models",
        "Write the network of a packed file as a fake-quant pair, bit for bit the one that was scored.",
    ),
    "config": ("static", "Write AMCT's config.json for a network."),
    "quantize": (
        "static",
        "Quantize as config.json says, without a search: uniform int8, and codebooks of 16 or 32 levels.",
    ),
}
"""Name -> module of this package with a function of that name, and the first line of its docstring: `autonuq --help`
shows that without loading what the commands need."""


def load_command(name: str) -> Any:
    """Load one command, with the options that all of them take."""
    carrier = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    carrier.command(name)(getattr(import_module(f"{__name__}.{COMMANDS[name][0]}"), name))
    command = typer.main.get_command(carrier)
    command.params += common_options()
    Verbosity.apply()
    return command


class CommandGroup(TyperGroup):
    """A group that knows its commands by their lines in `COMMANDS`, and loads the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.params += common_options()
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary))

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
    "130 interrupted.",
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


def main() -> None:
    """Run a command and turn its error into one line and an exit code."""
    Verbosity.reset()
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster that wants its machine back
    try:
        app()
    except AutonuqError as error:
        show_error(error, str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        show_error(error, f"{error.filename}: cannot be used: {error.strerror}" if error.filename else str(error))
        sys.exit(CANNOT_WRITE)
