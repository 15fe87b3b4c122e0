"""Draws the pictures of results."""

import io
import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mhgd.export import ExportedModel
from keras_mhgd.storage.files import write_atomically

from ..saved.results import validated
from .tables import Row

# Okabe and Ito's colours, shaded until they are readable on light and dark
# pages. Colour-blind readers may take some for one another; these have
# different lines.
_COLOURS = (
    "#0a7fc4", "#d55e00", "#009e73", "#cc6aa0", "#a98600", "#8a8f98",
)  # fmt: skip
_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X"
_INK = "#7d8590"
_MOST_CURVES = 4  # of ways in one picture


def comparison(
    made: Sequence[Row],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    teacher: float,
    title: str,
) -> Any:
    """Draws the results of all ways, and their curves if the ways are few.

    Args:
        made: The rows of the table; the first is the student alone.
        curves: For each way, the metrics of its trials; drawn if there are
            not more than four ways.
        teacher: Test accuracy of the teacher, fraction.
        title: Heading.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    few = len(made) <= _MOST_CURVES
    height = max(3.6, 1.2 + 0.27 * len(made))
    figure, axes = _panels(title, (9, height), 2 if few else 1)
    if few:
        _draw_curves(axes[0], curves, teacher)
    _draw_ends(axes[-1], made, teacher, few)
    return figure


def _style(index: int) -> dict[str, str]:
    """Gives colour and line of a curve: 12 curves differ in both together."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _LINES[index % len(_LINES)],
    }


def _panels(title, size, count, **arguments):
    """Makes a figure and its axes, side by side."""
    # Imported here, since it takes a second. `Figure` needs no display.
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(1, count, squeeze=False, **arguments)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scale_by_decades(axis) -> None:
    """Makes an axis logarithmic, with plain labels at decades only."""
    axis.axes.set_xscale("log")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _draw_curves(axes, curves, teacher) -> None:
    for number, (name, trials) in enumerate(curves.items()):
        for index, metrics in enumerate(trials):
            epochs, accuracies = zip(*validated(metrics), strict=True)
            # An epoch of one way may have more steps than that of another.
            axes.plot(
                [100 * epoch / len(metrics) for epoch in epochs],
                [100 * accuracy for accuracy in accuracies],
                **_style(number),
                linewidth=1.4,
                label=name if index == 0 else None,
            )
    axes.axhline(
        100 * teacher, color="#222222", linestyle="--", label="teacher"
    )
    axes.set(xlabel="part of the training, %", ylabel="test accuracy, %")
    axes.legend(loc="lower right", frameon=False, handlelength=3)


def _draw_ends(axes, made, teacher, few) -> None:
    """Draws a line for each way: trials as dots, their mean as a bar."""
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


def deployment(points: Mapping[str, ExportedModel], title: str) -> Any:
    """Draws accuracy against size and against latency.

    Args:
        points: Exported files by their name in the legend.
        title: Heading.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, (sizes, latencies) = _panels(title, (10, 4), 2, sharey=True)
    for index, (name, file) in enumerate(points.items()):
        accuracy = 100 * file.accuracy
        style = {
            "color": _style(index)["color"],
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 8,
            "linestyle": "none",
        }
        sizes.plot(file.size / 1000, accuracy, label=name, **style)
        spread = [[0], [file.latency_p95 - file.latency_p50]]
        latencies.errorbar(file.latency_p50, accuracy, xerr=spread, **style)
    sizes.set(xlabel="size, kB", ylabel="test accuracy, %", xlim=(0, None))
    latencies.set(xlabel="ms an image on one thread, median to p95")
    _scale_by_decades(latencies.xaxis)
    for axes in (sizes, latencies):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def trials(made: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Draws the trials of a search, in order and over the learning rate.

    Args:
        made: Rows of `search_report.rows`; rows without accuracy are left out.
        title: Heading.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, (in_order, over_rate) = _panels(title, (9, 3.6), 2, sharey=True)
    measured = [row for row in made if "val_accuracy" in row]
    measured.sort(key=lambda row: int(row["trial"]))
    for index, method in enumerate({row["method"]: None for row in measured}):
        own = [row for row in measured if row["method"] == method]
        accuracies = [100 * row["val_accuracy"] for row in own]
        for axes, name in ((in_order, "trial"), (over_rate, "learning_rate")):
            axes.plot(
                [float(row.get(name, "nan")) for row in own],
                accuracies,
                _MARKERS[index % len(_MARKERS)],
                color=_style(index)["color"],
                alpha=0.7,
                label=method,
            )
    best = itertools.accumulate((row["val_accuracy"] for row in measured), max)
    in_order.step(
        [int(row["trial"]) for row in measured],
        [100 * each for each in best],
        where="post",
        color="#222222",
        lw=0.8,
        label="best so far",
    )
    in_order.xaxis.get_major_locator().set_params(integer=True)
    in_order.set(xlabel="trial", ylabel="validation accuracy, %")
    over_rate.set(xlabel="learning rate")
    _scale_by_decades(over_rate.xaxis)
    in_order.legend(loc="lower right", frameon=False, fontsize="small")
    return figure


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> Any:
    """Draws values over epochs for a page, with the last value in a legend.

    Args:
        series: (epoch, value) pairs by name.
        log: Whether the axis of values is logarithmic; values that are not
            positive are then left out.
        limits: Lowest and highest value of the axis; `None` fits the axis to
            the values.

    Returns:
        A `matplotlib.figure.Figure`; `None` if there is nothing to draw.
    """
    if log:
        series = {
            name: [(x, y) for x, y in points if y > 0]
            for name, points in series.items()
        }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(3.8, 2.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(series.items()):
        axes.plot(
            *zip(*points, strict=True),
            **_style(index),
            marker="o",
            markevery=[-1],
            markersize=3,
            label=f"{name} {points[-1][1]:.4g}",
        )
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    for patch in (figure.patch, axes.patch):
        patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(which="both", colors=_INK, labelsize="small")
    axes.xaxis.label.set_color(_INK)
    figure.legend(
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize="small",
        handlelength=3,
        labelcolor=_INK,
    )
    return figure


def save(path: str | os.PathLike, figure: Any) -> None:
    """Writes a figure as a `.png` file, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    write_atomically(path, content.getvalue())
