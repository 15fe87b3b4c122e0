"""Summarises the tables of `benchmarks/accuracy/evidence`.

python -m benchmarks.accuracy.summary

`benchmarks.accuracy.evidence` calls this program after each table.
"""

import collections
import csv
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from keras_mhgd import methods
from keras_mhgd.storage.files import write_atomically
from training.reports import tables

RESULTS = pathlib.Path("benchmarks/accuracy/evidence")
WITHOUT_MHGD = "soft_logits + dist"  # the other parts of recommended
MARGIN = 0.5  # points within which more seeds decide which method is best
HEAD = [
    "",
    "learning rate",
    "student alone",
    "best single method",
    "mhgd, as published",
    "MHGD, cross",
    "recommended",
    "MHGD, cross, less alone",
    "recommended less best single",
    f"recommended less {WITHOUT_MHGD}",
]
LEGEND = (
    "Test accuracy in %: means over the seeds of `close.md`, where it has the "
    "way, else of `table.md`. Differences: seed by seed, ± half the 95 % "
    "interval of the mean."
)
# Each way is compared with these ways.
BASES = "student", "soft_logits", "mhgd", "MHGD, cross"
DIFFERENCES_LEGEND = (
    "Test accuracy in %, mean over the seeds of `table.md`; differences seed "
    "by seed, ± half the 95 % interval of their mean."
)


def main(results: pathlib.Path = RESULTS) -> None:
    """Writes `summary.md`, with a row for each finished table with a search.

    It also writes `differences.md` beside each table: each way minus others,
    seed by seed.
    """
    for path in results.glob("*/table.csv"):
        _write(
            path.with_name("differences.md"),
            _differences(_read(path)),
            DIFFERENCES_LEGEND,
        )
    made = [HEAD]
    for path in sorted(results.glob("*/search.csv")):
        if (path.parent / "table.csv").exists():
            made.append([path.parent.name, *_cells(path.parent)])
    _write(results / "summary.md", made, LEGEND)


def best_singles(path: pathlib.Path) -> list[str]:
    """Gives the single methods that are best on the mean, the best first.

    The candidates are single methods at their defaults, and tuned methods,
    whose ways are named by method and argument.

    Args:
        path: A table's `table.csv` or `close.csv`.

    Returns:
        Names of ways: the best one, and those within half a point of it.
    """
    singles = {
        way: statistics.mean(accuracies)
        for way, accuracies in _read(path).items()
        if way.partition(",")[0] in methods.names()
    }
    ranked = sorted(singles, key=singles.get, reverse=True)
    least = singles[ranked[0]] - MARGIN
    return [way for way in ranked if singles[way] >= least]


def _write(
    path: pathlib.Path, cells: Sequence[Sequence[str]], legend: str
) -> None:
    write_atomically(path, f"{tables.markdown(cells)}\n{legend}\n")


def _read(path: pathlib.Path) -> dict[str, list[float]]:
    """Reads the accuracies of a table's trials, in %, by way."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["way"], []).append(float(row["last"]))
    return found


def _cells(folder: pathlib.Path) -> list[str]:
    ways = _read(folder / "table.csv")
    single, *_ = best_singles(folder / "table.csv")
    if (folder / "close.csv").exists():
        ways |= _read(folder / "close.csv")
        single, *_ = best_singles(folder / "close.csv")
    alone, cross = ways["student"], ways["MHGD, cross"]
    ours = ways["recommended"]
    return [
        _learning_rate(folder / "search.csv"),
        _mean(alone),
        f"{_mean(ways[single])} ({single})",
        _mean(ways["mhgd"]),
        _mean(cross),
        _mean(ours),
        _difference(cross, alone[: len(cross)]),
        f"{_difference(ours, ways[single])} ({len(ours)} seeds)",
        _difference(ours, ways[WITHOUT_MHGD]),
    ]


def _learning_rate(path: pathlib.Path) -> str:
    """Gives the rate that a search found best for alone and soft_logits."""
    found = collections.Counter()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["argument"] == "learning_rate":
                found[row["value"]] += float(row["accuracy"])
    return max(found, key=found.get)


def _differences(ways: Mapping[str, Sequence[float]]) -> list[list[str]]:
    bases = []
    for base in BASES:
        tuned = [way for way in ways if way.startswith(f"{base}, ")]
        bases += [base] if base in ways else tuned[:1]
    return [
        ["", "accuracy", *(f"less {base}" for base in bases)],
        *(
            [
                way,
                _mean(ways[way]),
                *(
                    "" if way == base else _difference(ways[way], ways[base])
                    for base in bases
                ),
            ]
            for way in ways
        ),
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}"


def _difference(ours: Sequence[float], others: Sequence[float]) -> str:
    """Gives the mean difference over seeds and half its 95 % interval."""
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    half = tables.interval(differences)
    text = f"{statistics.mean(differences):+.2f}"
    return text if half is None else f"{text} ± {half:.2f}"


if __name__ == "__main__":
    main()
