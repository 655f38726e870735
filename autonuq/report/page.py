"""A whole study on one HTML page that opens without a network.

plotly.js, style and script are inside the file. The page follows the reader's colour scheme by CSS alone:
the style sheet overrides the colours of plotly's frame (text, grid, paper), so the figures need no second
version, and print is always dark on light.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import plotly.graph_objects as go
import plotly.io
import plotly.offline

from autonuq.atomic import replace_text
from autonuq.headline import headline, hurting
from autonuq.masking import masked_text
from autonuq.records import LayerRecord, LayerRow, StudyRecord, TrialRecord, format_metric
from autonuq.report.kinds import FIGURES
from autonuq.report.layer_figures import FEW_LAYERS
from autonuq.report.style import TEMPLATE, TITLE_PX, format_bytes
from autonuq.report.words import WORDS
from autonuq.visible import visible

TABS: Mapping[str, str] = {
    "front": "Front",
    "history": "History",
    "layers": "Layers",
    "curves": "Curves",
    "codebooks": "Codebooks",
    "predicted": "Predicted",
    "importance": "Importance",
    "contour": "Contour",
    "timeline": "Timeline",
}
"""Kinds and their tabs, from the verdict to the detail."""

FIRST = "hurt"
"""The kind that comes before all others."""

PANEL_WORDS: Mapping[str, tuple[str, ...]] = {
    "front": ("trial",),
    "layers": ("level",),
    "curves": ("distortion", "moments"),
    "codebooks": ("codebook", "level"),
    "predicted": ("margin",),
    "importance": ("importance",),
}
"""Kinds -> the words in them that are explained below them."""

ABSENT = "–"


class Recorded(Protocol):
    """What can be read as a `StudyRecord`, such as `autonuq.Study`."""

    def record(self) -> StudyRecord:
        """Return it as plain data."""


def write_report(study: StudyRecord | Recorded, path: str | Path) -> None:
    """Write a study as one self-contained HTML page.

    Parameters
    ----------
    study : Study or StudyRecord
        May be empty, unfinished, or without a satisfied trial.
    path : str or Path
        Missing folders are made; an existing file is replaced.

    Raises
    ------
    OSError
        If the folder cannot be written.

    Notes
    -----
    **Cost**: about 5 MB and a second or two, nearly all of the bytes plotly.js.
    """
    page = build_page(study if isinstance(study, StudyRecord) else study.record())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)


def build_page(record: StudyRecord) -> str:
    """Build the page that `write_report` writes.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    str
        An HTML document.
    """
    layers = [_layer_table(record), _chip(record), _skipped(record), _float_layers(record), _rounding(record)]
    body = [_verdict(record), _hurt(record), _numbers(record), _figures(record), *layers, _provenance(record)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{_text(record.name)} – autonuq report</title>",
            f"<style>{_STYLE}</style>",
            f"<script>{plotly.offline.get_plotlyjs()}</script>",
            "</head><body><main>",
            *body,
            f"</main><script>{_FIGURE_SCRIPT}{_TABLE_SCRIPT}</script></body></html>",
            "",
        ]
    )


def _verdict(record: StudyRecord) -> str:
    """Return the first screen: what was reached, whether it holds, and what to do next."""
    best, first = record.best, headline(record)
    if best is not None:
        whole = format_bytes(record.original_bytes)
        size = "" if best.size_bytes is None else f": {whole} → {format_bytes(best.size_bytes)}"
        sentence = f"<strong>{best.ratio:.2f}× smaller</strong>{size}; {_text(first.loss)}"
        if record.chip is not None:
            sentence = f"{sentence}. {_text(record.say_transfer())}"
    elif record.counts.complete:
        sentence = "<strong>No trial satisfied the constraint.</strong>"
    else:
        sentence = "<strong>No finished trial yet.</strong>"
    steps = "".join(f"<li>{_text(step.text)}</li>" for step in first.steps)
    facts = [
        ("The metric", _text(first.meaning)),
        ("Confirmed", _text(first.confirmed)),
        ("Next", f"<ol>{steps}</ol>" if len(first.steps) > 1 else _text(first.steps[0].text)),
    ]
    items = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in facts if value)
    return (
        f"<header><p>autonuq study</p><h1>{_text(record.name)}</h1>{_warning(first.warning)}"
        f'<p class="verdict">{sentence}</p><dl class="facts">{items}</dl></header>'
    )


def _warning(warning: str) -> str:
    """Return what must be known before anything else."""
    return f'<p class="warning" role="note">{_text(warning[:1].upper() + warning[1:])}.</p>' if warning else ""


def _hurt(record: StudyRecord) -> str:
    """Return which layers hurt, in one picture, with what it is and the worst of them in words."""
    parts = record.loss_parts
    figure = FIGURES[FIRST](record)
    words = ""
    if parts is not None:
        loss = "the loss" if parts.loss is None else f"{record.unit.say(parts.loss, parts.loss_error)}"
        words = (
            f"On the data of the search, trial {parts.trial} loses {loss} by the model that learnt from all trials; "
            "each layer is charged with its part of that. A line through the end of a bar is one standard deviation "
            "of what is not known; what no plan changes are activations in int8 and layers that are not searched."
        )
    worst = "".join(f"<li>{_text(one.say())}</li>" for one in hurting(record))
    return (
        f'<section class="first"><h2>{_text(figure.layout.title.text)}</h2><p class="note">{_text(words)}</p>'
        f"{_drawing(FIRST, figure)}" + (f'<ul class="worst">{worst}</ul>' if worst else "") + "</section>"
    )


def _numbers(record: StudyRecord) -> str:
    """Return what the study is in numbers."""
    best, counts = record.best, record.counts
    before = _metric(record.original_metric, record.original_standard_error)
    after = _metric(best.metric, best.standard_error) if best else ABSENT
    sizes = (f"{record.original_bytes:,}", _number(best.size_bytes if best else None, ",.0f"))
    limit = "limit unknown" if record.limit is None else f"limit {record.limit:.6g}"
    tiles = [
        ("Weights, bytes", f"{sizes[0]} → {sizes[1]}", "float32 → compressed"),
        ("Metric", f"{before} → {after}", f"original → compressed; {limit}"),
        ("Loss", *_loss(record)),
        ("Trials", f"{counts.complete} of {record.target_trials} done", record.stopped or f"{counts.running} running"),
        ("Verdicts", f"{counts.satisfied} satisfied, {counts.failed} failed", ""),
        ("Best trial", ABSENT if best is None else f"number {best.number}", best.origin if best else ""),
        ("Codec", record.codec, WORDS["codec"]),
    ]
    if record.chip is not None:
        now = f"{sizes[0]} → {record.int8_bytes:,} → {sizes[1]}"
        tiles[0] = (f"Bytes that {record.chip.chip} loads", now, "float32 → int8 only → now")
    if record.ignored:
        tiles.append(("Not counted", f"{len(record.ignored)} trials of its storage", "; ".join(record.say_ignored())))
    items = "".join(
        f"<div><dt>{_text(term)}</dt><dd>{_text(value)}<small>{_text(note)}</small></dd></div>"
        for term, value, note in tiles
    )
    return f'<section><h2>In numbers</h2><dl class="tiles">{items}</dl></section>'


def _words(*names: str) -> str:
    """Explain words where they first appear."""
    said = " ".join(f"<dfn>{_text(name.capitalize())}</dfn>: {_text(WORDS[name])}." for name in names)
    return f'<p class="note words">{said}</p>' if said else ""


def _loss(record: StudyRecord) -> tuple[str, str]:
    """Return what the best trial lost, and on what, whether that is confirmed, and what else was found."""
    if record.best is None:
        return ABSENT, ""
    loss, _, rest = record.say_best_loss().partition(" on ")
    found = record.confirmation
    other = "" if found is None or found.trial == record.best.number else f"; {found.say(record.unit)}"
    return loss, f"on {rest}{other}"


def _metric(metric: float | None, standard_error: float | None) -> str:
    return ABSENT if metric is None or not np.isfinite(metric) else format_metric(metric, standard_error)


_COLUMNS = (
    ("Layer", "text"),
    ("Type", "text"),
    ("Weights", "number"),
    ("Levels", "number"),
    ("Retention", "number"),
    ("Bits per weight", "number"),
    ("Bytes", "number"),
    ("Ratio", "number"),
    ("Treatment", "text"),
    ("Reason", "text"),
)


def _layer_table(record: StudyRecord) -> str:
    best, losses = record.best, _layer_losses(record)
    loss = [(f"Loss, {'share' if _loss_is_share(record) else record.unit.name or 'of the metric'}", "number")]
    columns = [*_COLUMNS[:-2], *(loss if losses else []), *_COLUMNS[-2:]]
    heads = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{_text(name)}</button></th>' for name, kind in columns
    )
    rows = "\n".join(
        _layer_row(row, row.layer.treatment, [losses.get(row.layer.name)] if losses else [])
        for row in record.layer_rows(best)
    )
    whole = LayerRecord("All layers", "", sum(layer.weights for layer in record.layers), "float")
    total = _layer_row(
        LayerRow(whole, best.size_bytes if best else None, None), "", [sum(losses.values())] if losses else []
    )
    note = "Under the best trial's plan" if best else "Sizes follow once a trial satisfies the constraint"
    return (
        f'<section><h2>Layers</h2><p class="note">{note}; click a heading to sort.</p>{_words("level", "retention")}'
        '<p class="filter"><label>Filter <input type="search" placeholder="name, type or treatment"></label> '
        f'<output class="note">{len(record.layers)} layers</output></p>'
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody><tfoot>{total}</tfoot></table></div></section>"
    )


def _loss_is_share(record: StudyRecord) -> bool:
    return record.loss_parts is None or record.loss_parts.loss is None


def _layer_losses(record: StudyRecord) -> dict[str, float]:
    """Return what each searched layer contributes to the loss, in the unit of losses, or as a share of it."""
    parts = record.loss_parts
    if parts is None:
        return {}
    scale = 1.0 if parts.loss is None else parts.loss * record.unit.factor
    return {part.layer: part.share * scale for part in parts.layers}


def _layer_row(row: LayerRow, treatment: str, losses: Sequence[float | None]) -> str:
    cells = (
        _cell(row.layer.name),
        _cell(row.layer.type),
        _cell(row.layer.weights, ","),
        _cell(row.levels, "d"),
        _cell(row.retention, ".2%"),
        _cell(row.bits_per_weight, ".3f"),
        _cell(row.size_bytes, ","),
        _cell(row.ratio, ".2f", "×"),
        *(_cell(loss, ".3g") for loss in losses),
        _cell(treatment),
        _cell(row.layer.reason),
    )
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: str | float | None, pattern: str = "", unit: str = "") -> str:
    if isinstance(value, str):
        return f"<td>{_text(value)}</td>"
    shown = _number(value, pattern) + (unit if value is not None else "")
    return f'<td class="number" data-value="{"" if value is None else value}">{shown}</td>'


def _figures(record: StudyRecord) -> str:
    """Return all figures, one of which is seen at a time on a screen, and all on paper."""
    drawn = {kind: FIGURES[kind](record) for kind in TABS}
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{kind}" aria-controls="panel-{kind}">{name}</button>'
        for kind, name in TABS.items()
    )
    panels = "\n".join(_panel(kind, figure) for kind, figure in drawn.items())
    many = ' class="many"' if len(record.layers) > FEW_LAYERS else ""  # long labels need room
    return f'<section{many}><h2>Figures</h2><div role="tablist">{tabs}</div>{panels}</section>'


def _panel(kind: str, figure: go.Figure) -> str:
    return (
        f'<div role="tabpanel" id="panel-{kind}" aria-labelledby="tab-{kind}" hidden>'
        f"<h3>{_text(figure.layout.title.text)}</h3>{_drawing(kind, figure)}{_words(*PANEL_WORDS.get(kind, ()))}</div>"
    )


def _drawing(kind: str, figure: go.Figure) -> str:
    """Return a place for a figure and what is drawn there; its title is the page's heading."""
    figure.update_layout(title_text="", margin_t=(figure.layout.margin.t or TEMPLATE.layout.margin.t) - TITLE_PX)
    # Inside a script element only "<" can end it, and JSON may spell it otherwise.
    drawing = plotly.io.to_json(figure).replace("<", "\\u003c")
    return (
        f'<div class="drawing"><div class="scroll"><div class="plot" id="figure-{kind}"></div></div>'
        f'<script type="application/json">{drawing}</script></div>'
    )


