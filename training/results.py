"""Results of runs: read, measured, and told in words and tables."""

import csv
import json
import os
import pathlib
import statistics
from typing import Any

import keras_mhgd


def read_result(directory: str | os.PathLike) -> dict[str, Any] | None:
    """Reads the `result.json` of a run; `None` before the run's end."""
    path = pathlib.Path(directory, "result.json")
    return json.loads(path.read_text()) if path.exists() else None


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """Reads a `metrics.csv`: one dict an epoch, without what is empty."""
    with open(path, newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            | {"epoch": int(row["epoch"])}
            for row in csv.DictReader(file)
        ]


def validated(rows: list[dict[str, float]]) -> list[tuple[int, float]]:
    """Lists (epoch, test accuracy) of the epochs after which it was tested."""
    return [
        (row["epoch"], row["val_accuracy"])
        for row in rows
        if "val_accuracy" in row
    ]


def measure(
    predict: keras_mhgd.export.Predictor, dataset: keras_mhgd.data.Dataset
) -> float:
    """Computes the fraction of test images that a network gets right.

    Raises:
        ValueError: If its outputs are not one for each class.
    """
    outputs = predict(dataset.normalise(dataset.x_test))
    if outputs.shape[1:] != (dataset.num_classes,):
        raise ValueError(
            f"The network must have one output for each of the "
            f"{dataset.num_classes} classes of {dataset.name}. "
            f"Received: outputs of shape {outputs.shape[1:]}."
        )
    return float((outputs.argmax(axis=-1) == dataset.y_test).mean())


def describe(
    files: list[keras_mhgd.export.ExportedModel], num_images: int
) -> str:
    """Makes a line for each exported file."""
    return "\n".join(
        f"{file.path}: {file.size / 1000:.0f} kB, agrees with the Keras model "
        f"on {file.agreement:.2%} of {num_images} test images (largest "
        f"difference {file.max_difference:.1e}), {file.latency:.2f} ms an "
        "image"
        for file in files
    )


def summary(teacher: float, accuracies: dict[str, list[float]]) -> str:
    """Makes a table of accuracies and of what each way gains on the first.

    Args:
        teacher: Test accuracy of the teacher, fraction.
        accuracies: For each way of training, the test accuracies of its
            trials, fractions; the first way is the student alone. Trial by
            trial the ways share a seed.

    Returns:
        Markdown, in percent.
    """
    alone, *others = accuracies
    trials = range(len(accuracies[alone]))
    rows = [
        ["", *(f"seed {trial}" for trial in trials), "mean", "gap closed"],
        ["---"] * (len(trials) + 3),
    ]
    percent = {
        way: [100 * value for value in values]
        for way, values in accuracies.items()
    }
    for way, values in percent.items():
        rows.append(_row(way, values, ".2f"))
    gap = 100 * teacher - statistics.mean(percent[alone])
    for way in others:
        gains = [
            b - a for a, b in zip(percent[alone], percent[way], strict=True)
        ]
        row = _row(f"{way}, gain", gains, "+.2f")
        row[-1] = f"{statistics.mean(gains) / gap:.0%}"
        rows.append(row)
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{lines}\n\nTest accuracy in %, last epoch; mean ± deviation over "
        f"seeds. Teacher: {100 * teacher:.2f}.\n"
    )


def _row(name: str, values: list[float], form: str) -> list[str]:
    mean = format(statistics.mean(values), form)
    if len(values) > 1:
        mean += f" ± {statistics.stdev(values):.2f}"
    return [name, *(format(value, form) for value in values), mean, ""]
