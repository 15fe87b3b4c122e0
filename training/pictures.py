"""Pictures of results."""

import io
import os
import statistics

from keras_mhgd.files import write_atomically
from training.results import validated

_COLOURS = ("#7a7a7a", "#1f6fb2", "#c4552d", "#3a8f5b")


def comparison(
    path: str | os.PathLike,
    curves: dict[str, list[list[dict[str, float]]]],
    teacher: float,
    title: str,
) -> None:
    """Draws test accuracy over the epochs, and at the end as bars.

    Args:
        path: The `.png` file to write.
        curves: For each way of training, the metrics of its runs.
        teacher: Test accuracy of the teacher, fraction.
        title: Heading.
    """
    # Here, since importing it takes a second. No display is needed.
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    over_epochs, at_end = figure.subplots(1, 2, width_ratios=(2, 1))
    bars = {"teacher": ([100 * teacher], "#222222")}
    for (name, runs), colour in zip(curves.items(), _COLOURS, strict=False):
        for index, rows in enumerate(runs):
            epochs, accuracies = zip(*validated(rows), strict=True)
            over_epochs.plot(
                epochs,
                [100 * accuracy for accuracy in accuracies],
                color=colour,
                linewidth=1.4,
                label=name if index == 0 else None,
            )
        finals = [100 * validated(rows)[-1][1] for rows in runs]
        bars[name] = (finals, colour)
    over_epochs.axhline(
        100 * teacher, color="#222222", linestyle="--", label="teacher"
    )
    over_epochs.set(xlabel="epoch", ylabel="test accuracy, %", title=title)
    over_epochs.legend(loc="lower right", frameon=False)
    means = {name: statistics.mean(bars[name][0]) for name in bars}
    drawn = at_end.bar(
        list(bars),
        list(means.values()),
        yerr=[
            statistics.stdev(values) if len(values) > 1 else 0
            for values, _ in bars.values()
        ],
        color=[colour for _, colour in bars.values()],
        capsize=4,
    )
    at_end.bar_label(drawn, fmt="%.2f", label_type="center", color="white")
    low = min(means.values())
    at_end.set(ylim=(max(0, low - 10), None), title="last epoch, %")
    for axes in (over_epochs, at_end):
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    write_atomically(path, content.getvalue())
