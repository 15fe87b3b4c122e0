"""Finds the logits and the embedding of a network."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd.features.layers import (
    InTwo,
    Point,
    children,
    graph_of,
    inner_activation,
    is_activation,
    is_graph,
)


class End(NamedTuple):
    """Describes one output of a network.

    Attributes:
        form: `"softmax"` or `"sigmoid"` for probabilities; `"linear"` for the
            output of a layer with weights and no activation, or for a sum or
            mean of linear outputs; `"other"` for another activation; `None`
            if the form cannot be determined.
        is_probability: Whether `Features.logits` holds probabilities, because
            the softmax or sigmoid is not the network's last operation.
    """

    form: str | None
    is_probability: bool


class Made(NamedTuple):
    """Records how a tensor was made.

    Attributes:
        by: The layer or operation that made the tensor, if known.
        inputs: The input tensors of that layer or operation.
        origin: Finds how the input tensors were made.
        before: The input of the layer's own activation, if it was kept.
    """

    by: keras.Operation | None
    inputs: list[Any]
    origin: "Origin"
    before: Any = None


Origin = Callable[[Any], Made]

_FUNCTIONS = {
    "softmax": (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax),
    "sigmoid": (keras.activations.sigmoid, keras.ops.sigmoid, tf.nn.sigmoid),
    "linear": (keras.activations.linear, None),
}
_PROBABILITIES = ("softmax", "sigmoid")
_PASSES = "passes"  # the output has the input's form
_CONVEX = ("nearest", "bilinear")

IDLE = (  # these do nothing at inference
    keras.layers.Identity,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
)
_RESHAPING = (
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
)
_RESHAPING_OPERATIONS = ("Reshape", "Squeeze", "ExpandDims")
_AVERAGING = (  # these combine networks or positions, but not classes
    keras.layers.Average,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
    keras.layers.UpSampling3D,
    keras.layers.Concatenate,
)
_SUMMING = (
    keras.layers.Add,
    keras.layers.Subtract,
    keras.layers.Rescaling,
)


def squashes(layer: keras.Operation | None) -> bool:
    """Checks whether a layer's activation is a softmax or sigmoid."""
    function = getattr(layer, "activation", None)
    return _form_of_function(function) in _PROBABILITIES


def end_of(tensor: Any, origin: Origin) -> End:
    """Describes an output, by the operations that made it.

    Args:
        tensor: The output, symbolic or of a batch.
        origin: Finds how a tensor was made.
    """
    form, last = _form(tensor, origin)
    return End(form, form in _PROBABILITIES and not last)


def read_head(
    outputs: Any, origin: Origin, needs: Collection[str], name: str
) -> dict[str, Any]:
    """Finds logits and embedding by going back from the outputs.

    Args:
        outputs: The network's predictions, symbolic or of a batch.
        origin: Finds how a tensor was made. If a layer's own activation gives
            an output, `Made.before` must hold that activation's input.
        needs: Any of `"logits"` and `"embedding"`; others are ignored.
        name: The network's name, for messages.

    Returns:
        The needed tensors by name.

    Raises:
        ValueError: If the embedding is needed and cannot be determined.
    """
    found = {}
    if "logits" in needs:
        found["logits"] = keras.tree.map_structure(
            lambda tensor: _logits(tensor, origin), outputs
        )
    if "embedding" in needs:
        found["embedding"] = _embedding(outputs, origin, name)
    return found


def graph_origin(
    tensor: keras.KerasTensor,
    given: Mapping[int, keras.KerasTensor] = {},
    outside: Origin | None = None,
) -> Made:
    """Finds how a graph's tensor was made, also inside of nested graphs.

    Args:
        tensor: A symbolic tensor.
        given: In a nested graph, the tensors that the graph is called with, by
            the identity of the graph's own inputs.
        outside: Finds how the tensors in `given` were made.
    """
    if id(tensor) in given:
        return outside(given[id(tensor)])

    def origin(tensor):
        return graph_origin(tensor, given, outside)

    layer, node_index, index = tensor._keras_history
    node = layer._inbound_nodes[node_index]
    inputs = [
        each
        for each in keras.tree.flatten(node.arguments.args)
        if isinstance(each, keras.KerasTensor)
    ]
    if isinstance(layer, Point):
        return origin(inputs[0])
    if isinstance(layer, InTwo):
        before = node.output_tensors[0] if index else None
        return Made(layer.layer, inputs, origin, before)
    if is_graph(layer):
        graph = graph_of(layer)
        inner = dict(zip(map(id, graph.inputs), inputs, strict=False))
        return graph_origin(graph.outputs[index], inner, origin)
    return Made(layer, inputs, origin)


def _logits(tensor: Any, origin: Origin) -> Any:
    form, last = _form(tensor, origin)
    if form not in _PROBABILITIES or not last:
        return tensor
    made = origin(tensor)
    return made.inputs[0] if made.before is None else made.before


