"""Checks every method under every condition and writes a table.

python -m benchmarks.correctness.matrix [column ...]

Runs the named columns, or all, and writes `docs/matrix.json` and
`docs/matrix.md`. Both keep the other columns of earlier runs.

A cell is the largest difference from the same training without the condition,
relative to the largest entry of an array or to 1. For a task that trains, the
cell is `yes`. If there is no number, the cell refers to the reason.

To add a column, add an entry to `COLUMNS`.
"""

import functools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from benchmarks.correctness import conditions
from benchmarks.correctness.cluster import results, tf_configs
from keras_mhgd import methods

RESULTS = pathlib.Path("docs")
COMBINATIONS = ("recommended", "fitnet+rkd")

Cell = float | str
Column = dict[str, Cell]


def rows() -> list[str]:
    """Lists all methods, `"recommended"`, and one method beside another."""
    return [*methods.names(), *COMBINATIONS]


def on_devices(
    count: int,
    of_rows: Sequence[str],
    folder: str | os.PathLike,
    policy: str = "float32",
) -> Column:
    """Compares replicas of one process with one device.

    Args:
        count: Number of replicas.
        of_rows: Some of `rows()`.
        folder: Folder that keeps the results of one device for other columns.
        policy: Keras's dtype policy, for one device too.
    """
    return _cells(count, policy, of_rows, folder, [{}])


def on_workers(
    count: int, of_rows: Sequence[str], folder: str | os.PathLike
) -> Column:
    """Compares worker processes with one: see `on_devices`."""
    variables = [{"TF_CONFIG": config} for config in tf_configs(count)]
    return _cells(count, "float32", of_rows, folder, variables)


COLUMNS: dict[str, Callable[[Sequence[str], str | os.PathLike], Column]] = {
    "2 replicas": lambda *where: on_devices(2, *where),
    "4 replicas": lambda *where: on_devices(4, *where),
    "2 workers": lambda *where: on_workers(2, *where),
    **{
        f"2 replicas, {policy}": functools.partial(on_devices, 2, policy=policy)
        for policy in ("mixed_bfloat16", "mixed_float16")
    },
    **conditions.COLUMNS,
}


def table(columns: Mapping[str, Column]) -> str:
    """Writes a Markdown table: a row a method, a column a condition.

    Args:
        columns: Columns by name; a row that is not in a column has an empty
            cell there.
    """
    found = {name: None for column in columns.values() for name in column}
    names = [*rows(), *(name for name in found if name not in rows())]
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    notes: dict[str, int] = {}
    for name in names:
        cells = [
            _text(column.get(name, ""), notes) for column in columns.values()
        ]
        lines.append([name, *cells])
    rows_of_it = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    refusals = "".join(f"{number}. {why}\n" for why, number in notes.items())
    return f"{rows_of_it}\n{refusals}"


def _text(cell: Cell, notes: dict[str, int]) -> str:
    """Formats a number, or notes a reason and gives the note's number."""
    if isinstance(cell, str):
        return f"[{notes.setdefault(cell, len(notes) + 1)}]" if cell else ""
    return f"{cell:.1e}" if cell else "yes"


def _cells(count, policy, of_rows, folder, variables) -> Column:
    """Runs `devices` in a process for each dict of environment variables."""
    chief, *_ = results(
        "benchmarks.correctness.devices",
        [count, policy, folder, *of_rows],
        variables,
    )
    return chief[-1]


def main(*names: str) -> None:
    """Runs columns, adds them to the earlier ones, and writes both files."""
    path = RESULTS / "matrix.json"
    columns = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or COLUMNS:
            columns[name] = COLUMNS[name](rows(), folder)
            columns = {
                each: columns[each] for each in COLUMNS if each in columns
            }
            path.write_text(json.dumps(columns, indent=1) + "\n")
    page = RESULTS / "matrix.md"
    head = page.read_text().partition("| ")[0]
    page.write_text(head + table(columns))


if __name__ == "__main__":
    main(*sys.argv[1:])
