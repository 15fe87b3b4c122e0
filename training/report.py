"""The page that a run leaves for a person to read."""

import html
import io
from typing import Any

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
td {{ padding: .25rem .5rem; border-bottom: 1px solid #8884;
  overflow-wrap: anywhere; }}
td:first-child {{ width: 40%; opacity: .75; }}
</style>
<h1>{title}</h1>
{result}
{curves}
<h2>Configuration</h2>
{configuration}
</html>
"""


def page(
    title: str, result: dict[str, Any], rows: list[dict[str, float]]
) -> str:
    """Makes a self-contained HTML page of a finished run.

    Args:
        title: Heading.
        result: Content of `result.json`.
        rows: Content of `metrics.csv`.

    Returns:
        The page: no script, nothing loaded from elsewhere.
    """
    figures = {
        "test accuracy, last epoch": f"{100 * result['accuracy']:.2f} %",
        "test accuracy, best epoch": f"{100 * result['best_accuracy']:.2f} %",
        "epochs": result["epochs"],
        "parameters": f"{result['parameters']:,}",
        "minutes": f"{result['seconds'] / 60:.1f}",
    }
    return _PAGE.format(
        title=html.escape(title),
        result=_table(figures),
        curves=_curves(rows),
        configuration=_table(result["configuration"]),
    )


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td>"
        f"<td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _curves(rows: list[dict[str, float]]) -> str:
    # Here, since importing it takes a second. No display is needed.
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 6), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    for name in rows[-1]:
        if name in ("epoch", "learning_rate", "seconds"):
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
    text = io.StringIO()
    figure.savefig(text, format="svg")
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