def _chip(record: StudyRecord) -> str:
    """Return what the chip loads of each layer, the largest first; nothing without a chip."""
    if record.chip is None:
        return ""
    best = record.best
    sizes = {row.layer.name: row.size_bytes for row in record.layer_rows(best)} if best is not None else {}
    total = sum(size or 0 for size in sizes.values())
    layers = sorted(record.chip.layers, key=lambda layer: -(sizes.get(layer.layer) or layer.device_bytes))
    rows = [
        (
            layer.layer,
            "yes" if layer.is_compressed else "no",
            layer.reason,
            _number(layer.load, ".2f"),
            f"{layer.device_bytes:,}",
            _number(size, ","),
            _number(size and size / total, ".1%"),
        )
        for layer, size in ((layer, sizes.get(layer.layer)) for layer in layers)
    ]
    heads = ("Layer", "Compressed", "Why", "Loading by computing", "Bytes, int8 only", "Bytes now", "Share of all")
    return _plain_table(f"What {record.chip.chip} loads: {record.chip.marks}", heads, rows)


def _skipped(record: StudyRecord) -> str:
    """Return the layers without a codebook and the failed trials, with the reasons."""
    layers = [(layer.name, layer.treatment, layer.reason) for layer in record.layers if layer.treatment != "nuq"]
    failed = [trial for trial in record.trials if trial.state == "failed"]
    return "".join(
        [
            _plain_table("Layers without a codebook", ("Layer", "Treatment", "Reason"), layers),
            _plain_table("Failed trials", ("Trial", "Reason", "Worker", "Started"), map(_failure_row, failed)),
        ]
    )


