"""The commands that show a study in figures. They load plotly."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from autonuq.cli.console import OutOption, StorageOption, StudyArgument, err, say, shown, unknown
from autonuq.cli.looking import folder_and_study
from autonuq.report import FIGURES, write_figure, write_report
from autonuq.report.dashboard import open_dashboard
from autonuq.report.files import PACKAGE_REMEDY, can_draw_images


def plot(
    study: StudyArgument,
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(FIGURES)}.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="FILE.html, .png, .svg or .json.")] = None,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Draw a study; without KIND every figure, as HTML and, with the images extra, as PNG in its folder.

    Example: `autonuq plot studies/fashion_lenet.toml front -o front.png`
    """
    if kind is not None and kind not in FIGURES:
        raise unknown("KIND", kind, FIGURES)
    if kind is None and output is not None:
        raise typer.BadParameter("-o needs a KIND")
    folder, opened = folder_and_study(study, storage, out)
    record = opened.record()
    suffixes = (".html", ".png") if can_draw_images() else (".html",)
    for name in [kind] if kind else list(FIGURES):
        targets = [output] if output else [folder / f"{name}{suffix}" for suffix in suffixes]
        for target in targets:
            try:
                write_figure(FIGURES[name](record), target)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            say(str(shown(target)))
    if output is None and ".png" not in suffixes:
        err.print(f"no PNG, which needs the package kaleido: {PACKAGE_REMEDY}", soft_wrap=True)


def report(
    study: StudyArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="FILE.html")] = None,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Write one self-contained page about a study.

    Example: `autonuq report studies/fashion_lenet.toml -o report.html`
    """
    folder, opened = folder_and_study(study, storage, out)
    target = output or folder / "report.html"
    write_report(opened.record(), target)
    say(str(shown(target)))


def dashboard(
    study: StudyArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Open optuna-dashboard on a study, with its figures, report and plans, until Ctrl-C.

    Nothing is written to the study. Needs the extra `dashboard`: `pip install 'autonuq[dashboard]'`.

    Example: `autonuq dashboard studies/fashion_lenet.toml --port 8081`
    """
    folder, opened = folder_and_study(study, storage, out)
    with open_dashboard(opened, folder, port) as (server, url):
        say(f"{url}; end it with Ctrl-C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
