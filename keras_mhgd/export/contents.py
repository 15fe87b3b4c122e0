"""Lists the names and counts the numbers that an exported file holds."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import keras
import tensorflow as tf

# Words that occur in the names of training-only parts. A word is allowed if
# the network's own names contain it.
_FOREIGN = ("teacher", "mhan", "distill")

# A file may hold this many numbers per parameter, plus a constant number,
# because converters add shapes, tables and folded constants.
_MOST_A_PARAMETER = 1.5
_MOST_BESIDE = 10_000


@dataclasses.dataclass(frozen=True)
class Contents:
    """Describes the contents of a file.

    Attributes:
        names: Names of all nodes, variables and tensors.
        numbers: Number of stored weights and constants, each element counted.
    """

    names: frozenset[str]
    numbers: int


def contents(path: Path) -> Contents:
    """Reads the contents of a SavedModel folder, a TFLite or an ONNX file."""
    entries = list(_ENTRIES["" if path.is_dir() else path.suffix](path))
    return Contents(
        frozenset(name for name, _ in entries), sum(size for _, size in entries)
    )


def require_alone(what: str, held: Contents, model: keras.Model) -> None:
    """Raises a RuntimeError if a file holds more than the network."""
    own = " ".join(_own_names(model)).lower()
    words = [word for word in _FOREIGN if word not in own]
    foreign = [
        name
        for name in sorted(held.names)
        if any(word in name.lower() for word in words)
    ]
    most = _MOST_A_PARAMETER * model.count_params() + _MOST_BESIDE
    if foreign or held.numbers > most:
        raise RuntimeError(
            f"The {what} file must hold the network and nothing else. "
            f"Received: {held.numbers} numbers for {model.count_params()} "
            f"parameters, foreign names {foreign[:5]}. Export the student by "
            "itself, built without layers of the teacher."
        )


def _own_names(model: keras.Model) -> Iterator[str]:
    yield model.name
    for variable in model.variables:
        yield variable.path
    for layer in model._flatten_layers():
        yield layer.name


def _elements(shape: Iterable[int]) -> int:
    return math.prod(int(size) for size in shape)


def _saved_model(path: Path) -> Iterator[tuple[str, int]]:
    from tensorflow.core.protobuf import saved_model_pb2

    checkpoint = str(path / "variables" / "variables")
    for name, shape in tf.train.list_variables(checkpoint):
        yield name, _elements(shape)
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((path / "saved_model.pb").read_bytes())
    for graph in (each.graph_def for each in saved.meta_graphs):
        functions = graph.library.function
        nodes = [node for each in functions for node in each.node_def]
        for node in [*graph.node, *nodes]:
            shape = node.attr["value"].tensor.tensor_shape.dim
            constant = node.op == "Const"
            yield (
                node.name,
                _elements(d.size for d in shape) if constant else 0,
            )


def _tflite(path: Path) -> Iterator[tuple[str, int]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(
        schema.Model.GetRootAs(path.read_bytes(), 0)
    )
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            stored = model.buffers[tensor.buffer].data is not None
            # The shape of a scalar is None.
            shape = tensor.shape if tensor.shape is not None else ()
            yield tensor.name.decode(), _elements(shape) if stored else 0


def _onnx(path: Path) -> Iterator[tuple[str, int]]:
    import onnx

    graph = onnx.load(path).graph
    for tensor in graph.initializer:
        yield tensor.name, _elements(tensor.dims)
    for node in graph.node:
        constants = [each.t for each in node.attribute if each.name == "value"]
        yield node.name, sum(_elements(each.dims) for each in constants)


_ENTRIES = {"": _saved_model, ".tflite": _tflite, ".onnx": _onnx}
