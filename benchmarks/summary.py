"""What the tables of `benchmarks/evidence` come to, in one.

python -m benchmarks.summary

`benchmarks.evidence` runs it after each table.
"""

import csv
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from keras_mhgd import methods
from keras_mhgd.files import write_atomically
from training import tables

RESULTS = pathlib.Path("benchmarks/evidence")
HEAD = [
    "",
    "student alone",
    "soft_logits",
    "best single method",
    "mhgd, as published",
    "MHGD, cross",
    "recommended",
    "MHGD, cross, less alone",
    "recommended less best single",
    "recommended less soft_logits",
]


def main(results: pathlib.Path = RESULTS) -> None:
    """Writes `summary.md`, a row for each table that is there."""
    made = [HEAD]
    for path in sorted(results.glob("*/table.csv")):
        with path.open(newline="") as file:
            accuracies = _accuracies(csv.DictReader(file))
        if "recommended" in accuracies:
            made.append([path.parent.name, *_cells(accuracies)])
    write_atomically(results / "summary.md", tables.markdown(made))


def _accuracies(rows: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    """Reads the accuracies of a table's trials, in %, by way."""
    found = {}
    for row in rows:
        found.setdefault(row["way"], []).append(float(row["last"]))
    return found


def _cells(accuracies: Mapping[str, list[float]]) -> list[str]:
    # A way is named by its method, and the argument that was found for it.
    singles = {
        way: values
        for way, values in accuracies.items()
        if way.partition(",")[0] in methods.names()
    }
    soft = _best(
        {way: singles[way] for way in singles if way.startswith("soft_logits")}
    )
    best = _best(singles)
    ours, alone = accuracies["recommended"], accuracies["student"]
    cross = accuracies["MHGD, cross"]
    return [
        _mean(alone),
        _mean(accuracies[soft]),
        f"{_mean(accuracies[best])} ({best})",
        _mean(accuracies["mhgd"]),
        _mean(cross),
        _mean(ours),
        _difference(cross, alone),
        _difference(ours, accuracies[best]),
        _difference(ours, accuracies[soft]),
    ]


def _best(accuracies: Mapping[str, list[float]]) -> str:
    return max(accuracies, key=lambda way: statistics.mean(accuracies[way]))


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}"


def _difference(ours: Sequence[float], others: Sequence[float]) -> str:
    """Gives the mean over seeds and half its 95 % interval."""
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    half = tables.interval(differences)
    text = f"{statistics.mean(differences):+.2f}"
    return text if half is None else f"{text} ± {half:.2f}"


if __name__ == "__main__":
    main()
