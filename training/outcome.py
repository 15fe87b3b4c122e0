"""What a comparison came to: tables, a picture and a page."""

import html
import json
import os
import statistics
from collections.abc import Mapping

import keras_mhgd
from keras_mhgd.files import write_atomically
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

_CURVES = 5  # ways, beside the student alone


class Outcome:
    """Reads the finished runs of a comparison.

    Args:
        comparison: All of its trials are finished.
        trials: How many.
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
            for way in comparison.ways
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

    def write(self, published: Mapping[str, str], source: str) -> None:
        """Writes `table.md`, `table.csv`, `result.png` and `report.html`.

        Args:
            published: Published results of ways.
            source: Where they were published.
        """
        directory = self._comparison.directory
        cells = tables.cells(self.rows, published)
        legend = tables.legend(self.teacher, self.rows)
        if source:
            legend += f" Published: {source}."
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
        means = {row.name: statistics.mean(row.last) for row in self.rows}
        ranked = sorted((row.name for row in others), key=means.get)[::-1]
        figures = {alone.name: f"{means[alone.name]:.2f} %"}
        if ranked:
            best = ranked[0]
            figures = {best: f"{means[best]:.2f} %"} | figures
        figures["teacher"] = f"{100 * self.teacher:.2f} %"
        figures["trials"] = len(alone.last)
        strips = {name: self._last(name) for name in [*ranked, alone.name]}
        marks = {alone.name: means[alone.name], "teacher": 100 * self.teacher}
        parts = {
            "": report.tiles(figures),
            "Test accuracy after the last epoch, %": charts.strips(
                strips, marks
            ),
            "Table": report.table(cells[1:], head=cells[0])
            + f'<p class="note">{html.escape(legend)}</p>',
            "Curves": charts.lines(
                "Test accuracy, %, mean of trials",
                {
                    name: self._curve(name)
                    for name in [alone.name, *ranked[:_CURVES]]
                },
                unit=" %",
            ),
        }
        for name, folders in self._folders.items():
            graphs = GraphRecord.load(folders[0] / "attention.npz")
            if graphs:
                parts[f"Attention graphs, {name}, first trial"] = (
                    attention.section(graphs)
                )
        if ranked:
            parts[f"Confusions that {best} fixed"] = confusions.of_comparison(
                self._dataset,
                *(
                    [read_predictions(each) for each in self._folders[name]]
                    for name in (alone.name, best)
                ),
                best,
            )
        config = json.loads(
            (self._comparison.directory / "config.json").read_text()
        )
        parts["Configuration"] = report.table(
            [
                ("all", " ".join(config["shared"])),
                *(
                    (name, " ".join(flags))
                    for name, flags in config["ways"].items()
                ),
            ]
        )
        return parts

    def _last(self, name) -> list[float]:
        return next(row.last for row in self.rows if row.name == name)

    def _curve(self, name) -> list[tuple[int, float]]:
        """Test accuracy, %, in the mean of a way's trials."""
        return [
            (
                epochs[0],
                100 * statistics.mean(accuracies),
            )
            for epochs, accuracies in (
                zip(*tested, strict=True)
                for tested in zip(
                    *map(validated, self._curves[name]), strict=True
                )
            )
        ]
