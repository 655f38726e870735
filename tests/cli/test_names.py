"""Names out of files and storages are shown as they are: no markup, no command of a terminal, no line of their own."""

from dataclasses import replace

import pytest
from rich.table import Table

from autonuq.cli import console
from autonuq.cli.console import PlainConsole
from autonuq.cli.skeleton import write_skeleton
from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import load_module
from autonuq.graph.files import load_graph, write_model

HOSTILE = "[bold red]x[/] :smile: [link=https://evil.example]y[/link] \x1b]0;title\x07\x1b[2J\u202e\r\nerror: z"
SHOWN = "[bold red]x[/] :smile: [link=https://evil.example]y[/link] \\x1b]0;title\\x07\\x1b[2J\\u202e"


@pytest.fixture
def hostile(tiny):
    """Give a layer of the tiny network a name that would do harm; return the prototxt and the caffemodel."""
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    for layer in graph.layers:
        if layer.name == "fc":
            layer.message.name = HOSTILE
    write_model(graph, tiny / "h.prototxt", tiny / "h.caffemodel")
    return tiny / "h.prototxt", tiny / "h.caffemodel"


def test_a_console_interprets_nothing(capsys):
    printer = PlainConsole()
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    printer.width = 400
    for thing in (HOSTILE, table):
        printer.print(thing)
        printed = capsys.readouterr().out
        assert SHOWN in printed
        assert not set(printed) & {"\x1b", "\x07", "\u202e", "\r"}


def test_inspect_shows_a_hostile_name_as_text(run, hostile, monkeypatch):
    monkeypatch.setattr(console.out, "_width", 600)  # what setting the width sets, and puts back
    said = run("inspect", *hostile)
    assert said.returncode == 0
    assert "[bold red]x[/] :smile: [link=https://evil.example]y[/link]" in said.stdout
    assert not set(said.stdout) & {"\x1b", "\x07", "\u202e", "\r"}


def test_a_new_study_of_a_network_with_hostile_names_runs_none_of_them(tiny):
    injected = "x\nraise SystemExit('it ran')  #"
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    graph = replace(graph, name="net\r\n[model]\nprototxt = 1\u2028")
    for layer in graph.layers:
        if layer.name in ("fc", "prob"):
            layer.message.top[:] = [f"{top}{injected}" for top in layer.tops]
            layer.message.bottom[:] = [f"{name}{injected}" if name == "fc" else name for name in layer.bottoms]
    layer.message.type = "Power"
    write_model(graph, tiny / "h.prototxt", tiny / "h.caffemodel")
    study, evaluator = write_skeleton(tiny / "made", tiny / "h.prototxt", tiny / "h.caffemodel")
    assert load_module(str(evaluator), tiny).OUTPUT.endswith(injected)
    from autonuq.study.study_file import load_task

    assert load_task(study).name == "made"


@pytest.mark.parametrize("name", ["a:b", "nul", "x" * 201, "a\x1bb"], ids=ascii)
def test_new_refuses_a_folder_whose_name_is_no_studys(tiny, name):
    with pytest.raises(StudyError, match="the folder's name is the study's, and that cannot be used: a name that"):
        write_skeleton(tiny / name, tiny / "tiny.prototxt", tiny / "tiny.caffemodel")


def test_verbose_errors_hide_passwords(run, tiny_study):
    url = "postgresql+nothing://me:Pa55wOrd@server/db"
    said = run("status", tiny_study, "--storage", url, "--verbose")
    assert said.returncode == StudyError.exit_code
    assert "Traceback" in said.stderr
    assert "Pa55wOrd" not in said.stdout + said.stderr
