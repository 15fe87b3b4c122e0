"""Every method under every condition: a table of what was found.

python -m benchmarks.matrix [column ...]

Runs the columns named, all by default, and writes `docs/matrix.json`, which
keeps those of other runs, and `docs/matrix.md`. A cell is the largest
difference from the same training without the condition, relative to the largest
entry of an array or to 1; `yes` where a task trains; or why there is none.

A column more is an entry of `COLUMNS`.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from benchmarks import conditions
from keras_mhgd import methods
from tests.cluster import tf_configs

RESULTS = pathlib.Path("docs")
COMBINATIONS = ("recommended", "fitnet+rkd")

Cell = float | str
Column = dict[str, Cell]


def rows() -> list[str]:
    """All methods, `"recommended"`, and one beside another."""
    return [*methods.names(), *COMBINATIONS]


def on_devices(
    count: int,
    of_rows: Sequence[str],
    folder: str | os.PathLike,
    policy: str = "float32",
) -> Column:
    """Compares replicas of one process with one device.

    Args:
        count: Replicas.
        of_rows: Of `rows()`.
        folder: Where what one device trains is kept, for other columns.
        policy: Keras's, of dtypes; one device's is the same.
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
        columns: By name; a row that a column leaves out has an empty cell.
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
    """A number, or the number of a refusal, which is noted."""
    if isinstance(cell, str):
        return f"[{notes.setdefault(cell, len(notes) + 1)}]" if cell else ""
    return f"{cell:.1e}" if cell else "yes"


def _cells(count, policy, of_rows, folder, variables) -> Column:
    """Runs the program of the devices, with such variables a process."""
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.devices", str(count)),
                *(policy, folder, *of_rows),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **each},
            text=True,
        )
        for each in variables
    ]
    try:
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"A process failed: {errors}")
    return json.loads(outputs[0][0].splitlines()[-1])


def main(*names: str) -> None:
    """Runs columns, adds them to what is there, and writes both files."""
    path = RESULTS / "matrix.json"
    columns = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or COLUMNS:
            columns[name] = COLUMNS[name](rows(), folder)
            path.write_text(json.dumps(columns, indent=1) + "\n")
    page = RESULTS / "matrix.md"
    head = page.read_text().partition("| ")[0]
    page.write_text(head + table(columns))


if __name__ == "__main__":
    main(*sys.argv[1:])
