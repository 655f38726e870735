import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autonuq.records import (
    MEANING,
    METRIC_CHANGE,
    OUTPUT_ERROR,
    RANDOM_DATA,
    FloatLayers,
    LayerCost,
    LayerRecord,
    LossPart,
    LossParts,
    Rounding,
    TrialRecord,
    Unit,
)
from autonuq.report import FIGURES, write_report
from autonuq.report.page import FIRST, TABS, build_page
from autonuq.report.words import WORDS

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


def test_layers_that_stay_float_are_named_with_what_each_costs(lenet):
    assert "Float layers" not in Elements(build_page(lenet)).text
    costs = (LayerCost("ip<1>", 1_600_000, 0.25), LayerCost("conv1", 2_000, 1e-5))
    found = FloatLayers(
        ("ip<1>",), "with every layer at int8 the limit is not kept (metric 0.9 -> 0.1)", OUTPUT_ERROR, costs
    )
    text = Elements(build_page(replace(lenet, float_layers=found))).text
    assert "1 layer stays float: ip<1>, because with every layer at int8 the limit is not kept" in text
    assert "25.000%" in text and "0.001%" in text


def test_where_nothing_helps_the_page_says_so(empty):
    costs = (LayerCost("conv1", 2_000, None), LayerCost("ip1", 1_600_000, 0.25))
    found = FloatLayers((), "the limit is not kept", METRIC_CHANGE, costs, hopeless=True)
    text = Elements(build_page(replace(empty, float_layers=found))).text
    assert "nothing helps: the limit is not kept, and no layer can be quantized within the limit" in text
    assert "not scored" in text and METRIC_CHANGE in text


