"""What a comparison came to: tables, a picture and a page."""

import html
import json
import os
from collections.abc import Mapping

import keras_mhgd
from keras_mhgd.files import write_atomically
from training import pictures, report, tables
from training.comparison import Comparison
from training.results import measure, read_metrics, read_result


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
        folders = {
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
        """Writes `table.md`, `table.csv`, `result.png` and `index.html`.

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
        config = json.loads((directory / "config.json").read_text())
        parts = {
            "": report.table(cells[1:], head=cells[0])
            + f"<p>{html.escape(legend)}</p>"
            + pictures.as_svg(figure),
            "Flags": report.table(
                [
                    ("all", " ".join(config["shared"])),
                    *(
                        (name, " ".join(flags))
                        for name, flags in config["ways"].items()
                    ),
                ]
            ),
        }
        write_atomically(
            directory / "index.html", report.page(self._title, parts)
        )