def _embedding(outputs: Any, origin: Origin, name: str) -> Any:
    read = [
        _classifier_input(each, origin) for each in keras.tree.flatten(outputs)
    ]
    first = read[0]
    if first is None or any(size != 1 for size in first.shape[1:-1]):
        raise ValueError(
            "A method that reads the embedding must get networks whose "
            "classifier, the last layer with weights, gets vectors "
            f"(batch, D). Received: {name!r}, which has no such classifier. "
            "Choose another method, or end the network in a Dense layer."
        )
    if any(each is not first for each in read):
        raise ValueError(
            "A method that reads the embedding must get networks whose "
            "outputs all come from one embedding (batch, D). Received: "
            f"{name!r}, whose {len(read)} outputs do not. Choose another "
            "method, or make a network of one output."
        )
    if len(first.shape) > 2:  # maps of one position
        return keras.ops.reshape(first, (-1, first.shape[-1]))
    return first


def _classifier_input(tensor: Any, origin: Origin) -> Any:
    """Finds the input of the last layer with weights, if it has only one."""
    made = origin(tensor)
    while len(made.inputs) == 1 and not getattr(made.by, "weights", ()):
        made = made.origin(made.inputs[0])
    return made.inputs[0] if len(made.inputs) == 1 else None


def _form(tensor: Any, origin: Origin) -> tuple[str | None, bool]:
    """Finds an output's form, and whether the last layer itself gives it."""
    made = origin(tensor)
    layer = made.by
    in_time = isinstance(layer, keras.layers.TimeDistributed)
    if in_time:
        layer = layer.layer
    if is_graph(layer):
        return _form(graph_of(layer).outputs[0], graph_origin)[0], False
    form = _own_form(layer, len(tensor.shape) - in_time)
    if form != _PASSES:
        return form, not in_time
    forms = {_form(each, made.origin)[0] for each in made.inputs}
    form = forms.pop() if len(forms) == 1 else None
    if isinstance(layer, _SUMMING) and form != "linear":
        form = None
    if form == "softmax" and not _keeps_classes(layer, made.inputs, tensor):
        form = None
    return form, False


def _own_form(layer: keras.Operation | None, rank: int) -> str | None:
    """Finds the form that a layer gives; `_PASSES` if it keeps the input's."""
    if not is_of_keras(layer):
        return None
    kind = type(layer).__name__
    if not isinstance(layer, keras.Layer):
        if kind == "Cast" or kind in _RESHAPING_OPERATIONS:
            return _PASSES
        if kind == "Softmax":
            return _form_of_softmax(layer.axis, rank)
        return "sigmoid" if kind == "Sigmoid" else None
    if isinstance(layer, keras.layers.Softmax):
        return _form_of_softmax(layer.axis, rank)
    if isinstance(layer, keras.layers.Activation):
        form = _form_of_function(layer.activation)
        return _PASSES if form == "linear" else form
    if is_activation(layer):
        return "other"
    if isinstance(layer, (*IDLE, *_RESHAPING, *_AVERAGING, *_SUMMING)):
        return _PASSES
    if not layer.weights or children(layer):
        return None
    if inner_activation(layer) is not None:
        return _form_of_function(layer.activation)
    linear = _form_of_function(getattr(layer, "activation", None)) == "linear"
    return "linear" if linear else None


def _keeps_classes(
    layer: keras.Operation, inputs: Sequence[Any], tensor: Any
) -> bool:
    """Checks whether the last axis still holds classes that sum to one."""
    if isinstance(layer, keras.layers.Permute):
        return layer.dims[-1] == len(layer.dims)
    if isinstance(layer, keras.layers.Concatenate):
        return layer.axis not in (-1, len(tensor.shape) - 1)
    if getattr(layer, "interpolation", "nearest") not in _CONVEX:
        return False
    return inputs[0].shape[-1] == tensor.shape[-1] is not None


def _form_of_function(function: Callable | None) -> str | None:
    for form, functions in _FUNCTIONS.items():
        if function in functions:
            return form
    if isinstance(function, keras.Layer):
        form = _own_form(function, rank=0)
        return None if form == _PASSES else form
    module = getattr(function, "__module__", None) or ""
    return "other" if module.startswith(("keras.", "tensorflow.")) else None


def _form_of_softmax(axis: int | Sequence[int], rank: int) -> str | None:
    last = [-1], [rank - 1]
    return "softmax" if keras.tree.flatten(axis) in last else None


def is_of_keras(layer: keras.Operation | None) -> bool:
    """Checks whether Keras's own code implements an operation."""
    kinds = [each for each in type(layer).__mro__ if "call" in vars(each)]
    return bool(kinds) and kinds[0].__module__.startswith("keras.")
