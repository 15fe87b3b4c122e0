"""Defines the export formats: file name, writer, required agreement."""

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.export.inference import in_structure, sources
from keras_mhgd.export.serving import Serving


@dataclasses.dataclass(frozen=True)
class Content:
    """Holds everything that the writers of the files need.

    Attributes:
        model: Float32 network with named inputs and outputs, in inference
            mode.
        probable: Whether the network's outputs are probabilities.
        serving: Preprocessing and class names for the signature
            `serve_images`, or `None` to leave that signature out.
        calibration: Prepared training images `(N, ...)`, float32, by input
            name, for `tflite_int8`.
        uint8_input: Whether `tflite_int8` takes uint8 instead of int8.
    """

    model: keras.Model
    probable: bool
    serving: Serving | None
    calibration: Mapping[str, np.ndarray] | None
    uint8_input: bool


@dataclasses.dataclass(frozen=True)
class Format:
    """Describes an export format.

    Attributes:
        file: Name of the file in the export folder.
        write: Function that writes the file to a path.
        exact: Whether the file computes in float32, like the model.
        least_agreement: Least fraction of the answers, 0 to 1, that must agree
            with the Keras model.
    """

    file: str
    write: Callable[[Content, Path], None]
    exact: bool
    least_agreement: float = 0.999


def require_onnx() -> None:
    """Raises an ImportError if packages of the extra `onnx` are missing."""
    if not all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime"))):
        raise ImportError(
            "The format onnx must have the packages of the extra onnx. "
            "Received: an environment without them. Run "
            "`pip install 'keras-mhgd[onnx]'`."
        )


def _signature(model: keras.Model) -> list[Any]:
    """Makes the input signature, which keeps the names of the inputs."""
    specs = {
        name: keras.InputSpec(shape=(None, *shape), dtype=dtype, name=name)
        for name, (shape, dtype) in sources(model).items()
    }
    return [in_structure(model, specs)]


def _write_saved_model(content: Content, path: Path) -> None:
    # `model.export` of Keras 3.15 would store every variable twice.
    model, serving = content.model, content.serving
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", lambda batch: model(batch), _signature(model))
    if serving is not None:
        pixels = (None, None, None, len(serving.mean))
        archive.add_endpoint(
            "serve_images",
            serving.endpoint(model, content.probable),
            [keras.InputSpec(shape=pixels, dtype="uint8", name="images")],
        )
    archive.write_out(str(path), verbose=False)


def _write_onnx(content: Content, path: Path) -> None:
    with warnings.catch_warnings():
        # Keras 3.15 patches tf2onnx for NumPy 2. The patch reads `np.object`,
        # and NumPy warns about that.
        warnings.filterwarnings("ignore", "In the future `np.object`")
        content.model.export(
            path,
            format="onnx",
            verbose=False,
            input_signature=_signature(content.model),
        )


def _tflite(**arguments: Any) -> Callable[[Content, Path], None]:
    """Makes the writer of a TFLite file from arguments of the converter."""

    def write(content: Content, path: Path) -> None:
        content.model.export(
            path,
            format="litert",
            verbose=False,
            input_signature=_signature(content.model),
            **arguments,
        )

    return write


_QUANTIZED = {"optimizations": [tf.lite.Optimize.DEFAULT]}


def _write_tflite_int8(content: Content, path: Path) -> None:
    def images() -> Iterator[dict[str, np.ndarray]]:
        count = len(next(iter(content.calibration.values())))
        for i in range(count):
            yield {
                name: values[i : i + 1]
                for name, values in content.calibration.items()
            }

    write = _tflite(
        **_QUANTIZED,
        representative_dataset=images,
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
        inference_input_type=tf.uint8 if content.uint8_input else tf.int8,
        inference_output_type=tf.int8,
    )
    with warnings.catch_warnings():
        # If inputs have names, TensorFlow opens its own deprecated interpreter,
        # which warns.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter")
        write(content, path)


FORMATS = {
    "saved_model": Format("saved_model", _write_saved_model, exact=True),
    "tflite": Format("model.tflite", _tflite(), exact=True),
    "tflite_float16": Format(
        "model_float16.tflite",
        _tflite(**_QUANTIZED, target_spec={"supported_types": [tf.float16]}),
        exact=False,
    ),
    "tflite_dynamic_int8": Format(
        "model_dynamic_int8.tflite", _tflite(**_QUANTIZED), exact=False
    ),
    "tflite_int8": Format(
        "model_int8.tflite",
        _write_tflite_int8,
        exact=False,
        least_agreement=0.98,
    ),
    "onnx": Format("model.onnx", _write_onnx, exact=True),
}


def names() -> list[str]:
    """Lists the formats.

    Returns:
        Format names that `export_student` takes.
    """
    return list(FORMATS)
