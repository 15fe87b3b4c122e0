"""Tells at the end of a program what was gained, its cost, and what is next."""

import multiprocessing
import os
import pathlib
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .. import commands
from ..reports.tables import Row
from ..runs.flags import Flags, command_line
from ..saved.results import read_result

DATA = "dataset", "data_dir", "image_size"
"""Flags that say which data a trained network takes."""

_HARM = (
    "A teacher that isn't better than its student can harm: "
    "see what the student reaches alone."
)


def of_run(directory: str | os.PathLike, result: Mapping[str, Any]) -> str:
    """Tells what a finished run has reached, and what may follow.

    A program that another one started leaves out what may follow.

    Args:
        directory: The run folder.
        result: Its result.
    """
    accuracy = result["accuracy"]
    lines = [
        f"{directory} is finished: accuracy {accuracy:.4f} (best epoch "
        f"{result['best_accuracy']:.4f}) after {result['epochs']} epochs."
    ]
    if "teacher" in result:
        teacher = result["teacher"]["accuracy"]
        gap = 100 * (teacher - accuracy)
        end = f"{gap:.2f} points are left." if gap > 0 else _HARM
        lines.append(
            f"Gained: the student has {100 * accuracy:.2f} %, the teacher "
            f"{100 * teacher:.2f} %. {end}"
        )
    lines.append(costs(directory, result["seconds"]))
    if multiprocessing.parent_process() is None:
        lines.append(after_run(directory, result["configuration"]))
    return "\n".join(lines)


def after_run(directory: str | os.PathLike, config: Mapping[str, Any]) -> str:
    """Gives the commands that may follow a run of a configuration."""
    data, model = given(config, *DATA), {"model": directory}
    out = {"out": pathlib.Path("saved_models", pathlib.Path(directory).name)}
    return next_steps(
        ("evaluate", data | given(config, "validation_split") | model),
        ("export", data | model | given(config, "teacher") | out),
    )


def of_comparison(
    rows: Sequence[Row],
    teacher: float,
    folders: Mapping[str, Sequence[pathlib.Path]],
) -> str:
    """Tells which way is the best, and what it costs.

    Args:
        rows: Rows of the table; the first is the student alone.
        teacher: Accuracy of the teacher, fraction.
        folders: The run folders of each way.
    """
    alone, best = rows[0], best_of(rows)
    of_alone, of_best = (statistics.mean(row.last) for row in (alone, best))
    known = f"the student alone has {of_alone:.2f} %, the teacher "
    known += f"{100 * teacher:.2f} %."
    if of_best > of_alone:
        gained = f"{best.name} has {of_best:.2f} %, {known}"
        if best.gap_closed is not None:
            gained += f" {100 * best.gap_closed:.0f} % of the gap is closed."
    else:
        gained = f"nothing, {known}"
    if 100 * teacher <= of_alone:
        gained += f" {_HARM}"
    cost = costs(folders[best.name][0], 60 * best.minutes)
    return f"Gained: {gained}\n{cost}"


def best_of(rows: Sequence[Row]) -> Row:
    """Finds the row with the highest accuracy; the first of equal ones."""
    return max(rows, key=lambda row: statistics.mean(row.last))


def costs(directory: str | os.PathLike, seconds: float) -> str:
    """Tells what a student costs: parameters, bytes, and training time."""
    result = read_result(directory)
    text = f"Costs: {result['parameters']:,} parameters"
    if "teacher" in result:
        share = result["parameters"] / result["teacher"]["parameters"]
        text += f" ({100 * share:.0f} % of the teacher's)"
    file = pathlib.Path(directory, "last.keras")
    if file.exists():  # an archive of results has none
        text += f", {file.stat().st_size / 1000:,.0f} kB as {file.name}"
    time = f"{seconds:.0f} seconds"
    if seconds >= 120:
        time = f"{seconds / 60:.1f} minutes"
    return f"{text}, {time} of training."


def next_steps(*steps: tuple[str, Flags]) -> str:
    """Writes the commands that may follow, as their user may type them.

    Args:
        *steps: Programs with their flags.

    Returns:
        A line for each command, below a heading.
    """
    return "Next:" + "".join(
        f"\n  {commands.called(program)} {shlex.join(command_line(flags))}"
        for program, flags in steps
    )


def given(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Picks the flags that a configuration gives."""
    return {
        name: config[name] for name in names if config.get(name) is not None
    }
