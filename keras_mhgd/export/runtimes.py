"""Runs an exported file in the runtime that it was made for.

python -P runtimes.py <file> <folder>

As a program, this module uses only the file and its inputs. It imports neither
Keras nor this package, and runs on one thread of the CPU.
"""

import dataclasses
import json
import pickle
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

BATCH_SIZE = 64  # images in one call, whatever the length of the array
_WARM_UP = 10  # calls that are not timed
_CALLS = 200  # timed calls, each with one image


@dataclasses.dataclass(frozen=True)
class Network:
    """Holds an exported network that is open in its runtime.

    Attributes:
        run: Function from a batch of any size to its outputs, both by name.
        inputs: Shape of a sample and dtype that `run` takes, by input name.
            `None` in a shape fits any size.
        outputs: Names of the outputs.
    """

    run: Callable[[Arrays], Arrays]
    inputs: dict[str, tuple[tuple[int | None, ...], str]]
    outputs: Collection[str]


def open_saved_model(path: Path, signature: str = "serve") -> Network:
    """Opens a SavedModel folder by one of its signatures."""
    import tensorflow as tf

    module = tf.saved_model.load(str(path))
    if signature not in module.signatures:
        raise ValueError(
            f"no endpoint `{signature}` in {list(module.signatures)}."
        )
    _, specs = module.signatures[signature].structured_input_signature

    def run(batch: Arrays) -> Arrays:
        # Refers to `module` to keep it alive, because the function needs the
        # module's variables.
        function = module.signatures[signature]
        outputs = function(**{name: tf.constant(batch[name]) for name in specs})
        return {name: value.numpy() for name, value in outputs.items()}

    return Network(
        run,
        {
            name: (tuple(spec.shape[1:]), spec.dtype.name)
            for name, spec in specs.items()
        },
        module.signatures[signature].structured_outputs,
    )


def open_tflite(path: Path) -> Network:
    """Opens a TFLite file, with floats for quantized inputs and outputs.

    A quantized value is q = x / scale + zero point. The network takes and
    gives x.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    takes, gives = _tflite_ends(interpreter)
    allocated = None

    def run(batch: Arrays) -> Arrays:
        nonlocal allocated
        shapes = {name: batch[name].shape for name in takes}
        if shapes != allocated:
            for name, shape in shapes.items():
                interpreter.resize_tensor_input(takes[name]["index"], shape)
            interpreter.allocate_tensors()
            allocated = shapes
        for name, source in takes.items():
            values = _quantized(batch[name], source)
            interpreter.set_tensor(source["index"], values)
        interpreter.invoke()
        return {
            name: _floats(interpreter.get_tensor(output["index"]), output)
            for name, output in gives.items()
        }

    inputs = {name: _tflite_input(source) for name, source in takes.items()}
    return Network(run, inputs, gives)


def _tflite_ends(interpreter: Any) -> tuple[dict, dict]:
    """Finds inputs and outputs by their signature names, if it has one."""
    ends = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = list(interpreter.get_signature_list())
    if len(signatures) != 1:
        return tuple({each["name"]: each for each in end} for end in ends)
    # Only tensor indices are taken from the runner. A runner that is kept holds
    # a second reference to the interpreter, which then refuses to resize.
    runner = interpreter.get_signature_runner(signatures[0])
    named = runner.get_input_details(), runner.get_output_details()
    by_index = {each["index"]: each for end in ends for each in end}
    return tuple(
        {name: by_index[each["index"]] for name, each in end.items()}
        for end in named
    )


def _tflite_input(source: dict) -> tuple[tuple[int | None, ...], str]:
    shape = [None if size == -1 else size for size in source["shape_signature"]]
    quantized = source["quantization"][0] > 0
    dtype = "float32" if quantized else source["dtype"].__name__
    return tuple(shape[1:]), dtype


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
    options.log_severity_level = 4  # errors are raised, not logged
    # The errors of ONNX Runtime have no common base class.
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
            # The fallback would print a banner and use the same provider.
            enable_fallback=False,
        )
    except errors as error:
        raise ValueError(str(error)) from error
    outputs = [output.name for output in session.get_outputs()]

    def run(batch: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, batch), strict=True))

    kinds = {"tensor(float)": "float32"}
    kinds |= {f"tensor({kind})": kind for kind in ("int32", "int64")}
    inputs = {}
    for source in session.get_inputs():
        shape = [n if isinstance(n, int) else None for n in source.shape]
        dtype = kinds.get(source.type, source.type)
        inputs[source.name] = tuple(shape[1:]), dtype
    return Network(run, inputs, outputs)


OPENERS = {  # by suffix; the suffix of a folder is empty
    "": open_saved_model,
    ".tflite": open_tflite,
    ".onnx": open_onnx,
}


def in_batches(run: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
    """Runs a function of one batch on arrays of any length, in batches."""
    parts = [
        run(_rows(inputs, start, BATCH_SIZE))
        for start in range(0, _count(inputs), BATCH_SIZE)
    ]
    return {
        name: np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }


def _count(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _rows(inputs: Arrays, start: int, count: int) -> Arrays:
    return {name: each[start : start + count] for name, each in inputs.items()}


def renamed(arrays: Arrays, names: Collection[str]) -> Arrays:
    """Renames a single array to the expected name, if one is expected."""
    if len(arrays) == len(names) == 1:
        return dict(zip(names, arrays.values(), strict=True))
    return arrays


def _milliseconds(network: Network, inputs: Arrays) -> list[float]:
    """Times calls with one sample each, in milliseconds."""
    times = []
    for call in range(_WARM_UP + _CALLS):
        sample = _rows(inputs, call % _count(inputs), 1)
        start = time.perf_counter()
        network.run(sample)
        times.append(1000 * (time.perf_counter() - start))
    return times[_WARM_UP:]


def _main(path: Path, folder: Path) -> None:
    """Runs a file on the inputs in a folder and writes the results there.

    Reads `inputs.pickle`. Writes `outputs.pickle` and `times.json`
    (milliseconds of calls with one sample). If the file is a SavedModel and
    the folder holds `pixels.npy`, also runs the signature for raw images on
    these pixels and writes `served.pickle`.
    """
    if path.is_dir():
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    network = OPENERS[path.suffix](path)
    inputs = pickle.loads((folder / "inputs.pickle").read_bytes())
    inputs = renamed(inputs, network.inputs)
    outputs = in_batches(network.run, inputs)
    (folder / "outputs.pickle").write_bytes(pickle.dumps(outputs))
    times = _milliseconds(network, inputs)
    (folder / "times.json").write_text(json.dumps(times))
    if path.is_dir() and (folder / "pixels.npy").exists():
        serve_images = open_saved_model(path, "serve_images").run
        served = in_batches(
            serve_images, {"images": np.load(folder / "pixels.npy")}
        )
        (folder / "served.pickle").write_bytes(pickle.dumps(served))
    modules = {name.partition(".")[0] for name in sys.modules}
    if modules & {"keras", "keras_mhgd"}:
        sys.exit("The file must run without Keras and this package.")


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
