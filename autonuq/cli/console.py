"""Where the commands print to, and the options that all of them take."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from autonuq.errors import suggest_name
from autonuq.masking import masked_text, without_secrets
from autonuq.terminal import PlainConsole as PlainConsole
from autonuq.terminal import duration as duration
from autonuq.visible import visible

out = PlainConsole()
"""Results."""
err = PlainConsole(stderr=True)
"""Progress and messages; silent under --quiet."""
alarms = PlainConsole(stderr=True)
"""Errors and warnings; never silent."""

NOT_SATISFIED, NOT_CONFIRMED, INTERRUPTED = 8, 9, 130
_PREFIX = "PREFIX: folder and beginning of the names."

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_duration(text: str) -> float:
    """Return the seconds of a time such as `90s`, `10m`, `2h`, `1h30m` or `90`."""
    parts = re.findall(r"([\d.]+)([a-z]*)", text.strip().lower())
    try:
        if "".join(number + unit for number, unit in parts) == text.strip().lower() and parts:
            return sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    except (KeyError, ValueError):
        pass
    raise typer.BadParameter(f"must be a time such as 90s, 10m, 2h or a number of seconds, got '{text}'")


StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", show_default=False)]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL.prototxt", show_default=False)]
WeightsArgument = Annotated[Path, typer.Argument(metavar="WEIGHTS.caffemodel", show_default=False)]
LevelOption = Annotated[int, typer.Option(help="Level of the prototxt's include and exclude rules.")]
StageOption = Annotated[
    list[str] | None,
    typer.Option("--stage", help="Stage of the prototxt's include and exclude rules; may be given several times."),
]
TrialsOption = Annotated[int | None, typer.Option(min=1, help="Total of the study; overrides the file's.")]
StorageOption = Annotated[str | None, typer.Option(help="Storage URL; overrides the file's, as AUTONUQ_STORAGE does.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the study; overrides the file's.")]
PrefixOption = Annotated[str | None, typer.Option("--output", "-o", help=_PREFIX)]
OutputOption = Annotated[str, typer.Option("--output", "-o", "--out", help=_PREFIX)]
ArtifactsOption = Annotated[str | None, typer.Option(help="Folder or s3://bucket/prefix; overrides the file's.")]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Workers: one of this machine by default, or all of a cluster's."),
]
TimeoutOption = Annotated[float | None, typer.Option(min=0, help="Seconds after which no trial is started.")]
WaitOption = Annotated[
    float | None,
    typer.Option(
        parser=read_duration,
        metavar="DURATION",
        help="How long to wait for a study or a storage that is not there yet: 90s, 10m, 2h.",
    ),
]
PythonLayersOption = Annotated[
    bool,
    typer.Option(
        "--allow-python-layers",
        help="Run the network's own Python layers: code that its prototxt names. Also a key of [model].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Verbosity:
    """How much is said. One for the process."""

    is_verbose = False

    @classmethod
    def reset(cls) -> None:
        """Go back to the normal measure."""
        cls.is_verbose = err.quiet = False

    @classmethod
    def apply(cls) -> None:
        """Let Optuna say more under --verbose; it is told to be quiet when it is loaded."""
        if cls.is_verbose:
            logging.getLogger("optuna").setLevel(logging.INFO)


def _set_quiet(value: bool) -> None:
    err.quiet = err.quiet or value


def _set_verbose(value: bool) -> None:
    if value:
        Verbosity.is_verbose = True
        Verbosity.apply()


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


def common_options() -> list[Any]:
    """Make the options that every command takes, and `autonuq` itself."""
    carrier = typer.Typer(add_completion=False)
    carrier.command()(_options)
    return [option for option in typer.main.get_command(carrier).params if option.name != "help"]


def warn(message: str) -> None:
    """Print a warning."""
    alarms.print(Text.assemble(("warning: ", "yellow"), visible(masked_text(message))), soft_wrap=True)


def show_error(error: BaseException, message: str) -> None:
    """Print an error as one line; under --verbose also where it came from."""
    if Verbosity.is_verbose:
        text = masked_text("".join(traceback.format_exception(error)))
        for given in (*sys.argv[1:], os.environ.get("AUTONUQ_STORAGE", "")):  # pieces of its password, too
            text = without_secrets(text, given)
        alarms.print(text, soft_wrap=True)
    alarms.print(Text.assemble(("error: ", "bold red"), visible(message)), soft_wrap=True)


def say(text: str) -> None:
    """Print a result as it is, however long its lines."""
    out.print(visible(text), soft_wrap=True)


def show(table: Table) -> None:
    """Print a table of results."""
    out.print(table)


def shown(path: Path) -> Path:
    """Return a path relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def unknown(what: str, name: str, known: Iterable[str]) -> typer.BadParameter:
    """Make the error for a name that there is not; it names the nearest."""
    names = list(known)
    return typer.BadParameter(f"{what} must be one of {', '.join(names)}, got '{name}'.{suggest_name(name, names)}")
