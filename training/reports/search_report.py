"""Reports the trials of a search in a table, files and a page."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras_tuner

from keras_mhgd.storage.files import write_atomically

from . import page, pictures

Row = Mapping[str, Any]


def rows(trials: Iterable[keras_tuner.engine.trial.Trial]) -> list[Row]:
    """Makes a row for each trial, the best first and failed ones last.

    Args:
        trials: Trials of a tuner's oracle.

    Returns:
        Dicts of `trial`, `status`, `val_accuracy` (fraction), the
        hyperparameters by name and, for a failed trial, the `message`.
    """
    made = []
    for trial in trials:
        row = {"trial": trial.trial_id, "status": trial.status}
        if trial.score is not None:
            row["val_accuracy"] = trial.score
        row |= trial.hyperparameters.values
        if trial.message:
            # The last line of a traceback names the error.
            row["message"] = trial.message.strip().splitlines()[-1]
        made.append(row)
    # A resumed search may have its trials in any order, so trials with equal
    # accuracy are sorted by number.
    return sorted(
        made,
        key=lambda row: (-row.get("val_accuracy", -1.0), int(row["trial"])),
    )


def cells(made: Sequence[Row]) -> list[list[str]]:
    """Makes the cells of a table, its head first."""
    apart = ("trial", "status", "val_accuracy", "message", "method")
    names = {name: None for row in made for name in row if name not in apart}
    varied = [
        name for name in names if len({row.get(name) for row in made}) > 1
    ]
    table = [["trial", "validation accuracy, %", "method", "settings"]]
    for row in made:
        settings = [
            f"{name.rpartition('/')[2]}={_text(row[name])}"
            for name in varied
            if name in row
        ]
        accuracy = row["status"].lower()
        if "val_accuracy" in row:
            accuracy = f"{100 * row['val_accuracy']:.2f}"
        settings.append(row.get("message", ""))
        table.append(
            [row["trial"], accuracy, row["method"], " ".join(settings).strip()]
        )
    return table


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(directory: pathlib.Path, made: Sequence[Row], title: str) -> None:
    """Writes `trials.csv`, `trials.json`, `trials.png` and `report.html`."""
    names = {name: None for row in made for name in row}
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    figure = pictures.trials(made, title)
    head, *lines = cells(made)
    content = page.render(
        "search.html.j2", title=title, figure=figure, head=head, rows=lines
    )
    write_atomically(directory / "trials.csv", text.getvalue())
    write_atomically(
        directory / "trials.json", json.dumps(made, indent=2) + "\n"
    )
    write_atomically(directory / "report.html", content)
    pictures.save(directory / "trials.png", figure)