def _float_layers(record: StudyRecord) -> str:
    """Return which layers stay float, and what each layer costs alone; nothing where int8 was good enough."""
    found = record.float_layers
    if not found.say():
        return ""
    rows = [
        (one.layer, "float" if one.layer in found.layers else "int8", f"{one.float_bytes:,}", found.say_cost(one.cost))
        for one in found.costs
    ]
    heads = ("Layer", "Decision", "Bytes as float32", f"Alone at int8: {found.measure}")
    table = _plain_table("What each layer costs alone", heads, rows) if rows else ""
    return f'<section><h2>Float layers</h2><p class="note">{_text(found.say())}.</p></section>{table}'


def _rounding(record: StudyRecord) -> str:
    """Return how weights are rounded, the ways that were compared, and what could not be told."""
    found = record.rounding
    if not found.say():
        return ""
    rows = [
        (one.way + (" (chosen)" if one.way == found.way else ""), f"{one.ratio:.1f}x", f"{one.divergence:.4f}")
        for one in found.compared
    ]
    heads = ("Way", "Ratio", "Nats from the original, on images it did not learn from")
    tables = [
        _plain_table("Ways that were compared", heads, rows) if rows else "",
        _plain_table("Errors whose cost is not known", ("Layer", "Reason"), found.unknown.items())
        if found.unknown
        else "",
    ]
    note = f'<p class="note">{_text(found.say())}.</p>{_words("gradients", "slope", "nats")}'
    return f"<section><h2>How weights are rounded</h2>{note}</section>{''.join(tables)}"


