"""Writes a network for deployment and proves each file before keeping it.

A file counts as written once it has given the same answers as the Keras
model on real images; until then it lies in a temporary folder beside the
target, and an older export stays as it is.
"""

import dataclasses
import os
import statistics
import tempfile
import timeit
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.choices import require_known
from keras_mhgd.features import input_specs
from keras_mhgd.files import require_writable
from keras_mhgd.networks import read_network

Predictor = Callable[[np.ndarray], np.ndarray]

_BATCH_SIZE = 64  # images in one call, whatever the length of the array
_INPUT_DTYPES = ("float32", "int32", "int64")


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A file that was written and gives the answers of the Keras model.

    Attributes:
        format: `"saved_model"` or `"tflite"`.
        path: The folder (SavedModel) or file (TFLite).
        size: All its files together, in bytes.
        max_difference: Largest absolute difference from an output of the
            Keras model, in units of the output (logits, as a rule).
        agreement: Fraction of the images, 0 to 1, with the same best class.
        latency: Median time of a call with one image on the CPU, in
            milliseconds; one thread for TFLite, TensorFlow's own number of
            threads for a SavedModel.
    """

    format: str
    path: Path
    size: int
    max_difference: float
    agreement: float
    latency: float


def export_student(
    model: keras.Model,
    directory: str | os.PathLike,
    images: np.ndarray,
    formats: Sequence[str] = ("saved_model", "tflite"),
    tolerance: float = 1e-3,
) -> list[ExportedModel]:
    """Writes a network as SavedModel and TFLite, each checked on images.

    The files are float32 and take any batch size. A network built under a
    mixed precision policy is rebuilt in float32 around the same weights.
    Nothing in `directory` is replaced unless all formats pass.

    Args:
        model: Built model with one input `(batch, ...)` of floats or, such
            as the words of a text, integers, and one output `(batch, ...,
            classes)`.
        directory: Local folder for `saved_model/` and `model.tflite`; made
            if it is missing.
        images: `(N, ...)`, N >= 1, prepared as for training.
        formats: Any of `"saved_model"`, `"tflite"`.
        tolerance: Largest difference allowed, as a fraction of the largest
            absolute output; also the largest fraction of images whose best
            class may change. Defaults to `1e-3`.

    Returns:
        One `ExportedModel` for each format, in the order of `formats`.

    Raises:
        TypeError: If `model` is no Keras model, or is a distiller.
        ValueError: If a format is unknown, the model is not built or gives
            outputs that are not finite, or the images don't fit it.
        OSError: If `directory` can't be written to.
        RuntimeError: If a written file disagrees with the Keras model.

    Example:
        >>> files = keras_mhgd.export.export_student(
        ...     student, "saved_models/student", images
        ... )
        >>> predict = keras_mhgd.export.load(files[0].path)
        >>> predict(images).shape
        (32, 10)
    """
    formats = list(dict.fromkeys(formats))
    for name in formats or [""]:
        require_known("formats", name, _FORMATS)
    model = _checked_model(model)
    images = _checked(images, *_shape_and_dtype(model))
    directory = require_writable(directory)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as folder:
        workspace = Path(folder)
        model = _in_float32(model)
        # On the CPU: GPUs shorten the mantissas of float32 products.
        with tf.device("CPU:0"):
            expected = _predictor(model)(images)
        if not np.isfinite(expected).all():
            raise ValueError(
                "`model` must give finite outputs on `images`. Received: NaN "
                "or infinity. Train it again, or export an earlier epoch."
            )
        exported = []
        for name in formats:
            file, write = _FORMATS[name]
            write(model, workspace / file)
            with tf.device("CPU:0"):
                entry = _prove(
                    name, workspace / file, images, expected, tolerance
                )
            exported.append(entry)
        return [_install(entry, directory) for entry in exported]


def load(path: str | os.PathLike) -> Predictor:
    """Reads a network from a file for inference.

    Args:
        path: `.keras` file (of a distiller, its student is taken),
            SavedModel folder with the endpoint `serve`, or `.tflite` file.

    Returns:
        A function from images `(N, ...)`, N >= 1, to outputs `(N, ...)`,
        float32.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If what is there is no readable network.
    """
    path = Path(path)
    message = (
        "`path` must be a .keras file, a SavedModel folder or a .tflite file "
        "with one input of floats or integers and one output. "
        f"Received: path='{path}'"
    )
    if not path.exists():
        raise FileNotFoundError(f"{message}, which doesn't exist.")
    suffix = "" if path.is_dir() else path.suffix
    if suffix not in _READERS:
        raise ValueError(f"{message}. Convert it to one of these.")
    try:
        return _READERS[suffix](path)
    except _READ_ERRORS as error:
        raise ValueError(
            f"{message}, which can't be read. Write it again. Cause: {error}"
        ) from error


def _checked_model(model: keras.Model) -> keras.Model:
    """Returns a built model of one input and output, as a graph of layers."""
    if hasattr(model, "student") or not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a plain `keras.Model`. Received: "
            f"model={model!r} of type {type(model).__name__}. Of a distiller, "
            "pass `distiller.student`."
        )
    # Neither unbuilt Sequential nor subclassed models have `inputs`.
    if not getattr(model, "inputs", None) and model.built:
        spec = input_specs(model)
        if isinstance(spec, tf.TensorSpec):
            inputs = keras.Input(spec.shape[1:], dtype=spec.dtype.name)
            model = keras.Model(inputs, model(inputs), name=model.name)
    inputs = getattr(model, "inputs", None) or []
    outputs = getattr(model, "outputs", None) or []
    fits = [
        tensor.dtype in _INPUT_DTYPES and tensor.shape[0] is None
        for tensor in inputs
    ]
    if fits != [True] or len(outputs) != 1:
        raise ValueError(
            "`model` must be a built model with one input of floats or "
            "integers, of any batch size, and one output. Received: "
            f"model={model!r} with inputs={inputs} and outputs={outputs}. "
            "Build it around one `keras.Input(shape)`."
        )
    return model


def _shape_and_dtype(model: keras.Model) -> tuple[tuple[int | None, ...], str]:
    (source,) = model.inputs
    return tuple(source.shape[1:]), source.dtype


def _checked(
    images: np.ndarray, shape: Sequence[int | None], dtype: str
) -> np.ndarray:
    """Returns images as `dtype` if each has the shape; None fits any."""
    images = np.asarray(images, dtype)
    fits = tf.TensorShape((None, *shape)).is_compatible_with(images.shape)
    if not fits or len(images) == 0:
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(
            f"`images` must have the shape ({expected}) with N >= 1. "
            f"Received: images.shape={images.shape}. Pass at least one "
            "image, prepared as for training."
        )
    return images


def _install(entry: ExportedModel, directory: Path) -> ExportedModel:
    """Moves a proven file from the workspace to its place."""
    target = directory / entry.path.name
    if target.is_dir():  # a folder can't be renamed over a full one
        target.rename(entry.path.with_name(f"old_{target.name}"))
    entry.path.replace(target)
    return dataclasses.replace(entry, path=target)


def _in_float32(model: keras.Model) -> keras.Model:
    """Rebuilds the model in float32 if a layer has another dtype policy."""
    config = model.get_config()
    policies = [p for p in _dtype_policies(config) if p["name"] != "float32"]
    if not policies:
        return model
    for policy in policies:
        policy["name"] = "float32"
    # Layers that make layers of their own take the global policy for them.
    global_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        rebuilt = type(model).from_config(config)
    finally:
        keras.config.set_dtype_policy(global_policy)
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _dtype_policies(config: object) -> Iterator[dict]:
    """Yields the config of each serialized dtype policy at any depth."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            yield config["config"]
        config = list(config.values())
    for value in config if isinstance(config, list | tuple) else ():
        yield from _dtype_policies(value)