@pytest.mark.parametrize("fixture", ["lenet", "empty", "deep"])
def test_the_page_is_whole_small_and_asks_for_nothing(fixture, request, tmp_path):
    write_report(request.getfixturevalue(fixture), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert len(page.encode()) < 6_000_000
    assert len(re.findall(r"plotly\.js v\d", page)) == 1
    assert not elements.open
    assert not elements.crossed
    assert [attributes for _, attributes in elements.tags if {"src", "href"} & attributes.keys()] == [
        {"rel": "icon", "href": "data:,"}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_shows_every_kind_of_figure(lenet):
    assert sorted([FIRST, *TABS]) == list(FIGURES)
    ids = {attributes.get("id") for _, attributes in Elements(build_page(lenet)).tags}
    assert {f"figure-{kind}" for kind in FIGURES} <= ids


def test_a_row_per_layer_with_its_numbers(lenet):
    (row,) = re.findall(r"<tr><td>ip1</td>.*?</tr>", build_page(lenet))
    size, levels = (
        next(row.size_bytes for row in lenet.layer_rows(lenet.best) if row.layer.name == "ip1"),
        lenet.layer_levels(lenet.best)["ip1"],
    )
    assert re.findall(r'data-value="([^"]*)"', row) == [
        "400000",
        str(levels),
        str(levels / 256),
        str(8 * size / 400_000),
        str(size),
        str(1_600_000 / size),
        str(next(part.share for part in lenet.loss_parts.layers if part.layer == "ip1") * 0.006),
    ]


def test_layers_that_are_not_searched_give_their_reason(deep):
    text = Elements(build_page(deep)).text
    assert "group is 2, NUQ needs 1" in text
    assert "listed in skip_layers" in text


def test_how_to_repeat_it_is_there_to_copy(lenet):
    provenance = {"command": "autonuq tune a.toml", "study file": 'name = "x" # <1>\n', "seed": "0"}
    page = build_page(replace(lenet, provenance=provenance))
    assert "<pre>autonuq tune a.toml</pre>" in page
    assert "<pre>name = &quot;x&quot; # &lt;1&gt;\n</pre>" in page
    assert "<td>seed</td><td>0</td>" in page


def test_a_study_is_as_good_as_its_record(lenet, tmp_path):
    class Study:
        def record(self):
            return lenet

    write_report(Study(), tmp_path / "study.html")
    write_report(lenet, tmp_path / "record.html")
    assert (tmp_path / "study.html").read_bytes() == (tmp_path / "record.html").read_bytes()


def test_no_satisfied_trial_is_said(lenet, empty):
    unsatisfied = replace(lenet, trials=tuple(replace(trial, satisfied=False) for trial in lenet.trials))
    assert "No trial satisfied the constraint." in Elements(build_page(unsatisfied)).text
    assert "No finished trial yet." in Elements(build_page(empty)).text


def test_every_string_of_the_user_is_escaped(lenet):
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    layer = LayerRecord(evil, evil, 100, "nuq", evil, (100, 50), (1.0, 2.0), (256, 4))
    trials = (
        TrialRecord(0, "complete", 4.0, 0.9, True, -1.0, 50, {evil: 1}, origin=evil),
        TrialRecord(1, "failed", error=evil, worker=evil, started="2025-06-01T10:00:00Z"),
    )
    parts = LossParts(0, (LossPart(evil, 0.9, 0.1),), LossPart("", 0.1, 0.1), 0.005, 0.001)
    known = {evil: evil, MEANING: evil, RANDOM_DATA: evil}
    record = replace(lenet, name=evil, codec=evil, layers=(layer,), trials=trials, provenance=known, loss_parts=parts)
    page = build_page(record)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert len([tag for tag, _ in Elements(page).tags if tag == "script"]) == 2 + len(FIGURES)


def test_the_first_screen_says_what_was_reached_whether_it_holds_and_what_to_do_next(lenet):
    text = Elements(build_page(replace(lenet, provenance={MEANING: "share of clothes that are named right"}))).text
    best = lenet.best
    order = [
        text.index(words)
        for words in (
            f"{best.ratio:.2f}× smaller",
            "(limit 0.01)",
            "share of clothes that are named right",
            "not yet: trials are left",
            "wait for 1 trial, 1 running now",
            f"Which layers hurt under the best plan (trial {best.number})",
            "1,722,000 →",
            "Metric against compression ratio",
        )
    ]
    assert order == sorted(order)


def test_random_data_are_said_before_anything_else(lenet, empty):
    for record in (lenet, empty, replace(lenet, trials=())):
        text = Elements(build_page(replace(record, provenance={RANDOM_DATA: "yes"}))).text
        verdict = re.search("smaller|No finished trial", text).start()
        assert text.index("On random data: this says nothing about the network's task.") < verdict
        assert "score real data first" in text
        assert "On random data" not in Elements(build_page(record)).text


def test_layers_that_hurt_are_named_in_words_for_who_sees_no_picture(lenet):
    text = Elements(build_page(replace(lenet, unit=Unit("points", 100.0, "images")))).text
    worst = lenet.loss_parts.layers[0]
    assert f"{worst.layer}: {60 * worst.share / 100:.3g} points, {worst.share:.0%} (" in text
    assert "of the loss, " in text
    assert "trial loses" not in text
    assert "Loss, points" in text
    bare = Elements(build_page(replace(lenet, loss_parts=None))).text
    assert "Loss, " not in bare and "of the loss" not in bare


@pytest.mark.parametrize("word", ["codec", "level", "retention", "distortion", "moments", "margin"])
def test_words_are_explained_in_text_where_they_stand(word, lenet):
    page = build_page(lenet)
    assert f"<dfn>{word.capitalize()}</dfn>" in page or word == "codec"
    text = Elements(page).text
    explained = text.index(WORDS[word])
    first = text.lower().index(word)
    assert explained - first < 400  # in the same tile, below the same figure, above the same table


def test_ways_of_rounding_are_explained_where_they_are_compared(lenet):
    assert "<dfn>Slope" not in build_page(lenet)
    ways = Rounding("gradients by image at temperature 4, a bit's price 0.3", images=10, in_order=True)
    page = build_page(replace(lenet, rounding=ways))
    assert page.index("How weights are rounded") < page.index("<dfn>Slope</dfn>") < page.index("How to reproduce")


@pytest.fixture
def opened(lenet, deep, tmp_path):
    """Open a report in a browser; return a function that does it, and what the page complained of or asked for."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    noises = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def show(record, width=1280):
            write_report(record, tmp_path / "report.html")
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda message: noises.append(message.text))
            page.on("pageerror", lambda error: noises.append(str(error)))
            page.on("request", lambda request: noises.append(request.url))
            page.goto((tmp_path / "report.html").as_uri())
            del noises[0]  # the page itself
            return page

        yield show, noises
        browser.close()


def names_of(page):
    return page.locator(".sortable tbody tr:visible td:first-child").all_inner_texts()


@pytest.mark.browser
def test_in_a_browser_the_table_sorts_and_filters(lenet, opened):
    show, noises = opened
    page = show(lenet)
    page.click(".sortable th >> text=Weights")
    assert names_of(page) == ["conv1", "ip2", "conv2", "ip1"]
    page.click(".sortable th >> text=Weights")
    assert names_of(page) == ["ip1", "conv2", "ip2", "conv1"]
    page.fill(".filter input", "CONVOLUTION")
    assert names_of(page) == ["conv2", "conv1"]
    assert page.inner_text(".filter output") == "2 of 4 layers"
    assert not noises


@pytest.mark.browser
def test_in_a_browser_the_figures_switch_and_print(deep, opened):
    show, noises = opened
    page = show(deep)
    assert page.locator("[role=tabpanel]:visible").count() == 1
    for kind in TABS:
        page.click(f"#tab-{kind}")
        page.locator(f"#figure-{kind} .xtick text").first.wait_for()  # which fails if it does not come
        assert page.locator("[role=tabpanel]:visible").count() == 1
    page = show(deep)
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert page.locator(".js-plotly-plot").count() == 1 + len(TABS)  # those that were never looked at, too
    assert page.locator("[role=tabpanel]:visible").count() == 1
    assert not noises


@pytest.mark.browser
@pytest.mark.parametrize("fixture", ["empty", "deep"])
def test_in_a_browser_a_telephone_does_not_scroll_sideways(fixture, opened, request):
    show, noises = opened
    page = show(request.getfixturevalue(fixture), width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert not noises
