"""Measures exported files in separate processes without Keras."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from keras_mhgd.export import runtimes
from keras_mhgd.export.contents import contents, require_alone
from keras_mhgd.export.runtimes import Arrays, renamed
from keras_mhgd.export.serving import Serving, as_probabilities
from keras_mhgd.tasks import EMBEDDING, MULTI_LABEL, REGRESSION, SINGLE_LABEL

_AGREES = {  # what agrees between two outputs, by task; part of a message
    SINGLE_LABEL: "class",
    MULTI_LABEL: "labels",
    REGRESSION: "values",
    EMBEDDING: "values",
}
# Values agree if they differ by at most this fraction of the largest absolute
# value.
_CLOSE = 0.05


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Describes how an output of a file agrees with the Keras model's.

    Attributes:
        task: Meaning of the output, one of `keras_mhgd.tasks.KINDS`.
        max_difference: Largest absolute difference, in units of the output.
        scale: Largest absolute value in the output of the Keras model.
        agreement: Fraction, 0 to 1, of the images, or of the positions in
            them, with the same best class (`"single_label"`), the same labels
            (`"multi_label"`) or values that are all within 5 % of `scale`.
    """

    task: str
    max_difference: float
    scale: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"the Keras model's {_AGREES[self.task]} for {self.agreement:.2%} "
            f"of the samples (largest difference {self.max_difference:.1e})"
        )


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """Describes a written file and how it agrees with the Keras model.

    Attributes:
        format: `"saved_model"`, `"tflite"`, ...
        path: The folder (SavedModel) or file.
        size: Size of the file, or of all files in the folder, in bytes.
        numbers: Number of stored weights and constants.
        outputs: How each output agrees with the Keras model's, by name.
        max_difference: Largest absolute difference of all outputs, in units
            of the output (logits, as a rule).
        agreement: Least agreement among the outputs. For class scores, the
            agreement is the fraction of the images, 0 to 1, with the same
            best class.
        accuracy: Fraction of the images, 0 to 1, with the right class; `None`
            without labels.
        latency_p50: Median time of a call with one image on one thread of
            the CPU, in milliseconds.
        latency_p95: 95th percentile of this time, in milliseconds.
    """

    format: str
    path: Path
    size: int
    numbers: int
    outputs: Mapping[str, Agreement]
    max_difference: float
    agreement: float
    accuracy: float | None
    latency_p50: float
    latency_p95: float

    def __str__(self) -> str:
        known = self.accuracy is not None
        accuracy = f"accuracy {self.accuracy:.2%}, " if known else ""
        several = len(self.outputs) > 1
        agreements = ", ".join(
            f"{name!r}: {each}" if several else str(each)
            for name, each in self.outputs.items()
        )
        return (
            f"{self.format}: {self.size / 1000:.1f} kB, {accuracy}{agreements}"
            f", {self.latency_p50:.3f} ms a sample "
            f"(p95 {self.latency_p95:.3f})"
        )


