"""Makes the tables and the picture of a benchmark."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from benchmarks.speed import routes, vectors
from benchmarks.speed.bars import bars
from benchmarks.speed.spread import CPU, Spread, ratio, seconds
from training.reports.tables import markdown

Results = Mapping[str, Any]
_VERDICTS = {True: "met", False: "not met", None: ""}


def text(results: Results, machine: str, batch_size: int) -> str:
    """Writes all tables as Markdown.

    Args:
        results: Results by task.
        machine: Description of the machine.
        batch_size: Images in a batch.

    Returns:
        The page.
    """
    parts = [
        "# Benchmark\n",
        f"{machine} Batches of {batch_size}. Times are medians over rounds in "
        "which all routes take turns; ratios are formed within a round: "
        "median (smallest to largest). Unfused: with batch normalisation as "
        "Keras has it; all others have it fused, teachers too.\n",
    ]
    reached = bars(results)
    if reached:
        parts.append("## Bars\n")
        parts.append(
            markdown(
                [["what", "bar", "reached", ""]]
                + [
                    [
                        row.what,
                        row.bar,
                        row.reached,
                        _VERDICTS[row.met],
                    ]
                    for row in reached
                ]
            )
        )
    for title, table in _tables(results, batch_size):
        parts += [f"## {title}\n", markdown(table)]
    return "\n".join(parts)


def relative(results: Results, pair: str) -> dict[str, Spread]:
    """Divides the time of each route's step by that of the plain student.

    Args:
        results: Results by task.
        pair: A name in `pairs.PAIRS`.

    Returns:
        Spreads by route; the student's is 1.
    """
    found = {}
    for group in routes.groups():
        result = results.get(f"steps/{pair}/{group}", {"rounds": []})
        for name in dict.fromkeys(key for r in result["rounds"] for key in r):
            found.setdefault(name, ratio(result["rounds"], name, ["student"]))
    return found


def comma_separated(results: Results) -> str:
    """Writes every round as CSV: task, route, round, wall and CPU seconds."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["task", "route", "round", "seconds", "cpu_seconds"])
    for key, result in results.items():
        for index, each in enumerate(result.get("rounds", [])):
            for route, (wall, cpu) in each.items():
                writer.writerow(
                    [key, route, index, f"{wall:.6f}", f"{cpu:.6f}"]
                )
    return written.getvalue()


