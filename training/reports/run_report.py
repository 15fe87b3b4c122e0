"""Makes the page of a finished run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import keras_mhgd
from keras_mhgd.gradients import SUMMARY
from keras_mhgd.graph import GraphRecord

from . import (
    attention_section,
    confusions_section,
    page,
    pictures,
)


def run_page(
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
        graphs: Attention graphs of MHGD, if there are any.

    Returns:
        HTML.
    """
    taught = {}
    if "teacher" in result:
        taught["teacher"] = f"{100 * result['teacher']['accuracy']:.2f} %"
    return page.render(
        "run.html.j2",
        title=title,
        figures={
            "test accuracy, last epoch": f"{100 * result['accuracy']:.2f} %",
            "best epoch": f"{100 * result['best_accuracy']:.2f} %",
            **taught,
            "epochs": result["epochs"],
            "parameters": f"{result['parameters']:,}",
            "minutes": f"{result['seconds'] / 60:.1f}",
        },
        curves=_curves(rows),
        graphs=graphs and attention_section.content(graphs),
        confused=confusions_section.of_run(dataset, predicted),
        configuration=result["configuration"],
    )


def _curves(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Draws the columns of `metrics.csv`, related columns together."""
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
    drawn = {
        "Accuracy, %": pictures.curves(series(accuracies, 100)),
        "Losses": pictures.curves(series(losses), log=True),
        "Norms of gradients": pictures.curves(series(norms[:2]), log=True),
        "Share of clipped gradients, %": pictures.curves(
            series(norms[2:], 100), limits=(0, 100)
        ),
        "Learning rate": pictures.curves(series(["learning_rate"])),
    }
    return {title: figure for title, figure in drawn.items() if figure}


def _words(name: str) -> str:
    """Names a column of `metrics.csv` in words."""
    part = "test " if name.startswith("val_") else ""
    return part + name.removeprefix("val_").replace("_", " ")
