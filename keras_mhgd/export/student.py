"""Writes a network for deployment and checks each file before keeping it.

A file is kept only if it gives the same answers as the Keras model on real
images. Until all files are checked, they stay in a temporary folder inside the
target directory, and an older export there does not change.
"""

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.checks import require_known
from keras_mhgd.export.formats import FORMATS, Content, require_onnx
from keras_mhgd.export.inference import (
    Sources,
    checked_inputs,
    checked_model,
    in_float32,
    in_inference_mode,
    named_outputs,
    sources,
    with_named_outputs,
)
from keras_mhgd.export.loading import Inputs, outputs_of
from keras_mhgd.export.proof import (
    Agreement,
    ExportedModel,
    Proof,
    are_probabilities,
)
from keras_mhgd.export.runtimes import Arrays
from keras_mhgd.export.serving import Serving
from keras_mhgd.storage.files import require_writable
from keras_mhgd.tasks import KINDS, SINGLE_LABEL


def export_student(
    model: keras.Model,
    directory: str | os.PathLike,
    images: Inputs,
    formats: Sequence[str] = ("saved_model", "tflite"),
    tolerance: float = 1e-3,
    *,
    labels: np.ndarray | None = None,
    task: str | Mapping[str, str] = SINGLE_LABEL,
    serving: Serving | None = None,
    calibration: Inputs | None = None,
    uint8_input: bool = False,
    least_agreement: Mapping[str, float] | None = None,
) -> list[ExportedModel]:
    """Writes a network in several formats, each checked on images.

    All files take any batch size and run without Keras and without this
    package. To check a file, a separate process runs it on all `images`
    without Keras. A network built under a mixed precision policy is rebuilt in
    float32 with the same weights. Nothing in `directory` is replaced unless
    all formats pass.

    All files are in inference mode: random preprocessing layers inside the
    network do nothing. A network that is random or changes its variables at
    inference is refused. A KerasHub task is exported without its preprocessor,
    as in Keras: the files take the preprocessor's output.

    A network may have several inputs and several outputs. Inputs and outputs
    in a dict are named by its keys. Inputs and outputs in a list are named
    `input_0`, `output_0` and so on. Each output is compared with the output of
    the Keras model.

    | format | file | content |
    | --- | --- | --- |
    | `"saved_model"` | `saved_model/` | float32; signature `serve`, and with `serving` also `serve_images` for raw images |
    | `"tflite"` | `model.tflite` | float32 |
    | `"tflite_float16"` | `model_float16.tflite` | weights in float16 |
    | `"tflite_dynamic_int8"` | `model_dynamic_int8.tflite` | weights in int8, activations scaled at run time |
    | `"tflite_int8"` | `model_int8.tflite` | all in int8, including input and output; scales from `calibration` |
    | `"onnx"` | `model.onnx` | float32; needs the extra `onnx` |

    Args:
        model: Built model. Its inputs `(batch, ...)` are floats or integers
            (for example the words of a text). Its outputs are class scores
            `(batch, classes)`, class scores at each position
            `(batch, ..., classes)`, or values as described by `task`.
        directory: Local folder for the files; made if it is missing.
        images: `(N, ...)`, N >= 1, prepared as for training. For several
            inputs, a dict or a list of arrays.
        formats: Names from the table above.
        tolerance: Largest difference of an output allowed in float32 formats,
            as a fraction of the output's largest absolute value. Defaults to
            `1e-3`.
        labels: Right classes of the images, integers `(N,)`, for measuring
            the accuracy of each file.
        task: Meaning of the outputs, or a dict from the name of each output
            to its meaning. `"single_label"`: scores of classes, one of which
            is right (a single score separates two classes). `"multi_label"`:
            scores of independent labels. `"regression"` or `"embedding"`:
            values. Defaults to `"single_label"`.
        serving: Means, deviations and class names for `serve_images`. If it
            is given, `images` must be uint8 images that were normalised with
            its means and deviations.
        calibration: Training images `(M, ...)`, M >= 1, prepared like
            `images`; a few hundred or more. `"tflite_int8"` needs them.
        uint8_input: Whether `"tflite_int8"` takes uint8 instead of int8.
        least_agreement: By format, the least fraction of answers, 0 to 1,
            that must agree with the Keras model. An answer belongs to an
            image, or to a position in an image. Answers agree if they have
            the same best class, the same labels, or values that differ by at
            most 5 % of the largest value, depending on `task`. Defaults to
            0.98 for `"tflite_int8"` and 0.999 for each other format.

    Returns:
        One `ExportedModel` for each format, in the order of `formats`.

    Raises:
        TypeError: If `model` is no Keras model, or is a distiller.
        ValueError: If a format is unknown, if the model is not built, is
            random at inference or gives outputs that are not finite, or if
            another argument doesn't fit the model.
        ImportError: If the packages of a format are not installed.
        OSError: If `directory` can't be written to.
        RuntimeError: If a written file doesn't run, disagrees with the Keras
            model, or holds more than the model. After a disagreement, the
            message lists the figures of all files.

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
    expects = sources(model)
    inputs = checked_inputs("images", images, expects)
    first, *_ = inputs.values()
    count = len(first)
    tasks = _checked_tasks(task, model)
    if "tflite_int8" in formats:
        calibration = _checked_calibration(calibration, expects)
    if labels is not None:
        labels = _checked_labels(labels, model, tasks, count)
    if serving is not None:
        serving.check(model, first)
    directory = require_writable(directory)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as folder:
        workspace = Path(folder).resolve()
        (workspace / "proof").mkdir()
        model = with_named_outputs(in_inference_mode(in_float32(model)))
        # GPUs shorten the mantissas of float32 products; the CPU doesn't.
        with tf.device("CPU:0"):
            expected = outputs_of(model, inputs)
        if not all(np.isfinite(each).all() for each in expected.values()):
            raise ValueError(
                "`model` must give finite outputs on `images`. Received: NaN "
                "or infinity. Train it again, or export an earlier epoch."
            )
        proof = Proof(
            workspace / "proof",
            model,
            inputs,
            expected,
            tasks,
            labels,
            serving,
        )
        probable = all(map(are_probabilities, expected.values()))
        content = Content(model, probable, serving, calibration, uint8_input)
        exported = []
        for name in formats:
            path = workspace / FORMATS[name].file
            FORMATS[name].write(content, path)
            exported.append(proof.measure(name, path))
        _require_agreement(exported, count, tolerance, least)
        return [_install(entry, directory) for entry in exported]


def _checked_agreement(given: Mapping[str, float]) -> dict[str, float]:
    """Checks the given least agreements and adds the defaults of the rest."""
    for name, fraction in given.items():
        require_known("least_agreement", name, FORMATS)
        if not 0 <= fraction <= 1:
            raise ValueError(
                "`least_agreement` must hold fractions from 0 to 1. "
                f"Received: {fraction} for {name}. Pass 0.98 for 98 %."
            )
    default = {name: each.least_agreement for name, each in FORMATS.items()}
    return default | dict(given)


def _checked_tasks(
    task: str | Mapping[str, str], model: keras.Model
) -> dict[str, str]:
    """Gives the task of each output by name."""
    names = list(named_outputs(model))
    tasks = dict.fromkeys(names, task) if isinstance(task, str) else dict(task)
    if set(tasks) != set(names):
        raise ValueError(
            "`task` must be a name, or a dict with one for each output of the "
            f"network, {names}. Received: task={task}. Name all outputs."
        )
    for each in tasks.values():
        require_known("task", each, KINDS)
    return tasks


def _checked_calibration(
    calibration: Inputs | None, expects: Sources
) -> Arrays:
    dtypes = sorted({dtype for _, dtype in expects.values()})
    if calibration is None or dtypes != ["float32"]:
        raise ValueError(
            "`calibration` must hold training images where `formats` has "
            "tflite_int8, and the network must take floats. Received: "
            f"{'none' if calibration is None else 'images'}, a network that "
            f"takes {', '.join(dtypes)}. Pass prepared training images, or "
            "leave out tflite_int8."
        )
    return checked_inputs("calibration", calibration, expects)


def _checked_labels(
    labels: np.ndarray,
    model: keras.Model,
    tasks: Mapping[str, str],
    count: int,
) -> np.ndarray:
    labels = np.asarray(labels)
    shapes = [output.shape for output in model.outputs]
    fits = labels.shape == (count,) and labels.dtype.kind in "iu"
    one_class = len(shapes) == 1 and len(shapes[0]) == 2
    if not fits or not one_class or set(tasks.values()) != {SINGLE_LABEL}:
        raise ValueError(
            "`labels` must hold an integer for each of the "
            f"{count} images, and the network give one class an image. "
            f"Received: {labels.dtype} of shape {labels.shape}, a network "
            f"with outputs of shape {', '.join(map(str, shapes))} and the "
            f"task {', '.join(tasks.values())}. Leave them out for other "
            "networks."
        )
    return labels


def _require_agreement(
    exported: Sequence[ExportedModel],
    count: int,
    tolerance: float,
    least: Mapping[str, float],
) -> None:
    """Raises with the figures of all files if one is not good enough."""
    figures, failed = [], False
    for each in exported:
        # Comparisons with NaN are false, so a difference of NaN fails.
        passed = each.agreement >= least[each.format]
        needed = f"at least {least[each.format]:.2%}"
        if FORMATS[each.format].exact:
            most = [tolerance * output.scale for output in _outputs(each)]
            passed = passed and all(
                output.max_difference <= bound
                for output, bound in zip(_outputs(each), most, strict=True)
            )
            bounds = ", ".join(f"{bound:.1e}" for bound in most)
            needed += f", difference at most {bounds}"
        failed = failed or not passed
        mark = "passed" if passed else "FAILED"
        figures.append(f"{mark} {each}; needed: {needed}")
    if failed:
        scales = ", ".join(f"{out.scale:.3g}" for out in _outputs(exported[0]))
        raise RuntimeError(
            "Each file must give the answers of the Keras model. Received, "
            f"on {count} samples with outputs up to {scales}:\n"
            + "\n".join(figures)
            + "\nLook for a layer that is random at inference or unknown to "
            "the converter; calibrate integers on more samples, or lower "
            "`least_agreement`. Name the `task` of outputs that are no class "
            "scores."
        )


def _outputs(exported: ExportedModel) -> list[Agreement]:
    return list(exported.outputs.values())


def _install(entry: ExportedModel, directory: Path) -> ExportedModel:
    """Moves a checked file from the workspace to the directory."""
    target = directory / entry.path.name
    if target.is_dir():  # no folder can be renamed over a non-empty one
        target.rename(entry.path.with_name(f"old_{target.name}"))
    entry.path.replace(target)
    return dataclasses.replace(entry, path=target)
