"""Makes the table of a comparison."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds the results of one way of training; accuracies in percent.

    Attributes:
        name: Name of the way.
        last: Test accuracy after the last epoch of each trial.
        best: The best test accuracy of any epoch of each trial.
        gains: `last` minus `last` of the student alone with the same seed;
            empty for the student alone.
        gap_closed: Mean gain divided by the teacher's lead over the student
            alone; `None` for the student alone, or without a lead.
        minutes: Mean training time, without preparation.
    """

    name: str
    last: list[float]
    best: list[float]
    gains: list[float]
    gap_closed: float | None
    minutes: float


def rows(
    teacher: float, results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Row]:
    """Makes the rows of a table.

    Args:
        teacher: Test accuracy of the teacher, fraction.
        results: For each way, the `result.json` of its trials. The first way
            is the student alone. Trial k of every way has the same seed.

    Returns:
        One row for each way.
    """
    alone = [100 * each["accuracy"] for each in next(iter(results.values()))]
    gap = 100 * teacher - statistics.mean(alone)
    made = []
    for name, trials in results.items():
        last = [100 * each["accuracy"] for each in trials]
        gains = [a - b for a, b in zip(last, alone, strict=True)]
        if not made:
            gains = []
        made.append(
            Row(
                name,
                last,
                [100 * each["best_accuracy"] for each in trials],
                gains,
                statistics.mean(gains) / gap if gains and gap > 0 else None,
                statistics.mean(each["seconds"] for each in trials) / 60,
            )
        )
    return made


def interval(values: Sequence[float]) -> float | None:
    """Computes half the width of a mean's 95 % interval by Student's t."""
    if len(values) < 2:
        return None
    # Imported here, since the import takes long.
    import scipy.stats

    quantile = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def cells(made: Sequence[Row], published: Mapping[str, str]) -> list[list[str]]:
    """Makes the cells of a table, its head first.

    Args:
        made: The rows.
        published: Published results by way. If it is empty, the table has no
            column for them.

    Returns:
        Text, row by row.
    """
    head = [
        "",
        "last epoch",
        "best epoch",
        "gain",
        "gap closed",
        "minutes",
    ]
    table = [head + ["published"] * bool(published)]
    for row in made:
        gain = closed = ""
        if row.gains:
            gain = f"{statistics.mean(row.gains):+.2f}"
            half = interval(row.gains)
            if half is not None:
                gain += f" ± {half:.2f}"
        if row.gap_closed is not None:
            closed = f"{round(100 * row.gap_closed)} %"
        line = [
            row.name,
            _spread(row.last),
            _spread(row.best),
            gain,
            closed,
            f"{row.minutes:.1f}",
        ]
        table.append(line + [published.get(row.name, "")] * bool(published))
    return table


def legend(teacher: float, made: Sequence[Row]) -> str:
    """Explains the cells in words."""
    trials = len(made[0].last)
    text = (
        f"Test accuracy in %, {trials} trial{'s' * (trials > 1)}, teacher "
        f"{100 * teacher:.2f}. "
    )
    if trials > 1:
        text += (
            "Accuracies: mean ± deviation over trials. Gain: last epoch, less "
            "the student alone with the same seed, mean ± half its 95 % "
            "interval (Student's t). "
        )
    else:
        text += "Gain: last epoch, less the student alone. "
    return text + (
        "The best epoch was chosen on the test set. Gap closed: gain over the "
        "teacher's lead. Minutes: training without preparation, as it ran "
        "beside the others."
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Writes cells as Markdown."""
    head, *lines = table
    lines = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(made: Sequence[Row]) -> str:
    """Writes rows as CSV, a line for each way and trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["way", "trial", "last", "best", "gain", "minutes"])
    for row in made:
        for trial, (last, best) in enumerate(
            zip(row.last, row.best, strict=True)
        ):
            gain = f"{row.gains[trial]:.4f}" if row.gains else ""
            writer.writerow(
                [
                    row.name,
                    trial,
                    f"{last:.4f}",
                    f"{best:.4f}",
                    gain,
                    f"{row.minutes:.2f}",
                ]
            )
    return text.getvalue()


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    if len(values) > 1:
        mean += f" ± {statistics.stdev(values):.2f}"
    return mean
