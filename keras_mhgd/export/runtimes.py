"""Runs an exported file in the runtime that it was made for.

python -P runtimes.py <file> <folder>

As a program it knows the file and the images alone: it imports nothing of
Keras nor of this package, and works on one thread of the CPU.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH_SIZE = 64  # images in one call, whatever the length of the array
_WARM_UP = 10  # calls before the clock runs
_CALLS = 200  # with one image, timed


@dataclasses.dataclass(frozen=True)
class Network:
    """An exported network in its runtime.

    Attributes:
        run: Function from a batch of any size to its outputs.
        shape: Shape of an image; `None` fits any.
        dtype: What `run` takes.
    """

    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | None, ...]
    dtype: str


def open_saved_model(path: Path) -> Network:
    """Opens a SavedModel folder by its signature `serve`."""
    call, source, outputs = _open_signature(path, "serve")
    (output,) = outputs
    return Network(
        lambda batch: call(batch)[output],
        tuple(source.shape[1:]),
        source.dtype.name,
    )


def _open_signature(path: Path, signature: str) -> tuple:
    """Gives a function to a dict of arrays, its input and its outputs."""
    import tensorflow as tf

    module = tf.saved_model.load(str(path))
    if signature not in module.signatures:
        raise ValueError(
            f"no endpoint `{signature}` in {list(module.signatures)}."
        )
    function = module.signatures[signature]
    ((name, source),) = function.structured_input_signature[1].items()

    def call(batch: np.ndarray) -> dict[str, np.ndarray]:
        # Through `module`, which has to live as long as its variables.
        outputs = module.signatures[signature](**{name: tf.constant(batch)})
        return {key: value.numpy() for key, value in outputs.items()}

    return call, source, function.structured_outputs


def open_tflite(path: Path) -> Network:
    """Opens a TFLite file; integers at its ends are taken and given as floats.

    An input that is quantized, q = x / scale + zero point, is taken as x.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    allocated = None

    def run(batch: np.ndarray) -> np.ndarray:
        nonlocal allocated
        if batch.shape != allocated:
            interpreter.resize_tensor_input(source["index"], batch.shape)
            interpreter.allocate_tensors()
            allocated = batch.shape
        interpreter.set_tensor(source["index"], _quantized(batch, source))
        interpreter.invoke()
        return _floats(interpreter.get_tensor(output["index"]), output)

    shape = [None if size == -1 else size for size in source["shape_signature"]]
    quantized = source["quantization"][0] > 0
    dtype = "float32" if quantized else source["dtype"].__name__
    return Network(run, tuple(shape[1:]), dtype)


def _quantized(values: np.ndarray, tensor: dict) -> np.ndarray:
    scale, zero_point = tensor["quantization"]
    if not scale:
        return values
    limits = np.iinfo(tensor["dtype"])
    values = np.round(values / scale) + zero_point
    return values.clip(limits.min, limits.max).astype(tensor["dtype"])


def _floats(values: np.ndarray, tensor: dict) -> np.ndarray:
    scale, zero_point = tensor["quantization"]
    if not scale:
        return values
    return (values.astype("float32") - zero_point) * np.float32(scale)


def open_onnx(path: Path) -> Network:
    """Opens an ONNX file."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    # Its errors have no class of their own in common.
    errors = tuple(
        kind
        for kind in vars(native).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    )
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=False,  # to the same provider, with a banner
        )
    except errors as error:
        raise ValueError(str(error)) from error
    (source,) = session.get_inputs()
    (output,) = session.get_outputs()

    def run(batch: np.ndarray) -> np.ndarray:
        return session.run([output.name], {source.name: batch})[0]

    shape = [n if isinstance(n, int) else None for n in source.shape]
    kinds = {"tensor(float)": "float32"}
    kinds |= {f"tensor({kind})": kind for kind in ("int32", "int64")}
    return Network(run, tuple(shape[1:]), kinds.get(source.type, source.type))


OPENERS = {  # by suffix; a folder counts as having none
    "": open_saved_model,
    ".tflite": open_tflite,
    ".onnx": open_onnx,
}


def in_batches(
    run: Callable[[np.ndarray], np.ndarray], images: np.ndarray
) -> np.ndarray:
    """Extends a function of one batch to arrays of any length."""
    starts = range(0, len(images), BATCH_SIZE)
    return np.concatenate([run(images[i : i + BATCH_SIZE]) for i in starts])


def _milliseconds(network: Network, images: np.ndarray) -> list[float]:
    """Times calls with one image each."""
    times = []
    for call in range(_WARM_UP + _CALLS):
        i = call % len(images)
        start = time.perf_counter()
        network.run(images[i : i + 1])
        times.append(1000 * (time.perf_counter() - start))
    return times[_WARM_UP:]


def _main(path: Path, folder: Path) -> None:
    """Runs `images.npy`, and `pixels.npy` by the signature for raw images.

    Leaves `outputs.npy`, `times.json` (milliseconds of calls with one image)
    and for raw images `probabilities.npy` and `class_name.npy`.
    """
    if path.is_dir():
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    network = OPENERS[path.suffix](path)
    images = np.load(folder / "images.npy")
    np.save(folder / "outputs.npy", in_batches(network.run, images))
    times = _milliseconds(network, images)
    (folder / "times.json").write_text(json.dumps(times))
    if path.is_dir() and (folder / "pixels.npy").exists():
        serve_images, *_ = _open_signature(path, "serve_images")
        pixels = np.load(folder / "pixels.npy")
        parts = [
            serve_images(pixels[i : i + BATCH_SIZE])
            for i in range(0, len(pixels), BATCH_SIZE)
        ]
        for name, dtype in (("probabilities", "float32"), ("class_name", "S")):
            given = np.concatenate([part[name] for part in parts])
            np.save(folder / f"{name}.npy", given.astype(dtype))
    modules = {name.partition(".")[0] for name in sys.modules}
    if modules & {"keras", "keras_mhgd"}:
        sys.exit("The file must run without Keras and this package.")


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
