"""Measures exported files in processes that know nothing of the model."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from keras_mhgd.export import runtimes
from keras_mhgd.export.contents import contents, require_alone
from keras_mhgd.export.serving import Serving, as_probabilities


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A file that was written and gives the answers of the Keras model.

    Attributes:
        format: `"saved_model"`, `"tflite"`, ...
        path: The folder (SavedModel) or file.
        size: All its files together, in bytes.
        numbers: How many it stores, weights and constants.
        max_difference: Largest absolute difference from an output of the
            Keras model, in units of the output (logits, as a rule).
        agreement: Fraction of the images, 0 to 1, with the same best class.
        accuracy: Fraction of the images, 0 to 1, with the right class; `None`
            without labels.
        latency_p50: Median time of a call with one image on one thread of
            the CPU, in milliseconds.
        latency_p95: Its 95th percentile.
    """

    format: str
    path: Path
    size: int
    numbers: int
    max_difference: float
    agreement: float
    accuracy: float | None
    latency_p50: float
    latency_p95: float

    def __str__(self) -> str:
        known = self.accuracy is not None
        accuracy = f"accuracy {self.accuracy:.2%}, " if known else ""
        return (
            f"{self.format}: {self.size / 1000:.1f} kB, {accuracy}the Keras "
            f"model's class for {self.agreement:.2%} of the images (largest "
            f"difference {self.max_difference:.1e}), {self.latency_p50:.3f} "
            f"ms an image (p95 {self.latency_p95:.3f})"
        )


class Proof:
    """Runs files on images, each in a process of its own.

    Args:
        folder: Empty folder for what passes between the processes.
        model: The network that the files hold.
        images: Prepared images `(N, ...)`.
        expected: Its outputs on them.
        labels: Right classes, or `None`.
        serving: Of the signature for raw images, or `None`.
    """

    def __init__(
        self,
        folder: Path,
        model: keras.Model,
        images: np.ndarray,
        expected: np.ndarray,
        labels: np.ndarray | None,
        serving: Serving | None,
    ):
        self._folder = folder
        self._model = model
        self._expected = expected
        self._labels = labels
        self._serving = serving
        self.probable = are_probabilities(expected)
        np.save(folder / "images.npy", images)
        if serving is not None:
            np.save(folder / "pixels.npy", serving.pixels(images))

    def measure(self, name: str, path: Path) -> ExportedModel:
        """Measures a file.

        Args:
            name: Its format.
            path: The file.

        Returns:
            What it came to, good or bad.

        Raises:
            RuntimeError: If it does not run, holds more than the network, or
                serves raw images wrongly.
        """
        self._run(name, path)
        held = contents(path)
        require_alone(name, held, self._model)
        outputs = np.load(self._folder / "outputs.npy")
        times = json.loads((self._folder / "times.json").read_text())
        if path.is_dir() and self._serving is not None:
            self._require_serving()
        classes = best_classes(outputs, self.probable)
        agrees = classes == best_classes(self._expected, self.probable)
        right = None if self._labels is None else classes == self._labels
        files = [file for file in (path, *path.rglob("*")) if file.is_file()]
        return ExportedModel(
            format=name,
            path=path,
            size=sum(file.stat().st_size for file in files),
            numbers=held.numbers,
            max_difference=float(np.abs(outputs - self._expected).max()),
            agreement=float(agrees.mean()),
            accuracy=None if right is None else float(right.mean()),
            latency_p50=float(np.percentile(times, 50)),
            latency_p95=float(np.percentile(times, 95)),
        )

    def _run(self, name: str, path: Path) -> None:
        # Without -P the modules of this folder would hide others; TensorFlow
        # imports Keras unless it is told to look for an older one.
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
        given, names = (
            np.load(self._folder / f"{name}.npy")
            for name in ("probabilities", "class_name")
        )
        expected = as_probabilities(self._expected, self.probable)
        difference = float(np.abs(given - expected).max())
        classes = np.array(self._serving.classes)[given.argmax(-1)]
        if (
            difference > 1e-3
            or (np.char.decode(names, "utf-8") != classes).any()
        ):
            raise RuntimeError(
                "The signature serve_images must give the probabilities of "
                "the Keras model and their class names. Received: largest "
                f"difference {difference:.3g}. Look for a mean and deviation "
                "that are not those of `images`."
            )


def are_probabilities(outputs: np.ndarray) -> bool:
    """Tells probabilities of classes, or of one class, from logits."""
    bounded = outputs.min() >= 0 and outputs.max() <= 1
    if outputs.shape[-1] == 1:
        return bool(bounded)
    return bool(bounded and np.allclose(outputs.sum(-1), 1, atol=1e-3))


def best_classes(outputs: np.ndarray, probable: bool) -> np.ndarray:
    """The best class; of one output, the second of two classes or not."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    return outputs[..., 0] > (0.5 if probable else 0.0)
