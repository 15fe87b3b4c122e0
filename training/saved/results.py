"""Reads, measures and writes the results of runs."""

import csv
import io
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

import keras_mhgd
from keras_mhgd.storage.arrays import read_arrays
from keras_mhgd.storage.files import read_json, write_atomically

_AT_ONCE = 1024  # samples that a network predicts at once
_FIGURES = ("accuracy", "best_accuracy", "epochs", "seconds")


def read_result(directory: str | os.PathLike) -> dict[str, Any] | None:
    """Reads the `result.json` of a run; `None` before the run's end.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is damaged.
    """
    path = pathlib.Path(directory, "result.json")
    if not path.exists():
        return None
    result = read_json(path)
    figures = {name: result.get(name) for name in _FIGURES}
    if not all(isinstance(each, int | float) for each in figures.values()):
        raise ValueError(
            f"{path} must hold numbers for {', '.join(_FIGURES)}. Received: "
            f"{figures}. Delete the file and run the same command again: it "
            "goes on from the last checkpoint."
        )
    return result


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """Reads a `metrics.csv`: a dict for each epoch, without empty cells.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is damaged.
    """
    try:
        with open(path, newline="") as file:
            return [
                {name: float(value) for name, value in row.items() if value}
                | {"epoch": int(row["epoch"])}
                for row in csv.DictReader(file)
            ]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a table of numbers, one row an epoch. Received: "
            f"{error}. Put a whole file in its place, or delete the run folder."
        ) from error


def validated(rows: list[dict[str, float]]) -> list[tuple[int, float]]:
    """Lists (epoch, test accuracy) of the epochs that ended with a test."""
    return [
        (row["epoch"], row["val_accuracy"])
        for row in rows
        if "val_accuracy" in row
    ]


def measure(
    predict: keras_mhgd.export.Predictor,
    dataset: keras_mhgd.data.Dataset,
    batch_size: int = _AT_ONCE,
) -> float:
    """Computes the fraction of test samples that a network gets right.

    Raises:
        ValueError: If the network doesn't have one output for each class.
    """
    # In parts, as a large set would not fit in memory.
    outputs = np.concatenate(
        [predict(images.numpy()) for images, _ in dataset.test(batch_size)]
    )
    if outputs.shape[1:] != (dataset.num_classes,):
        raise ValueError(
            f"The network must have one output for each of the "
            f"{dataset.num_classes} classes of {dataset.name}. "
            f"Received: outputs of shape {outputs.shape[1:]}."
        )
    return float((outputs.argmax(axis=-1) == dataset.y_test).mean())


def measure_teacher(
    distiller: keras_mhgd.Distiller,
    dataset: keras_mhgd.data.Dataset,
    batch_size: int,
) -> dict[str, Any]:
    """Measures a distiller's teacher on the samples that test the student.

    Args:
        distiller: A distiller with one teacher, which sees the samples as in
            training.
        dataset: The data.
        batch_size: Samples that the teacher predicts at once.

    Returns:
        `name`, `parameters`, and `accuracy`, a fraction.

    Raises:
        ValueError: If the teacher doesn't have one output for each class.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def outputs_of(samples):
        _, teacher = distiller.features(samples)
        return tf.cast(teacher.outputs, "float32")

    return {
        "name": distiller.teacher.name,
        "parameters": distiller.teacher.count_params(),
        "accuracy": measure(
            lambda samples: outputs_of(samples).numpy(), dataset, batch_size
        ),
    }


def write_predictions(
    directory: str | os.PathLike, labels: np.ndarray, predicted: np.ndarray
) -> None:
    """Writes `predictions.npz` of a run: the classes of the test images.

    Args:
        directory: The run folder.
        labels: True class numbers `(count,)`.
        predicted: The student's class numbers after the last epoch,
            `(count,)`.
    """
    content = io.BytesIO()
    np.savez_compressed(content, labels=labels, predicted=predicted)
    write_atomically(
        pathlib.Path(directory, "predictions.npz"), content.getvalue()
    )


def read_predictions(directory: str | os.PathLike) -> np.ndarray:
    """Reads the predicted classes that `write_predictions` wrote.

    Raises:
        FileNotFoundError: If there is no file: earlier versions wrote none.
        ValueError: If the file is damaged.
    """
    path = pathlib.Path(directory, "predictions.npz")
    if not path.exists():
        raise FileNotFoundError(
            "A finished run must hold its predictions. Received: a run "
            f"without {path}. Delete the run's result.json: the same command "
            "again then ends it anew, without training."
        )
    try:
        return read_arrays(path)["predicted"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} must hold the predicted classes. Received: {error!r}. "
            "Delete it and the run's result.json, and run the same command "
            "again."
        ) from error
