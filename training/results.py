"""Results of runs: read, measured, and told in words and tables."""

import csv
import io
import json
import os
import pathlib
from typing import Any

import numpy as np

import keras_mhgd
from keras_mhgd.files import write_atomically


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


def write_predictions(
    directory: str | os.PathLike, labels: np.ndarray, predicted: np.ndarray
) -> None:
    """Writes `predictions.npz` of a run: classes of the test images.

    Args:
        directory: The run folder.
        labels: Class numbers `(count,)`.
        predicted: What the student says after the last epoch, `(count,)`.
    """
    content = io.BytesIO()
    np.savez_compressed(content, labels=labels, predicted=predicted)
    write_atomically(
        pathlib.Path(directory, "predictions.npz"), content.getvalue()
    )


def read_predictions(directory: str | os.PathLike) -> np.ndarray:
    """Reads what `write_predictions` wrote: the predicted classes.

    Raises:
        FileNotFoundError: If an earlier version finished the run.
    """
    path = pathlib.Path(directory, "predictions.npz")
    if not path.exists():
        raise FileNotFoundError(
            f"A finished run must hold its predictions. There is no {path}. "
            "Delete the run's result.json: the same command again then ends "
            "it anew, without training."
        )
    with np.load(path) as archive:
        return archive["predicted"]


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
