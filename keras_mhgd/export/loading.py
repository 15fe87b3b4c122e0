"""Reads a network from any file for inference."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.export.formats import require_onnx
from keras_mhgd.export.inference import (
    checked_inputs,
    checked_model,
    in_structure,
    named,
    named_outputs,
    sources,
)
from keras_mhgd.export.runtimes import OPENERS, Arrays, Network, in_batches
from keras_mhgd.storage.networks import read_network

Inputs = np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]
Predictor = Callable[[Inputs], np.ndarray | Arrays]
"""A function from a batch of inputs to the network's outputs."""

_DTYPES = ("float32", "int32", "int64")
_READ_ERRORS = (IndexError, KeyError, OSError, RuntimeError, TypeError)
_READ_ERRORS += (ValueError, zipfile.BadZipFile, tf.errors.OpError)


# The TFLite interpreter hardly checks the file that it reads. A damaged file
# may crash or hang the process that opens it, so a separate process opens it
# first.
_PROBE = """
import sys
from ai_edge_litert.interpreter import Interpreter
Interpreter(sys.argv[1], num_threads=1).allocate_tensors()
"""
_MOST_SECONDS = 30


def load(path: str | os.PathLike) -> Predictor:
    """Reads a network from a file for inference.

    Args:
        path: `.keras` file, SavedModel folder with the endpoint `serve`,
            `.tflite` file or, with the extra `onnx`, `.onnx` file. If a
            `.keras` file holds a distiller, its student is loaded. A `.tflite`
            file is first opened in a separate process, because a damaged file
            may crash the process that opens it.

    Returns:
        A function from images `(N, ...)`, N >= 1, prepared as for training,
        to outputs `(N, ...)`, float32. For a network with several inputs, the
        function takes a dict of arrays by name, or a list. For a network with
        several outputs, it gives a dict. For a quantized file, the function
        takes and gives floats and applies the scales itself.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ImportError: If the extra that the file needs is not installed.
        ValueError: If `path` holds no readable network.
    """
    path = Path(path)
    message = (
        "`path` must be a .keras file, a SavedModel folder, a .tflite or an "
        ".onnx file of a network that takes floats or integers. "
        f"Received: path='{path}'"
    )
    if not path.exists():
        raise FileNotFoundError(f"{message}, which doesn't exist.")
    suffix = "" if path.is_dir() else path.suffix
    if suffix not in (".keras", *OPENERS):
        raise ValueError(f"{message}. Convert it to one of these.")
    if suffix == ".onnx":
        require_onnx()
    open_file = _open_keras if suffix == ".keras" else OPENERS[suffix]
    try:
        if suffix == ".tflite":
            _require_harmless(path)
        network = open_file(path)
        if not network.inputs or not network.outputs:
            raise ValueError("it has no input or no output.")
        for name, (_, dtype) in network.inputs.items():
            if dtype not in _DTYPES:
                raise ValueError(f"its input {name!r} is {dtype}.")
    except _READ_ERRORS as error:
        mend = "Write it again"
        if path.is_dir() and not (path / "saved_model.pb").exists():
            mend = "Name a file in it, or write it again"
        raise ValueError(
            f"{message}, which can't be read. {mend}. Cause: {error}"
        ) from error
    return _predictor(network)


def _require_harmless(path: Path) -> None:
    """Raises a ValueError if opening a TFLite file crashes or hangs."""
    command = [sys.executable, "-P", "-c", _PROBE, path]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("opening it doesn't end.") from error
    # A negative code means that a signal ended the process. An exception gives
    # a positive code; opening the file in this process raises it again.
    if done.returncode < 0:
        raise ValueError("it ends the process that opens it.")


def outputs_of(model: keras.Model, inputs: Arrays) -> Arrays:
    """Computes the outputs, by name, of a model from `checked_model`."""
    return in_batches(_of_model(model).run, inputs)


def _predictor(network: Network) -> Predictor:
    def predict(images: Inputs) -> np.ndarray | Arrays:
        inputs = checked_inputs("images", images, network.inputs)
        outputs = {
            name: values.astype("float32")
            for name, values in in_batches(network.run, inputs).items()
        }
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    return predict


def _open_keras(path: Path) -> Network:
    model = read_network(path)
    if type(model).__name__ == "Distiller":
        model = model.student
    return _of_model(checked_model(model))


def _of_model(model: keras.Model) -> Network:
    inputs = sources(model)
    specs = {
        name: tf.TensorSpec((None, *shape), dtype, name)
        for name, (shape, dtype) in inputs.items()
    }

    # `model.predict` would keep using the device that it was traced for.
    @tf.function(input_signature=[specs], autograph=False)
    def forward(batch):
        outputs = model(in_structure(model, batch), training=False)
        return named(outputs, "output_0", "output")

    def run(batch: Arrays) -> Arrays:
        batch = {name: tf.constant(values) for name, values in batch.items()}
        return {name: each.numpy() for name, each in forward(batch).items()}

    return Network(run, inputs, list(named_outputs(model)))
