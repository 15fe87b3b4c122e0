"""What the tables of `benchmarks/evidence` come to, in one and seed by seed.

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
WITHOUT_MHGD = "soft_logits + dist"  # recommended's other parts
HEAD = [
    "",
    "student alone",
    "best single method",
    "mhgd, as published",
    "MHGD, cross",
    "recommended",
    "MHGD, cross, less alone",
    "recommended less best single",
    f"recommended less {WITHOUT_MHGD}",
]
BASES = "student", "mhgd", "MHGD, cross"  # what each way is compared with


def main(results: pathlib.Path = RESULTS) -> None:
    """Writes `summary.md`, a row for each searched table that is there.

    And beside each table `differences.md`: each way less others, seed by seed.
    """
    for path in results.glob("*/table.csv"):
        text = tables.markdown(_differences(_read(path)))
        write_atomically(path.with_name("differences.md"), text)
    made = [HEAD]
    for path in sorted(results.glob("*/search.csv")):
        if (path.parent / "table.csv").exists():
            made.append([path.parent.name, *_cells(path.parent)])
    write_atomically(results / "summary.md", tables.markdown(made))


def best_single(path: pathlib.Path) -> str:
    """Gives the way of a `table.csv` that is best on the mean.

    Among methods of the literature at their defaults, and those that were
    tuned, whose ways are named by method and argument.

    Args:
        path: The file.
    """
    accuracies = _read(path)
    return max(
        (way for way in accuracies if way.partition(",")[0] in methods.names()),
        key=lambda way: statistics.mean(accuracies[way]),
    )


def _read(path: pathlib.Path) -> dict[str, list[float]]:
    """Reads the accuracies of a table's trials, in %, by way."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["way"], []).append(float(row["last"]))
    return found


def _cells(folder: pathlib.Path) -> list[str]:
    all_ways = close = _read(folder / "table.csv")
    alone, cross = all_ways["student"], all_ways["MHGD, cross"]
    single = best_single(folder / "table.csv")
    if (folder / "close.csv").exists():
        close = _read(folder / "close.csv")
    ours, best = close["recommended"], close[single]
    return [
        _mean(alone),
        f"{_mean(all_ways[single])} ({single})",
        _mean(all_ways["mhgd"]),
        _mean(cross),
        _mean(all_ways["recommended"]),
        _difference(cross, alone),
        f"{_difference(ours, best)} ({len(ours)} seeds)",
        _difference(ours, close[WITHOUT_MHGD]),
    ]


def _differences(ways: Mapping[str, Sequence[float]]) -> list[list[str]]:
    bases = [base for base in BASES if base in ways]
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
    """Gives the mean over seeds and half its 95 % interval."""
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    half = tables.interval(differences)
    text = f"{statistics.mean(differences):+.2f}"
    return text if half is None else f"{text} ± {half:.2f}"


if __name__ == "__main__":
    main()
