"""Writes a network for deployment and proves each file before keeping it.

A file counts as written once it has given the same answers as the Keras
model on real images; until then it lies in a temporary folder beside the
target, and an older export stays as it is.
"""

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.choices import require_known
from keras_mhgd.export.formats import FORMATS, Content, require_onnx
from keras_mhgd.export.loading import predictor
from keras_mhgd.export.network import (
    checked_images,
    checked_model,
    in_float32,
    shape_and_dtype,
)
from keras_mhgd.export.proof import ExportedModel, Proof
from keras_mhgd.export.serving import Serving
from keras_mhgd.files import require_writable


def export_student(
    model: keras.Model,
    directory: str | os.PathLike,
    images: np.ndarray,
    formats: Sequence[str] = ("saved_model", "tflite"),
    tolerance: float = 1e-3,
    *,
    labels: np.ndarray | None = None,
    serving: Serving | None = None,
    calibration: np.ndarray | None = None,
    uint8_input: bool = False,
    least_agreement: Mapping[str, float] | None = None,
) -> list[ExportedModel]:
    """Writes a network in several formats, each checked on images.

    All files take any batch size and run without Keras and this package: each
    is run so, in a process of its own, on all `images`. A network built under
    a mixed precision policy is rebuilt in float32 around the same weights.
    Nothing in `directory` is replaced unless all formats pass.

    | format | file | what it is |
    | --- | --- | --- |
    | `"saved_model"` | `saved_model/` | float32; signature `serve`, also for raw images `serve_images` with `serving` |
    | `"tflite"` | `model.tflite` | float32 |
    | `"tflite_float16"` | `model_float16.tflite` | weights in float16 |
    | `"tflite_dynamic_int8"` | `model_dynamic_int8.tflite` | weights in int8, activations scaled at run time |
    | `"tflite_int8"` | `model_int8.tflite` | all in int8, input and output too; scales from `calibration` |
    | `"onnx"` | `model.onnx` | float32; needs the extra `onnx` |

    Args:
        model: Built model with one input `(batch, ...)` of floats or, such
            as the words of a text, integers, and one output `(batch, ...,
            classes)`.
        directory: Local folder for the files; made if it is missing.
        images: `(N, ...)`, N >= 1, prepared as for training.
        formats: Any of those above.
        tolerance: Largest difference of an output allowed in float32 formats,
            as a fraction of the largest absolute output. Defaults to `1e-3`.
        labels: Right classes of the images, integers `(N,)`, for accuracies.
        serving: Means, deviations and class names, for `serve_images`. Given,
            `images` must be uint8 images that were normalised with these.
        calibration: `(M, ...)`, M >= 1, training images prepared as `images`,
            a few hundred or more; for `"tflite_int8"`, which needs them.
        uint8_input: Whether `"tflite_int8"` takes uint8 in the place of int8.
        least_agreement: By format, the least fraction of the images, 0 to 1,
            that must keep their best class. Defaults to 0.98 for
            `"tflite_int8"` and 0.999 for each other.

    Returns:
        One `ExportedModel` for each format, in the order of `formats`.

    Raises:
        TypeError: If `model` is no Keras model, or is a distiller.
        ValueError: If a format is unknown, the model is not built or gives
            outputs that are not finite, or other arguments don't fit it.
        ImportError: If the packages of a format are not installed.
        OSError: If `directory` can't be written to.
        RuntimeError: If a written file disagrees with the Keras model, with
            the figures of all, or holds more than the model.

    Example:
        >>> files = keras_mhgd.export.export_student(
        ...     student, "saved_models/student", images
        ... )
        >>> predict = keras_mhgd.export.load(files[0].path)
        >>> predict(images).shape
        (32, 10)
    """  # noqa: E501
    formats = list(dict.fromkeys(formats))
    for name in formats or [""]:
        require_known("formats", name, FORMATS)
    if "onnx" in formats:
        require_onnx()
    least = _checked_agreement(least_agreement or {})
    model = checked_model(model)
    shape, dtype = shape_and_dtype(model)
    images = checked_images("images", images, shape, dtype)
    if "tflite_int8" in formats:
        calibration = _checked_calibration(calibration, shape, dtype)
    if labels is not None:
        labels = _checked_labels(labels, model.outputs[0], len(images))
    if serving is not None:
        serving.check(model, images)
    directory = require_writable(directory)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as folder:
        workspace = Path(folder).resolve()
        (workspace / "proof").mkdir()
        model = in_float32(model)
        # On the CPU: GPUs shorten the mantissas of float32 products.
        with tf.device("CPU:0"):
            expected = predictor(model)(images)
        if not np.isfinite(expected).all():
            raise ValueError(
                "`model` must give finite outputs on `images`. Received: NaN "
                "or infinity. Train it again, or export an earlier epoch."
            )
        proof = Proof(
            workspace / "proof", model, images, expected, labels, serving
        )
        content = Content(
            model, proof.probable, serving, calibration, uint8_input
        )
        exported = []
        for name in formats:
            path = workspace / FORMATS[name].file
            FORMATS[name].write(content, path)
            exported.append(proof.measure(name, path))
        _require_agreement(exported, expected, tolerance, least)
        return [_install(entry, directory) for entry in exported]


