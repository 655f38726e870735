"""Where the commands print to, and the options that all of them take."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

out = Console(highlight=False)
"""Results."""
err = Console(stderr=True, highlight=False)
"""Progress and messages; silent under --quiet."""
alarms = Console(stderr=True, highlight=False)
"""Errors and warnings; never silent."""


class Verbosity:
    """How much is said. One for the process."""

    is_verbose = False

    @classmethod
    def reset(cls) -> None:
        """Go back to the normal measure."""
        cls.is_verbose = err.quiet = False


def _set_quiet(value: bool) -> None:
    err.quiet = err.quiet or value


def _set_verbose(value: bool) -> None:
    if value:
        Verbosity.is_verbose = True
        logging.getLogger("optuna").setLevel(logging.INFO)


def _options(
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", callback=_set_quiet, expose_value=False, help="Results, warnings, errors only."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", callback=_set_verbose, expose_value=False, help="Also where an error came from."
        ),
    ] = False,
) -> None:
    """Carry the options that every command takes."""


class CommandGroup(TyperGroup):
    """A group whose commands all take --quiet and --verbose, as the group itself does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        carrier = typer.Typer(add_completion=False)
        carrier.command()(_options)
        for command in (self, *self.commands.values()):
            options = [option for option in typer.main.get_command(carrier).params if option.name != "help"]
            command.params += options


def warn(message: str) -> None:
    """Print a warning."""
    alarms.print(Text.assemble(("warning: ", "yellow"), message), soft_wrap=True)


def show_error(error: BaseException) -> None:
    """Print an error as one line; under --verbose also where it came from."""
    if Verbosity.is_verbose:
        alarms.print_exception()
    alarms.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)


def say(text: str) -> None:
    """Print a result as it is, however long its lines."""
    out.print(text, soft_wrap=True, markup=False)