def picture(results: Results) -> Any:
    """Draws the time of each route's step relative to the plain student's.

    Args:
        results: Results by task, with the steps of at least one pair.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    # Imported here, since it takes a second. `Figure` needs no display.
    import matplotlib.figure

    found = {pair: relative(results, pair) for pair in _pairs(results)}
    names = list(
        dict.fromkeys(name for each in found.values() for name in each)
    )
    figure = matplotlib.figure.Figure(
        figsize=(4 + 3.2 * len(found), 1.4 + 0.27 * len(names)),
        layout="constrained",
    )
    figure.suptitle(
        "Time of a training step over the student's alone", fontsize="medium"
    )
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (pair, spreads) in zip(panels, found.items(), strict=True):
        longest = max(each.high for each in spreads.values())
        for height, name in enumerate(reversed(names)):
            if name not in spreads:
                continue
            each = spreads[name]
            axes.barh(
                height,
                each.median,
                xerr=[
                    [each.median - each.low],
                    [each.high - each.median],
                ],
                color=_colour(name),
                error_kw={"ecolor": "#00000088", "lw": 1, "capsize": 2},
                height=0.72,
            )
            axes.text(
                each.high + 0.015 * longest,
                height,
                f"{each.median:.2f}",
                va="center",
                fontsize="small",
            )
        axes.axvline(1, color="#222222", lw=0.8, ls="--", zorder=0)
        axes.set(
            title=pair,
            xlim=(0, 1.12 * longest),
            ylim=(-0.7, len(names) - 0.3),
        )
        axes.title.set_fontsize("medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names[::-1])
    return figure


def _colour(name: str) -> str:
    if "student" in name or "teacher" in name:
        return "#9a9a9a"
    peers = ("keras.", "naive", "torchdistill")
    return "#c4552d" if name.startswith(peers) else "#1f6fb2"


def _pairs(results: Results) -> list[str]:
    keys = [key.split("/") for key in results]
    return list(dict.fromkeys(each[1] for each in keys if each[0] == "steps"))


def _tables(results, batch_size):
    for pair in _pairs(results):
        yield f"Training step, {pair}", _steps(results, pair, batch_size)
    for key, result in results.items():
        section, *rest = key.split("/")
        if section == "parts":
            pair, clipping = rest
            title = f"Parts of MHGD, {clipping.replace('_', '-')} clipping"
            yield f"{title}, {pair}", _parts(result["rounds"], clipping)
        elif section == "vectors":
            yield (
                "Four singular vectors, forward and gradient, CPU ms",
                _vectors(result["rounds"]),
            )
        elif section == "accuracy":
            yield f"Accuracy of vectors, {rest[0]}", _accuracy(result)
    for section, table in (
        ("Graph loss, 8 heads", _graph(results)),
        ("With and without XLA", _compiled(results)),
    ):
        if len(table) > 1:
            yield section, table


def _steps(results, pair, batch_size):
    head = ["route", "ms", "over the student", "images a second"]
    table = [[*head, "CPU ms", "peak memory, MB"]]
    over = relative(results, pair)
    for group, members in routes.groups().items():
        result = results.get(f"steps/{pair}/{group}")
        for name in members:
            if result and name in result["rounds"][0]:
                if any(line[0] == name for line in table):
                    continue  # the student, in every group
                wall = seconds(result["rounds"], name)
                table.append(
                    [
                        name,
                        f"{1000 * wall:.1f}",
                        str(over[name]),
                        f"{batch_size / wall:.0f}",
                        f"{1000 * seconds(result['rounds'], name, CPU):.1f}",
                        f"{result['peaks'][name]:.0f}",
                    ]
                )
            elif name in routes.TORCH and not routes.installed():
                table.append([name, "not installed", "", "", "", ""])
    return table


def _parts(rounds, clipping):
    backward = "backward", "forward"
    second = "two backwards", "backward"
    whole = seconds(rounds, "step")
    parts = {
        "input pipeline": seconds(rounds, "input"),
        "teacher forward": seconds(rounds, "teacher"),
        "SVD of the teacher": seconds(rounds, "SVD, teacher"),
        "student forward": seconds(rounds, "forward"),
        "SVD of the student, with gradient": seconds(rounds, "SVD, student"),
        "heads and graphs, with gradient": seconds(rounds, "graph"),
        "backward": _less(rounds, *backward),
    }
    if clipping == "per_variable":
        parts["second backward"] = _less(rounds, *second)
    parts["update"] = seconds(rounds, "update")
    parts["whole step, without input"] = whole
    return [["part", "ms", "of the step"]] + [
        [name, f"{1000 * each:.1f}", f"{100 * each / whole:.0f} %"]
        for name, each in parts.items()
    ]


def _less(rounds, longer, shorter):
    return Spread.of(
        each[longer][0] - each[shorter][0] for each in rounds
    ).median


def _vectors(rounds):
    solvers = ("tf.linalg.svd", "eigendecomposition", "ours")
    table = [["HW x D", *solvers]]
    for shape in map(vectors.label, vectors.SHAPES):
        times = [seconds(rounds, f"{shape}, {each}", CPU) for each in solvers]
        table.append([shape, *(f"{1000 * each:.1f}" for each in times)])
    return table


def _accuracy(result):
    head = ["feature", "largest sine", "largest error of the gradient"]
    return [head] + [
        [name, f"{sine:.1e}", f"{error:.1e}"]
        for name, (sine, error) in result.items()
    ]


def _graph(results):
    return [["N", "memory, MB", "s"]] + [
        [
            key.split("/")[1],
            f"{each['megabytes']:.0f}",
            f"{each['seconds']:.3f}",
        ]
        for key, each in results.items()
        if key.startswith("graph/")
    ]


def _compiled(results):
    head = ["", "first step, s", "with XLA, s", "third loss", "with XLA"]
    return [head] + [
        [
            key.removeprefix("compile/").replace("/", ": "),
            *(f"{each[way]['seconds']:.1f}" for way in ("plain", "compiled")),
            *(f"{each[way]['loss']:.6f}" for way in ("plain", "compiled")),
        ]
        for key, each in results.items()
        if key.startswith("compile/")
    ]
