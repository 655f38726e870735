import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autonuq.records import LayerRecord, TrialRecord
from autonuq.report import FIGURES, write_report
from autonuq.report.page import FIGURE_ORDER, build_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Elements(HTMLParser):
    """Collects start tags, visible text, and tags that were closed out of order."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.crossed, self.words = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def test_the_verdict_comes_first(lenet):
    text = Elements(build_page(lenet)).text
    best = lenet.best
    assert text.index(f"{best.ratio:.2f}× smaller") < text.index("Layers")
    assert f"1,722,000 → {best.size_bytes:,}" in text
    assert f"0.9124 → {best.metric:.6g}" in text
    assert "38 of 40 done" in text
    assert "1 failed" in text
    assert "eval_model returned nan" in text
    assert "9f86d081884c7d65" * 4 in text


@pytest.mark.parametrize("fixture", ["lenet", "empty", "deep"])
def test_the_page_is_whole_small_and_asks_for_nothing(fixture, request, tmp_path):
    write_report(request.getfixturevalue(fixture), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert len(page.encode()) < 6_000_000
    assert len(re.findall(r"plotly\.js v\d", page)) == 1
    assert not elements.open
    assert not elements.crossed
    assert not [attributes for _, attributes in elements.tags if {"src", "href"} & attributes.keys()]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_shows_every_kind_of_figure(lenet):
    assert sorted(FIGURE_ORDER) == list(FIGURES)
    ids = {attributes.get("id") for _, attributes in Elements(build_page(lenet)).tags}
    assert {f"figure-{kind}" for kind in FIGURES} <= ids


def test_a_row_per_layer_with_its_numbers(lenet):
    (row,) = re.findall(r"<tr><td>ip1</td>.*?</tr>", build_page(lenet))
    size, levels = lenet.layer_bytes(lenet.best)["ip1"], lenet.layer_levels(lenet.best)["ip1"]
    assert re.findall(r'data-value="([^"]*)"', row) == [
        "400000",
        str(levels),
        str(levels / 256),
        str(8 * size / 400_000),
        str(size),
        str(1_600_000 / size),
    ]


def test_layers_that_are_not_searched_give_their_reason(deep):
    text = Elements(build_page(deep)).text
    assert "group is 2, NUQ needs 1" in text
    assert "listed in skip_layers" in text


def test_no_satisfied_trial_is_said(lenet, empty):
    unsatisfied = replace(lenet, trials=tuple(replace(trial, satisfied=False) for trial in lenet.trials))
    assert "No trial satisfied the constraint." in Elements(build_page(unsatisfied)).text
    assert "No finished trial yet." in Elements(build_page(empty)).text


def test_every_string_of_the_user_is_escaped(lenet):
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    layer = LayerRecord(evil, evil, 100, "nuq", evil, (100, 50), (1.0, 2.0), (256, 4))
    trials = (
        TrialRecord(0, "complete", 4.0, 0.9, True, -1.0, 50, {evil: 1}, origin=evil),
        TrialRecord(1, "failed", error=evil, worker=evil, started=evil),
    )
    record = replace(lenet, name=evil, codec=evil, layers=(layer,), trials=trials, provenance={evil: evil})
    page = build_page(record)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert len([tag for tag, _ in Elements(page).tags if tag == "script"]) == 3 + len(FIGURES)


BROWSER_TEST = """
<script>
const report = {errors: [], plots: 0, order: []};
addEventListener("error", event => report.errors.push(event.message));
addEventListener("load", () => setTimeout(() => {
  report.plots = document.querySelectorAll(".plot .main-svg .xtick").length > 0
    ? document.querySelectorAll(".plot.js-plotly-plot").length : 0;
  const rows = () => [...document.querySelectorAll(".sortable tbody tr")];
  const names = () => rows().map(row => row.cells[0].textContent);
  const weights = document.querySelectorAll(".sortable th button")[2];
  weights.click(); report.order.push(names()); weights.click(); report.order.push(names());
  report.requests = performance.getEntriesByType("resource").map(entry => entry.name);
  document.body.textContent = "RESULT " + JSON.stringify(report) + " END";
}, 500));
</script>
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_in_a_browser_the_figures_draw_and_the_table_sorts(lenet, tmp_path):
    page = build_page(lenet).replace("<head>", f"<head>{BROWSER_TEST}", 1)
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"
    done = subprocess.run(
        [
            CHROMIUM,
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (result,) = re.findall(r"RESULT (.*) END</body>", done.stdout)
    assert result == (
        '{"errors":[],"plots":4,'
        ""
        '"order":[["conv1","ip2","conv2","ip1"],["ip1","conv2","ip2","conv1"]],"requests":[]}'
    )