def _write_saved_model(model: keras.Model, path: Path) -> None:
    # Not `model.export`: in Keras 3.15 that stores every variable twice.
    archive = keras.export.ExportArchive()
    shape, dtype = _shape_and_dtype(model)
    signature = keras.InputSpec(shape=(None, *shape), dtype=dtype)
    archive.add_endpoint(
        "serve", lambda batch: model(batch, training=False), [signature]
    )
    archive.write_out(str(path), verbose=False)


def _write_tflite(model: keras.Model, path: Path) -> None:
    model.export(path, format="litert", verbose=False)


def _prove(
    name: str,
    path: Path,
    images: np.ndarray,
    expected: np.ndarray,
    tolerance: float,
) -> ExportedModel:
    """Measures a written file; raises if its outputs are not `expected`."""
    predict = load(path)
    outputs = predict(images)
    difference = float(np.abs(outputs - expected).max())
    scale = float(np.abs(expected).max())
    probable = expected.min() >= 0 and expected.max() <= 1
    agreement = float(
        (_classes(outputs, probable) == _classes(expected, probable)).mean()
    )
    # Written so that a difference that is not a number fails as well.
    if not (difference <= tolerance * scale and 1 - agreement <= tolerance):
        raise RuntimeError(
            f"The {name} file must give the outputs of the Keras model "
            f"within tolerance={tolerance:g}. Received: largest difference "
            f"{difference:.3g} at outputs up to {scale:.3g}, the same best "
            f"class for {agreement:.1%} of {len(images)} images. Look for a "
            "layer that is random at inference or unknown to the converter."
        )
    times = timeit.repeat(lambda: predict(images[:1]), number=1, repeat=20)
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return ExportedModel(
        format=name,
        path=path,
        size=sum(file.stat().st_size for file in files),
        max_difference=difference,
        agreement=agreement,
        latency=1000 * statistics.median(times),
    )