def _failure_row(trial: TrialRecord) -> tuple[str, ...]:
    return str(trial.number), trial.error or ABSENT, trial.worker or ABSENT, trial.started or ABSENT


def _provenance(record: StudyRecord) -> str:
    """Return command and study file to copy, and what else is known of the study's origin."""
    known = {key: masked_text(value) for key, value in record.provenance.items()}  # older versions stored passwords
    texts = [(key, known[key]) for key in ("command", "study file") if key in known]
    others = [(key, value) for key, value in known.items() if key not in dict(texts)]
    blocks = "".join(f"<h3>{_text(key.capitalize())}</h3><pre>{_text(value)}</pre>" for key, value in texts)
    return f"<section><h2>How to reproduce</h2>{blocks}</section>" + _plain_table(
        "Versions, files and hashes", ("What", "Value"), others
    )


def _plain_table(title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{_text(value)}</td>' for value in row)}</tr>" for row in rows)
    if not body:
        return f"<section><h2>{_text(title)}</h2><p>None.</p></section>"
    return (
        f'<section><h2>{_text(title)}</h2><div class="scroll"><table class="plain">'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _number(value: float | None, pattern: str) -> str:
    return ABSENT if value is None or not np.isfinite(value) else format(value, pattern)


def _text(value: str) -> str:
    return html.escape(visible(value, keep="\n"))


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f5f7f9; --ink: #1f2328; --faint: #59636e;
  --line: #d9dee3; --accent: #0064a0; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --card: #1d2228; --ink: #e6e9ec; --faint: #9aa4ae; --line: #343b43;
    --accent: #6bb8f0; }
}
@media screen and (prefers-color-scheme: dark) { .plot .trace, .plot .layers { filter: brightness(1.35); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header > p:first-child, .note, small { color: var(--faint); margin: 0; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.25rem; }
.verdict { font-size: 1.4rem; margin: .75rem 0 1.25rem; }
.verdict strong { color: var(--accent); }
.warning { margin: .75rem 0; padding: .5rem .9rem; border-left: .35rem solid #D55E00; background: var(--card);
  font-weight: 600; }
.facts { margin: 0; }
.facts > div { display: grid; grid-template-columns: 7rem 1fr; gap: .25rem .75rem; padding: .2rem 0; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts ol { margin: 0; padding-left: 1.2rem; }
.worst { color: var(--faint); font-size: .875rem; margin: .25rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.words { font-size: .85rem; margin: .35rem 0; max-width: 60rem; }
dfn { font-style: normal; font-weight: 600; color: var(--ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .75rem;
  margin: 0; }
.tiles > div { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; }
.tiles dt { color: var(--faint); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tiles small { display: block; font-size: .8rem; }
.scroll { overflow: auto; max-height: 85vh; margin-top: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { padding: .35rem .5rem; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--paper); vertical-align: bottom; z-index: 1; }
tfoot td { font-weight: 600; border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.sortable td { white-space: nowrap; }
.sortable tr > :first-child { position: sticky; left: 0; background: var(--paper); }
.sortable thead tr > :first-child { z-index: 2; }
.sortable td:last-child { white-space: normal; min-width: 9rem; }
.plain td { overflow-wrap: anywhere; }
.plain td:first-child { white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: "\\2195"; opacity: .35; margin-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
h3 { margin: 1rem 0 .25rem; font-size: 1rem; }
pre { background: var(--card); border-radius: .5rem; padding: .75rem .9rem; overflow: auto; margin: .25rem 0;
  font-size: .85rem; }
[role=tablist] { display: flex; flex-wrap: wrap; gap: .25rem; margin: .5rem 0; }
[role=tab] { font: inherit; font-size: .9rem; color: var(--ink); background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: .4rem; padding: .25rem .7rem; }
[role=tab][aria-selected=true] { background: var(--accent); border-color: var(--accent); color: var(--paper); }
[role=tab]:focus-visible, .filter input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.filter { margin: .5rem 0; }
.filter input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .25rem .6rem; width: min(16rem, 100%); }
#figure-layers { min-width: 46rem; }
#figure-hurt { min-width: 34rem; }
.many #figure-curves, .many #figure-codebooks, .many #figure-importance { min-width: 30rem; }
.plot .main-svg { background: transparent !important; }
.plot .bg { fill: transparent !important; }
.plot text { fill: var(--ink) !important; }
.plot .gridlayer path, .plot path.xtick, .plot path.ytick { stroke: var(--line) !important; }
.plot .hoverlayer text { fill: #1f2328 !important; }
@media (max-width: 40rem) { .facts > div { grid-template-columns: 1fr; } .facts dt { font-size: .85rem; } }
@media (max-width: 40rem) { main { padding: 1.25rem .75rem 3rem; } .verdict { font-size: 1.2rem; } }
@page { margin: 12mm; }
@media print {
  main { max-width: none; padding: 0; } .scroll { overflow: visible; max-height: none; }
  h2 { margin-top: 1.25rem; } section, .tiles > div { break-inside: avoid; }
  section:has(table), section:has(.plot) { break-inside: auto; } pre { white-space: pre-wrap; }
  thead th { position: static; } .sortable { font-size: .7rem; } .plot { min-width: 0 !important; }
  [role=tablist], .filter { display: none; } [role=tabpanel], .drawing { break-inside: avoid; }
  th button::after { content: ""; }
  .sortable td:last-child { min-width: 0; } th, td { padding: .2rem .3rem; }
}
"""

_FIGURE_SCRIPT = """
const PRINT_WIDTH_PX = 680;  // the text width of a portrait A4 or letter page
const tabs = [...document.querySelectorAll("[role=tab]")];
const panels = [...document.querySelectorAll("[role=tabpanel]")];
const drawings = [...document.querySelectorAll(".drawing")];
function draw(holder) {
  const plot = holder.querySelector(".plot");
  if (plot.classList.contains("js-plotly-plot")) return;
  const figure = JSON.parse(holder.querySelector("script").textContent);
  const narrow = window.innerWidth < 640;
  if (narrow) figure.layout.margin = {...figure.layout.margin, l: 48, r: 8};
  figure.config = {responsive: true, displaylogo: false, displayModeBar: narrow ? false : undefined};
  Plotly.newPlot(plot, figure);
}
function select(index) {
  tabs.forEach((tab, i) => {
    tab.setAttribute("aria-selected", i === index);
    tab.tabIndex = i === index ? 0 : -1;
    panels[i].hidden = i !== index;
  });
  draw(panels[index]);
  Plotly.Plots.resize(panels[index].querySelector(".plot"));
}
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => select(index));
  tab.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const next = (index + step + tabs.length) % tabs.length;
    select(next);
    tabs[next].focus();
  });
});
addEventListener("beforeprint", () => {
  for (const panel of panels) panel.hidden = false;
  for (const drawing of drawings) {
    draw(drawing);
    Plotly.relayout(drawing.querySelector(".plot"), {width: PRINT_WIDTH_PX});
  }
});
addEventListener("afterprint", () => {
  for (const drawing of drawings) Plotly.relayout(drawing.querySelector(".plot"), {width: null, autosize: true});
  select(tabs.findIndex(tab => tab.getAttribute("aria-selected") === "true"));
});
draw(document.querySelector(".first .drawing"));
select(0);
"""

_TABLE_SCRIPT = """
const table = document.querySelector(".sortable"), body = table.tBodies[0];
for (const button of table.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex;
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = head.classList.contains("number")
      ? (a, b) => (key(a) === "") - (key(b) === "") || sign * (key(a) - key(b))
      : (a, b) => sign * key(a).localeCompare(key(b), undefined, {numeric: true});
    body.append(...[...body.rows].sort(order));
  });
}
document.querySelector(".filter input").addEventListener("input", event => {
  const wanted = event.target.value.trim().toLowerCase(), rows = [...body.rows];
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  const shown = rows.filter(row => !row.hidden).length;
  document.querySelector(".filter output").textContent =
    shown === rows.length ? `${shown} layers` : `${shown} of ${rows.length} layers`;
});
"""
