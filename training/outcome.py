"""What a comparison came to: tables, a picture and a page."""

import html
import os
import statistics
from collections.abc import Mapping

import numpy as np

import keras_mhgd
from keras_mhgd.files import read_json, write_atomically
from keras_mhgd.graph import GraphRecord
from training import attention, charts, confusions, pictures, report, tables
from training.comparison import Comparison
from training.results import (
    measure,
    read_metrics,
    read_predictions,
    read_result,
    validated,
)
from training.tables import Row

_CURVES = 5  # ways, beside the student alone


class Outcome:
    """Reads the finished runs of a comparison.

    Args:
        comparison: Its finished ways are shown; the first, the student alone,
            must be.
        trials: Of each way.
        teacher: A network's file: its test accuracy is measured.
        dataset: The data.
        title: Heading.
    """

    def __init__(
        self,
        comparison: Comparison,
        trials: int,
        teacher: str | os.PathLike,
        dataset: keras_mhgd.data.Dataset,
        title: str,
    ):
        self._comparison = comparison
        self._title = title
        self.teacher = measure(keras_mhgd.export.load(teacher), dataset)
        self._dataset = dataset
        self._folders = folders = {
            way.name: [comparison.folder(way, k) for k in range(trials)]
            for way in comparison.finished(trials)
        }
        self._curves = {
            name: [read_metrics(each / "metrics.csv") for each in folder]
            for name, folder in folders.items()
        }
        self.rows = tables.rows(
            self.teacher,
            {
                name: [read_result(each) for each in folder]
                for name, folder in folders.items()
            },
        )
        self.text = ""

    def write(self, published: Mapping[str, str], note: str) -> None:
        """Writes `table.md`, `table.csv`, `result.png` and `report.html`.

        Args:
            published: Published results of ways.
            note: What the table's legend ends with.
        """
        directory = self._comparison.directory
        cells = tables.cells(self.rows, published)
        legend = tables.legend(self.teacher, self.rows)
        if note:
            legend += f" {note}"
        self.text = f"{tables.markdown(cells)}\n{legend}\n"
        write_atomically(directory / "table.md", self.text)
        write_atomically(
            directory / "table.csv", tables.comma_separated(self.rows)
        )
        figure = pictures.comparison(
            self.rows, self._curves, self.teacher, self._title
        )
        pictures.save(directory / "result.png", figure)
        write_atomically(
            directory / "report.html",
            report.page(self._title, self._parts(cells, legend)),
        )

    def _parts(self, cells, legend) -> dict[str, str]:
        """Makes the page's parts."""
        alone, *others = self.rows
        ranked = sorted(others, key=_mean, reverse=True)
        figures = [(row.name, _mean(row)) for row in (*ranked[:1], alone)]
        figures.append(("teacher", 100 * self.teacher))
        parts = {
            "": report.tiles(
                {name: f"{value:.2f} %" for name, value in figures}
                | {"trials": len(alone.last)}
            ),
            "Test accuracy after the last epoch, %": charts.strips(
                {row.name: row.last for row in (*ranked, alone)},
                dict(figures[-2:]),
            ),
            "Table": report.table(cells[1:], head=cells[0])
            + f'<p class="note">{html.escape(legend)}</p>',
            "Curves": charts.grid([self._curve(alone, *ranked[:_CURVES])]),
        }
        for name, folders in self._folders.items():
            graphs = GraphRecord.load(folders[0] / "attention.npz")
            if graphs:
                parts[f"Attention graphs, {name}, first trial"] = (
                    attention.section(graphs)
                )
        for best in ranked[:1]:
            parts[f"Confusions that {best.name} fixed"] = (
                confusions.of_comparison(
                    self._dataset,
                    *map(self._predictions, (alone, best)),
                    best.name,
                )
            )
        config = read_json(self._comparison.directory / "config.json")
        parts["Configuration"] = report.table(
            [("all", config["shared"]), *config["ways"].items()]
        )
        return parts

    def _predictions(self, row: Row) -> list[np.ndarray]:
        return [read_predictions(each) for each in self._folders[row.name]]

    def _curve(self, *rows: Row) -> str:
        """Draws the test accuracy of some ways over the epochs."""

        def mean(row):
            trials = zip(*map(validated, self._curves[row.name]), strict=True)
            return [
                (
                    tested[0][0],
                    100 * statistics.mean(each[1] for each in tested),
                )
                for tested in trials
            ]

        return charts.lines(
            "Test accuracy, mean of trials",
            {row.name: mean(row) for row in rows},
            unit=" %",
        )


def _mean(row: Row) -> float:
    return statistics.mean(row.last)
