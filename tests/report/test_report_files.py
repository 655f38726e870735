import importlib.util
import json
import os
import shutil

import plotly.graph_objects as go
import plotly.io
import pytest

from autonuq.errors import RuntimeFailure
from autonuq.report import FIGURES, write_figure

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def draws(test):
    """Mark a test that draws with an installed browser, and skip it where there is none."""
    is_there = importlib.util.find_spec("kaleido") is not None and any(map(shutil.which, BROWSERS))
    return pytest.mark.browser(pytest.mark.skipif(not is_there, reason="needs kaleido and an installed Chromium")(test))


def test_json_is_plotlys_own(tmp_path, lenet):
    figure = FIGURES["history"](lenet)
    write_figure(figure, tmp_path / "f.json")
    assert go.Figure(json.loads((tmp_path / "f.json").read_text())) == figure


def test_html_carries_plotly_and_asks_for_nothing(tmp_path, lenet):
    write_figure(FIGURES["front"](lenet), tmp_path / "new" / "folder" / "F.HTML")
    page = (tmp_path / "new" / "folder" / "F.HTML").read_text()
    assert page.count("plotly.js v") == 1
    assert "<script src" not in page
    assert ' src="http' not in page


@pytest.mark.parametrize("name", ["f.pdf", "f", "png"])
def test_other_suffixes_are_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"\.html, \.json, \.png, \.svg\. Got '{name}'"):
        write_figure(go.Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_write_leaves_one_file_with_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    for title in "old", "new":
        write_figure(go.Figure(layout_title_text=title), tmp_path / "f.json")
    assert '"new"' in (tmp_path / "f.json").read_text()
    assert (tmp_path / "f.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "plain"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("disk full")

    (tmp_path / "f.json").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_figure(go.Figure(), tmp_path / "f.json")
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]
    assert (tmp_path / "f.json").read_text() == "old"


def test_an_image_without_the_extra_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeFailure, match=r"pip install 'autonuq\[images\]', and install Chrome or Chromium"):
        write_figure(go.Figure(), tmp_path / "f.png")
    assert not list(tmp_path.iterdir())


def test_an_image_without_a_browser_names_the_remedy(tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("\n\nKaleido requires Google Chrome to be installed.\n")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(plotly.io, "to_image", fail)
    with pytest.raises(RuntimeFailure, match="requires Google Chrome.*install Chrome or Chromium, or name"):
        write_figure(go.Figure(), tmp_path / "f.svg")
    assert not list(tmp_path.iterdir())


@draws
@pytest.mark.parametrize("kind", FIGURES)
def test_png(tmp_path, kind, lenet):
    figure = FIGURES[kind](lenet)
    write_figure(figure, tmp_path / "f.png")
    image = (tmp_path / "f.png").read_bytes()
    height = figure.layout.height or figure.layout.template.layout.height
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(image[16:20], "big") == 2 * 960
    assert int.from_bytes(image[20:24], "big") == 2 * height


@draws
def test_svg(tmp_path, lenet):
    write_figure(FIGURES["curves"](lenet), tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "bits per weight" in text