def _batched(
    run: Predictor, shape: Sequence[int | None], dtype: str
) -> Predictor:
    """Extends a function of one batch to arrays of any length."""

    def predict(images: np.ndarray) -> np.ndarray:
        images = _checked(images, shape, dtype)
        starts = range(0, len(images), _BATCH_SIZE)
        outputs = [run(images[i : i + _BATCH_SIZE]) for i in starts]
        return np.concatenate(outputs).astype("float32")

    return predict


def _predictor(model: keras.Model) -> Predictor:
    shape, dtype = _shape_and_dtype(model)
    # Own function: `model.predict` would keep the device it was traced for.
    forward = tf.function(lambda batch: model(batch, training=False))
    run = forward.get_concrete_function(tf.TensorSpec((None, *shape), dtype))
    return _batched(lambda batch: run(tf.constant(batch)).numpy(), shape, dtype)


def _read_keras(path: Path) -> Predictor:
    model = read_network(path)
    if type(model).__name__ == "Distiller":
        model = model.student
    return _predictor(_checked_model(model))


def _read_saved_model(path: Path) -> Predictor:
    module = tf.saved_model.load(str(path))
    if "serve" not in module.signatures:
        raise ValueError(f"no endpoint `serve` in {list(module.signatures)}.")
    _, inputs = module.signatures["serve"].structured_input_signature
    ((name, spec),) = inputs.items()

    def run(batch: np.ndarray) -> np.ndarray:
        # Through `module`, which has to live as long as its variables.
        serve = module.signatures["serve"]
        (outputs,) = serve(**{name: tf.constant(batch)}).values()
        return outputs.numpy()

    return _batched(run, spec.shape[1:], spec.dtype.name)


def _read_tflite(path: Path) -> Predictor:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    dtype = source["dtype"].__name__
    if dtype not in _INPUT_DTYPES:
        raise ValueError(f"its input is {dtype}.")
    shape = [None if size == -1 else size for size in source["shape_signature"]]
    allocated = None

    def run(batch: np.ndarray) -> np.ndarray:
        nonlocal allocated
        if batch.shape != allocated:
            interpreter.resize_tensor_input(source["index"], batch.shape)
            interpreter.allocate_tensors()
            allocated = batch.shape
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return _batched(run, shape[1:], dtype)


_FORMATS = {  # with the name in the directory
    "saved_model": ("saved_model", _write_saved_model),
    "tflite": ("model.tflite", _write_tflite),
}
_READERS = {  # by suffix; a folder counts as having none
    "": _read_saved_model,
    ".keras": _read_keras,
    ".tflite": _read_tflite,
}
_READ_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)
_READ_ERRORS += (zipfile.BadZipFile, tf.errors.OpError)


def _classes(outputs: np.ndarray, probable: bool) -> np.ndarray:
    """The best class; of one output, the second of two classes or not."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    return outputs[..., 0] > (0.5 if probable else 0.0)
