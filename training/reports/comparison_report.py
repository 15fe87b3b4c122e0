"""Writes the tables, the picture and the page of a comparison."""

import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import keras_mhgd
from keras_mhgd.graph import GraphRecord
from keras_mhgd.storage.files import read_json, write_atomically

from ..saved.results import (
    measure,
    read_metrics,
    read_predictions,
    read_result,
    validated,
)
from . import (
    attention_section,
    confusions_section,
    page,
    pictures,
    tables,
)
from .tables import Row

_CURVES = 5  # ways that are drawn beside the student alone


class Outcome:
    """Reads the finished runs of a comparison.

    Args:
        directory: The comparison's folder.
        folders: The run folders of each way, trial by trial; the student
            alone comes first.
        teacher: File of the teacher, whose test accuracy is measured.
        dataset: The data.
        title: Heading.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        folders: Mapping[str, Sequence[pathlib.Path]],
        teacher: str | os.PathLike,
        dataset: keras_mhgd.data.Dataset,
        title: str,
    ):
        self._directory = directory
        self._title = title
        self.teacher = measure(keras_mhgd.export.load(teacher), dataset)
        self._dataset = dataset
        self._folders = folders
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
            published: Published results by way.
            note: Text at the end of the table's legend.
        """
        directory = self._directory
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
            self._page(cells, legend, figure),
        )

    def _page(self, cells, legend, figure) -> str:
        alone, *others = self.rows
        ranked = sorted(others, key=_mean, reverse=True)
        figures = {
            row.name: f"{_mean(row):.2f} %" for row in (*ranked[:1], alone)
        }
        config = read_json(self._directory / "config.json")
        graphs = {
            name: GraphRecord.load(folders[0] / "attention.npz")
            for name, folders in self._folders.items()
        }
        changed = None
        for best in ranked[:1]:
            changed = confusions_section.of_comparison(
                self._dataset,
                *map(self._predictions, (alone, best)),
                best.name,
            )
        return page.render(
            "comparison.html.j2",
            title=self._title,
            figures=figures
            | {
                "teacher": f"{100 * self.teacher:.2f} %",
                "trials": len(alone.last),
            },
            picture=figure,
            head=cells[0],
            rows=cells[1:],
            legend=legend,
            curves=self._curve(alone, *ranked[:_CURVES]),
            attended={
                name: attention_section.content(each)
                for name, each in graphs.items()
                if each
            },
            changed=changed,
            # Pairs, since a way may be named "all".
            configuration=[
                (name, [f"{flag}: {value}" for flag, value in flags.items()])
                for name, flags in (
                    ("all", config["shared"]),
                    *config["ways"].items(),
                )
            ],
        )

    def _predictions(self, row: Row) -> list[np.ndarray]:
        return [read_predictions(each) for each in self._folders[row.name]]

    def _curve(self, *rows: Row) -> Any:
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

        return pictures.curves({row.name: mean(row) for row in rows})


def _mean(row: Row) -> float:
    return statistics.mean(row.last)
