"""The page that a run leaves for a person to read."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.pictures import as_svg

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem;
  margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; background: #fff; border-radius: 8px; }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; }}
td, th {{ padding: .25rem .5rem; border-bottom: 1px solid #8884;
  text-align: left; }}
.facts td {{ overflow-wrap: anywhere; }}
.facts td:first-child {{ width: 40%; opacity: .75; }}
.results td, .results th {{ white-space: nowrap; }}
.scroll {{ overflow-x: auto; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(title: str, parts: Mapping[str, str]) -> str:
    """Makes a self-contained HTML page.

    Args:
        title: Heading.
        parts: HTML by heading; one without heading comes first.

    Returns:
        The page: no script, nothing loaded from elsewhere.
    """
    body = "\n".join(
        (f"<h2>{html.escape(heading)}</h2>\n" if heading else "") + part
        for heading, part in parts.items()
    )
    return _PAGE.format(title=html.escape(title), body=body)


def of_run(
    title: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, float]]
) -> str:
    """Makes the page of a finished run.

    Args:
        title: Heading.
        result: Content of `result.json`.
        rows: Content of `metrics.csv`.

    Returns:
        The page.
    """
    figures = {
        "test accuracy, last epoch": f"{100 * result['accuracy']:.2f} %",
        "test accuracy, best epoch": f"{100 * result['best_accuracy']:.2f} %",
        "epochs": result["epochs"],
        "parameters": f"{result['parameters']:,}",
        "minutes": f"{result['seconds'] / 60:.1f}",
    }
    parts = {
        "": table(figures.items()) + _curves(rows),
        "Configuration": table(result["configuration"].items()),
    }
    return page(title, parts)


def table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] | None = None
) -> str:
    """Makes an HTML table of escaped cells."""

    def line(cells, tag):
        inner = "".join(
            f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells
        )
        return f"<tr>{inner}</tr>"

    heading = line(head, "th") if head else ""
    body = "".join(line(row, "td") for row in rows)
    kind = "results" if head else "facts"
    return (
        f'<div class="scroll"><table class="{kind}">{heading}{body}</table>'
        "</div>"
    )


def _curves(rows: list[dict[str, float]]) -> str:
    # Here, since importing it takes a second. No display is needed.
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 6), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    for name in rows[-1]:
        if name in ("epoch", "learning_rate", "seconds", "skipped_steps"):
            continue
        axes = accuracies if "accuracy" in name else losses
        measured = [row for row in rows if name in row]
        axes.plot(
            [row["epoch"] for row in measured],
            [row[name] for row in measured],
            label=name,
        )
    losses.set(ylabel="loss", yscale="log")
    accuracies.set(ylabel="accuracy", xlabel="epoch")
    for axes in (losses, accuracies):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)