def _checked_agreement(given: Mapping[str, float]) -> dict[str, float]:
    """Completes the least agreements by the default ones."""
    for name, fraction in given.items():
        require_known("least_agreement", name, FORMATS)
        if not 0 <= fraction <= 1:
            raise ValueError(
                "`least_agreement` must hold fractions from 0 to 1. "
                f"Received: {fraction} for {name}. Pass 0.98 for 98 %."
            )
    default = {name: each.least_agreement for name, each in FORMATS.items()}
    return default | dict(given)


def _checked_calibration(
    calibration: np.ndarray | None, shape: tuple[int | None, ...], dtype: str
) -> np.ndarray:
    if calibration is None or dtype != "float32":
        raise ValueError(
            "`calibration` must hold training images where `formats` has "
            "tflite_int8, and the network must take floats. Received: "
            f"{'none' if calibration is None else 'images'}, a network that "
            f"takes {dtype}. Pass prepared training images, or leave out "
            "tflite_int8."
        )
    return checked_images("calibration", calibration, shape, dtype)


def _checked_labels(
    labels: np.ndarray, output: keras.KerasTensor, count: int
) -> np.ndarray:
    labels = np.asarray(labels)
    fits = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not fits or len(output.shape) != 2:
        raise ValueError(
            "`labels` must hold an integer for each of the "
            f"{count} images, and the network give one class an image. "
            f"Received: {labels.dtype} of shape {labels.shape}, a network "
            f"with outputs of shape {output.shape}. Leave them out for other "
            "networks."
        )
    return labels


def _require_agreement(
    exported: Sequence[ExportedModel],
    expected: np.ndarray,
    tolerance: float,
    least: Mapping[str, float],
) -> None:
    """Raises with the figures of all files if one is not good enough."""
    scale = float(np.abs(expected).max())
    figures, failed = [], False
    for each in exported:
        # Written so that a difference that is not a number fails as well.
        passed = each.agreement >= least[each.format]
        needed = f"at least {least[each.format]:.2%}"
        if FORMATS[each.format].exact:
            passed = passed and each.max_difference <= tolerance * scale
            needed += f", difference at most {tolerance * scale:.1e}"
        failed = failed or not passed
        mark = "passed" if passed else "FAILED"
        figures.append(f"{mark} {each}; needed: {needed}")
    if failed:
        raise RuntimeError(
            "Each file must give the answers of the Keras model. Received, "
            f"on {len(expected)} images with outputs up to {scale:.3g}:\n"
            + "\n".join(figures)
            + "\nLook for a layer that is random at inference or unknown to "
            "the converter; calibrate integers on more images, or lower "
            "`least_agreement`."
        )


def _install(entry: ExportedModel, directory: Path) -> ExportedModel:
    """Moves a proven file from the workspace to its place."""
    target = directory / entry.path.name
    if target.is_dir():  # a folder can't be renamed over a full one
        target.rename(entry.path.with_name(f"old_{target.name}"))
    entry.path.replace(target)
    return dataclasses.replace(entry, path=target)