class Proof:
    """Runs files on images, each in a separate process.

    Args:
        folder: Empty folder for files that the processes exchange.
        model: The network that the files hold.
        inputs: Prepared images `(N, ...)`, by input name.
        expected: Outputs of the network on `inputs`, by name.
        tasks: Meaning of each output, by name.
        labels: Right classes, for a network with one output, or `None`.
        serving: Preprocessing and class names of the signature for raw
            images, or `None`.
    """

    def __init__(
        self,
        folder: Path,
        model: keras.Model,
        inputs: Arrays,
        expected: Arrays,
        tasks: Mapping[str, str],
        labels: np.ndarray | None,
        serving: Serving | None,
    ):
        self._folder = folder
        self._model = model
        self._expected = expected
        self._tasks = tasks
        self._labels = labels
        self._serving = serving
        (folder / "inputs.pickle").write_bytes(pickle.dumps(inputs))
        if serving is not None:
            (images,) = inputs.values()
            np.save(folder / "pixels.npy", serving.pixels(images))

    def measure(self, name: str, path: Path) -> ExportedModel:
        """Measures a file.

        Args:
            name: Format of the file.
            path: The file.

        Returns:
            The measurements, even if the file agrees badly.

        Raises:
            RuntimeError: If the file does not run, holds more than the
                network, has other outputs, or serves raw images wrongly.
        """
        self._run(name, path)
        held = contents(path)
        require_alone(name, held, self._model)
        outputs = renamed(self._read("outputs.pickle"), self._expected)
        if set(outputs) != set(self._expected):
            raise RuntimeError(
                f"The {name} file must have the outputs of the network, "
                f"{sorted(self._expected)}. Received: {sorted(outputs)}. "
                "Leave this format out."
            )
        times = json.loads((self._folder / "times.json").read_text())
        if path.is_dir() and self._serving is not None:
            self._require_serving()
        agreements = {
            name: compare(outputs[name], expected, self._tasks[name])
            for name, expected in self._expected.items()
        }
        accuracy = None
        if self._labels is not None:
            ((found, expected),) = zip(
                outputs.values(), self._expected.values(), strict=True
            )
            classes = best_classes(found, are_probabilities(expected))
            accuracy = float((classes == self._labels).mean())
        files = [file for file in (path, *path.rglob("*")) if file.is_file()]
        of_outputs = agreements.values()
        return ExportedModel(
            format=name,
            path=path,
            size=sum(file.stat().st_size for file in files),
            numbers=held.numbers,
            outputs=agreements,
            # `np.max` keeps NaN; the built-in `max` could drop it.
            max_difference=float(
                np.max([a.max_difference for a in of_outputs])
            ),
            agreement=min(each.agreement for each in of_outputs),
            accuracy=accuracy,
            latency_p50=float(np.percentile(times, 50)),
            latency_p95=float(np.percentile(times, 95)),
        )

    def _read(self, name: str) -> Arrays:
        return pickle.loads((self._folder / name).read_bytes())

    def _run(self, name: str, path: Path) -> None:
        # Without -P, modules of this folder would hide other modules of the
        # same name. Without TF_USE_LEGACY_KERAS, TensorFlow would import Keras.
        done = subprocess.run(
            [sys.executable, "-P", runtimes.__file__, path, self._folder],
            env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"The {name} file must run in a process without Keras. "
                f"Received: exit code {done.returncode}. It ended with:\n"
                f"{done.stderr[-2000:]}"
            )

    def _require_serving(self) -> None:
        served = self._read("served.pickle")
        given, names = served["probabilities"], served["class_name"]
        (outputs,) = self._expected.values()
        expected = as_probabilities(outputs, are_probabilities(outputs))
        difference = float(np.abs(given - expected).max())
        classes = np.array(self._serving.classes)[given.argmax(-1)]
        if (
            difference > 1e-3
            or (np.char.decode(names.astype("S"), "utf-8") != classes).any()
        ):
            raise RuntimeError(
                "The signature serve_images must give the probabilities of "
                "the Keras model and their class names. Received: largest "
                f"difference {difference:.3g}. Look for a mean and deviation "
                "that are not those of `images`."
            )


def compare(found: np.ndarray, expected: np.ndarray, task: str) -> Agreement:
    """Compares an output with the expected output.

    Args:
        found: Output of the file, `(N, ..., C)` or `(N,)`.
        expected: Output of the Keras model, of the shape of `found`.
        task: Meaning of the output, one of `keras_mhgd.tasks.KINDS`.

    Returns:
        The comparison, over all N samples and all positions in a sample.
    """
    difference = np.abs(found - expected)
    scale = float(np.abs(expected).max())
    if task == SINGLE_LABEL:
        probable = are_probabilities(expected)
        agrees = best_classes(found, probable) == best_classes(
            expected, probable
        )
    elif task == MULTI_LABEL:
        threshold = 0.5 if _are_bounded(expected) else 0.0
        agrees = (_rows(found) > threshold) == (_rows(expected) > threshold)
        agrees = agrees.all(-1)
    else:
        agrees = (_rows(difference) <= _CLOSE * scale).all(-1)
    return Agreement(task, float(difference.max()), scale, float(agrees.mean()))


def _rows(outputs: np.ndarray) -> np.ndarray:
    """Adds a last axis to outputs `(N,)`."""
    return outputs[:, np.newaxis] if outputs.ndim == 1 else outputs


def _are_bounded(outputs: np.ndarray) -> bool:
    return bool(outputs.min() >= 0 and outputs.max() <= 1)


def are_probabilities(outputs: np.ndarray) -> bool:
    """Checks whether outputs are probabilities of classes, or of one class."""
    outputs = _rows(outputs)
    one = outputs.shape[-1] == 1
    return _are_bounded(outputs) and (
        one or np.allclose(outputs.sum(-1), 1, atol=1e-3)
    )


def best_classes(outputs: np.ndarray, probable: bool) -> np.ndarray:
    """Finds the best class of each answer.

    A single output is the score of the second of two classes.
    """
    outputs = _rows(outputs)
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    return outputs[..., 0] > (0.5 if probable else 0.0)
