"""Pictures of results."""

import io
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mhgd.files import write_atomically
from training.results import validated
from training.tables import Row

_COLOURS = ("#7a7a7a", "#1f6fb2", "#c4552d", "#3a8f5b")


def comparison(
    made: Sequence[Row],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    teacher: float,
    title: str,
) -> Any:
    """Draws the results of all ways, and of a few ways the curves.

    Args:
        made: The rows of the table; the first is the student alone.
        curves: For each way, the metrics of its trials; drawn if there are
            not more ways than colours.
        teacher: Test accuracy of the teacher, fraction.
        title: Heading.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    # Here, since importing it takes a second. No display is needed.
    import matplotlib.figure

    few = len(made) <= len(_COLOURS)
    figure = matplotlib.figure.Figure(
        figsize=(9, max(3.6, 1.2 + 0.27 * len(made))), layout="constrained"
    )
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(1, 2 if few else 1, squeeze=False)[0]
    if few:
        _draw_curves(axes[0], curves, teacher)
    _draw_ends(axes[-1], made, teacher, few)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_curves(axes, curves, teacher) -> None:
    for (name, trials), colour in zip(curves.items(), _COLOURS, strict=False):
        for index, metrics in enumerate(trials):
            epochs, accuracies = zip(*validated(metrics), strict=True)
            axes.plot(
                epochs,
                [100 * accuracy for accuracy in accuracies],
                color=colour,
                linewidth=1.4,
                label=name if index == 0 else None,
            )
    axes.axhline(
        100 * teacher, color="#222222", linestyle="--", label="teacher"
    )
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.legend(loc="lower right", frameon=False)


def _draw_ends(axes, made, teacher, few) -> None:
    """A line for each way: its trials as dots, their mean as a bar."""
    alone, *others = made
    others = sorted(others, key=lambda row: statistics.mean(row.last))
    for height, row in enumerate([alone, *others]):
        mean = statistics.mean(row.last)
        colour = _COLOURS[made.index(row)] if few else _COLOURS[row != alone]
        axes.plot(
            row.last,
            [height] * len(row.last),
            "o",
            color=colour,
            alpha=0.45,
            markersize=5,
        )
        axes.plot([mean], [height], "|", color=colour, markersize=14, mew=2.5)
        axes.annotate(
            f"{mean:.2f}",
            (1.01, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
        )
    axes.axvline(statistics.mean(alone.last), color=_COLOURS[0], lw=0.8)
    axes.axvline(100 * teacher, color="#222222", linestyle="--", lw=0.8)
    axes.set_yticks(range(len(made)), [row.name for row in (alone, *others)])
    axes.set(xlabel="test accuracy, last epoch, % (dashed: teacher)")


def save(path: str | os.PathLike, figure: Any) -> None:
    """Writes a figure as a `.png` file, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    write_atomically(path, content.getvalue())
