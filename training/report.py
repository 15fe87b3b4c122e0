"""The page that a run or a comparison leaves for a person to read."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import keras_mhgd
from keras_mhgd.gradients import SUMMARY
from keras_mhgd.graph import GraphRecord
from training import attention, charts, confusions

_STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --card: #f6f7f9; --ink: #1b1f24; --faint: #646c76;
  --line: #d9dde3; --c1: #1f66b5; --c2: #c8501f; --c3: #2a8a5a;
  --c4: #8450b0; --c5: #9a7400; --c6: #69727d; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1d2126; --ink: #e6e9ed; --faint: #98a1ac;
  --line: #353b43; --c1: #6db1ff; --c2: #ff9163; --c3: #5fd095;
  --c4: #c99bf2; --c5: #e0b93d; --c6: #a3adb8; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--page); max-width: 66rem;
  margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 1rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { max-width: 44rem; margin: .4rem 0 .8rem; }
.note, figcaption, .faint { color: var(--faint); font-size: .875rem; }
.tiles { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.tiles div { background: var(--card); border-radius: 10px;
  padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.tiles div:first-child b { color: var(--c1); }
.tiles span { color: var(--faint); font-size: .8125rem; }
.charts { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 10px;
  padding: .7rem .8rem .5rem; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; color: var(--ink); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--faint); }
svg .end { text-anchor: end; }
svg .grid { stroke: var(--line); fill: none; }
svg .line { stroke: var(--c); fill: none; stroke-width: 2;
  stroke-linejoin: round; }
svg circle { fill: var(--c); }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0;
  font-size: .8125rem; color: var(--faint); }
.keys b { color: var(--ink); font-weight: 600; }
.key::before { content: ""; display: inline-block; width: .9rem; height: 3px;
  border-radius: 2px; background: var(--c); margin: 0 .4rem .25rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem;
  font-variant-numeric: tabular-nums; }
td, th { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: 500; font-size: .8125rem; }
.facts td { overflow-wrap: anywhere; white-space: pre-line; }
.facts td:first-child { width: 34%; min-width: 9.5rem; color: var(--faint); }
.results td, .results th { white-space: nowrap; text-align: right; }
.results td:first-child, .results th:first-child { text-align: left; }
.strip { display: grid; grid-template-columns: 11rem 1fr 3.5rem; gap: .2rem
  .8rem; align-items: center; padding: .3rem 0; font-size: .9375rem; }
.strip div { position: relative; height: 1.4rem; background: var(--card);
  border-radius: 6px; }
.strip b { text-align: right; font-variant-numeric: tabular-nums; }
.strip i, .strip s, .strip u { position: absolute; top: 50%;
  transform: translate(-50%, -50%); }
.strip i { width: 9px; height: 9px; border-radius: 50%;
  background: var(--c1); opacity: .55; }
.strip s { width: 3px; height: 1.1rem; background: var(--c1);
  border-radius: 2px; }
.strip u { width: 1px; height: 100%; background: var(--faint); }
img { display: block; height: auto; }
.panels { display: grid; gap: .8rem; margin: .4rem 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(46%, 13rem), 1fr)); }
.panels img { width: 100%; image-rendering: pixelated; border-radius: 4px; }
.panels div { font-size: .8125rem; color: var(--faint); min-width: 0; }
.classes { display: flex; }
.classes span { overflow: hidden; text-align: center; color: var(--ink);
  text-overflow: ellipsis; white-space: nowrap; }
.heads { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.heads img { width: 100%; image-rendering: pixelated; border-radius: 3px; }
.scale { display: inline-block; width: 6rem; height: .6rem; margin: 0 .4rem;
  border-radius: 3px; vertical-align: middle; }
.magma { background: linear-gradient(90deg, #000004, #51127c, #b73779,
  #fc8961, #fcfdbf); }
.signed { background: linear-gradient(90deg, #053061, #f7f7f7, #67001f); }
.thumb { width: 44px; border-radius: 4px; image-rendering: pixelated; }
.two { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.row { display: grid; grid-template-columns: 4.2rem 1fr; gap: .2rem .8rem;
  padding: .6rem 0; border-bottom: 1px solid var(--line);
  align-items: center; }
.row > div:first-child { grid-row: span 2; }
.row .thumb.large { width: 60px; }
.attended { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center;
  font-size: .75rem; color: var(--faint); }
.attended em { width: 3.6rem; font-style: normal; }
.attended .both { outline: 3px solid var(--c3); }
.pair { display: grid; grid-template-columns: 6.5rem 1fr; gap: .2rem 1rem;
  padding: .6rem 0; border-bottom: 1px solid var(--line); }
.pair > b { font-size: 1.1rem; overflow-wrap: anywhere; }
.pair > div { display: grid; gap: .3rem; align-content: start; }
.thumbs { display: flex; flex-wrap: wrap; gap: .3rem; }
.bar { display: grid; grid-template-columns: 1fr 3rem; gap: .5rem;
  align-items: center; font-size: .8125rem; }
.bar i { display: block; height: .6rem; border-radius: 3px;
  background: var(--c); min-width: 2px; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--c1); }
@media (max-width: 36rem) {
  .strip { grid-template-columns: 1fr 3.5rem; padding: .5rem 0; }
  .strip div { grid-row: 2; grid-column: 1 / 3; }
  .thumb { width: 38px; } .attended em { width: 100%; }
  .pair { grid-template-columns: 4.2rem 1fr; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(title: str, parts: Mapping[str, str]) -> str:
    """Makes a self-contained HTML page.

    Args:
        title: Heading.
        parts: HTML by heading; one without heading comes first, empty ones
            are left out.

    Returns:
        The page: no script, nothing loaded from elsewhere.
    """
    body = "\n".join(
        (f"<h2>{html.escape(heading)}</h2>\n" if heading else "") + part
        for heading, part in parts.items()
        if part
    )
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def of_run(
    title: str,
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    dataset: keras_mhgd.data.Dataset,
    predicted: np.ndarray,
    graphs: GraphRecord | None = None,
) -> str:
    """Makes the page of a finished run.

    Args:
        title: Heading.
        result: Content of `result.json`.
        rows: Content of `metrics.csv`.
        dataset: The data.
        predicted: The student's classes of the test images.
        graphs: Of MHGD, if there are any.

    Returns:
        The page.
    """
    figures = {
        "test accuracy, last epoch": f"{100 * result['accuracy']:.2f} %",
        "best epoch": f"{100 * result['best_accuracy']:.2f} %",
        "epochs": result["epochs"],
        "parameters": f"{result['parameters']:,}",
        "minutes": f"{result['seconds'] / 60:.1f}",
    }
    parts = {
        "": tiles(figures),
        "Curves": _curves(rows),
        "Attention graphs": attention.section(graphs) if graphs else "",
        "Most confused classes": confusions.of_run(dataset, predicted),
        "Configuration": table(result["configuration"].items()),
    }
    return page(title, parts)


def tiles(figures: Mapping[str, Any]) -> str:
    """Shows a few figures, large, with their names below."""
    made = "".join(
        f"<div><b>{html.escape(str(value))}</b>"
        f"<span>{html.escape(name)}</span></div>"
        for name, value in figures.items()
    )
    return f'<div class="tiles">{made}</div>'


def table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] | None = None
) -> str:
    """Makes an HTML table of escaped cells."""

    def line(cells, tag):
        inner = "".join(
            f"<{tag}>{html.escape(_cell(cell))}</{tag}>" for cell in cells
        )
        return f"<tr>{inner}</tr>"

    heading = line(head, "th") if head else ""
    body = "".join(line(row, "td") for row in rows)
    kind = "results" if head else "facts"
    return (
        f'<div class="scroll"><table class="{kind}">{heading}{body}</table>'
        "</div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _curves(rows: Sequence[Mapping[str, float]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row)

    def series(chosen, factor=1.0):
        return {
            _words(name): [
                (row["epoch"], factor * row[name])
                for row in rows
                if name in row
            ]
            for name in chosen
        }

    accuracies = [name for name in names if "accuracy" in name][::-1]
    norms = [name for name in SUMMARY if name in names]
    apart = {"epoch", "seconds", "learning_rate", "skipped_steps"}
    apart.update(accuracies, norms)
    losses = [name for name in names if name not in apart]
    made = [
        charts.lines("Accuracy", series(accuracies, 100), unit=" %"),
        charts.lines("Losses", series(losses), log=True),
        charts.lines("Norms of gradients", series(norms[:2]), log=True),
        charts.lines(
            "Share of clipped gradients",
            series(norms[2:], 100),
            unit=" %",
            limits=(0, 100),
        ),
        charts.lines("Learning rate", series(["learning_rate"])),
    ]
    return charts.grid(made)


def _words(name: str) -> str:
    """Says what a column of `metrics.csv` is."""
    part = "test " if name.startswith("val_") else ""
    return part + name.removeprefix("val_").replace("_", " ")
