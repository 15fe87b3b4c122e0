"""The layers of a network: found by path, and what they give.

A network is a graph of layers (functional or sequential), or subclassed: then
only its Python code knows how the layers are called.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
)

_ENDING_IN_ACTIVATION = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def is_graph(model: keras.Layer) -> bool:
    """Whether a model is a graph of layers, with symbolic inputs."""
    return isinstance(model, keras.Model) and bool(
        getattr(graph_of(model), "inputs", None)
    )


def require_network(model: keras.Model) -> None:
    """Raises unless a model is built and has one output."""
    if not isinstance(model, keras.Model) or not model.built:
        raise TypeError(
            "A network must be a built keras.Model. "
            f"Received: {model!r} of type {type(model).__name__}. "
            "Give it a keras.Input, or call it once on a batch."
        )
    if is_graph(model) and len(model.outputs) != 1:
        raise ValueError(
            "A network must have one output, its class scores. "
            f"Received: {model.name!r} with {len(model.outputs)} outputs."
        )


def find_layer(model: keras.Model, path: str) -> keras.Layer:
    """Finds a layer by name, or by path through nested models and layers.

    Raises:
        ValueError: If there is no such layer; near names are listed.
    """
    *_, layer = _along(model, path)
    return layer


def crosses_code(model: keras.Model, path: str) -> bool:
    """Whether code or a model of several outputs is on the way to a layer."""
    *parents, _ = _along(model, path)
    return not all(
        is_graph(parent) and len(parent.outputs) == 1 for parent in parents
    )


def _along(model: keras.Model, path: str) -> Iterator[keras.Layer]:
    """Yields the model, and then the layers that a path names."""
    layer = model
    yield layer
    parts = path.split("/")
    for depth, name in enumerate(parts, start=1):
        parent = layer
        found = {child.name: child for child in children(parent)}
        if name not in found:
            before = parts[: depth - 1]
            within = ["/".join([*before, child]) for child in found]
            paths = list(dict.fromkeys([*names(model), *within]))
            near = difflib.get_close_matches(path, paths, n=5, cutoff=0.4)
            raise ValueError(
                f"A sensing point must be a layer of {model.name!r}. "
                f"Received: {path!r}. Near names: {near or paths}."
            )
        layer = found[name]
        if is_graph(parent):
            calls = _symbolic_calls(parent, layer)
            through = depth < len(parts)
            if len(calls) != 1 or not through and len(calls[0]) != 1:
                raise ValueError(
                    "A sensing point must be a layer that the network calls "
                    f"once and that has one output. Received: {path!r} of "
                    f"{model.name!r}, where {name!r} is not. Choose another "
                    "layer."
                )
        yield layer


def children(layer: keras.Layer) -> list[keras.Layer]:
    """The layers directly inside of a model or layer."""
    if is_graph(layer):
        return layer.layers
    return list(layer._flatten_layers(include_self=False, recursive=False))


def leaves(layer: keras.Layer) -> list[keras.Layer]:
    """All layers inside that have no layers inside."""
    return [
        each
        for each in layer._flatten_layers(include_self=False)
        if not children(each)
    ]


def walk(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.Layer, keras.Model]]:
    """Yields path, layer and the model that calls it; looks into models."""
    for layer in children(model):
        if isinstance(layer, keras.Model) and children(layer):
            yield from walk(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer, model


def names(model: keras.Model) -> list[str]:
    """The paths of `walk`."""
    return [path for path, _, _ in walk(model)]


def graph_of(model: keras.Layer) -> keras.Layer:
    """The functional model inside of a sequential one; else the same."""
    return getattr(model, "_functional", None) or model


def symbolic_inputs(model: keras.Model) -> Any:
    """A graph's inputs in the structure that it is called with."""
    inputs = graph_of(model).input
    single = isinstance(inputs, (list, tuple)) and len(inputs) == 1
    return inputs[0] if single else inputs


def symbolic_output(
    model: keras.Model, layer: keras.Layer
) -> keras.KerasTensor | None:
    """The output of a layer that a graph calls once, if it has just one.

    Not `layer.output`, which is of the first call ever: it may belong to
    another model's graph, or to a sequential one before its last `add`.
    """
    calls = _symbolic_calls(model, layer)
    single = len(calls) == 1 and len(calls[0]) == 1
    return calls[0][0] if single else None


def _symbolic_calls(
    model: keras.Model, layer: keras.Layer
) -> list[list[keras.KerasTensor]]:
    """The outputs of each call of a layer by a graph."""
    by_depth = getattr(graph_of(model), "_nodes_by_depth", {})
    return [
        node.output_tensors
        for nodes in by_depth.values()
        for node in nodes
        if node.operation is layer
    ]


def input_specs(model: keras.Model) -> Any:
    """What a network takes, in its structure; `None` if that is not known.

    Of a subclassed one only shapes are known: it gets floats.
    """
    if is_graph(model):
        return keras.tree.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
            symbolic_inputs(model),
        )
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None
    return keras.tree.map_shape_structure(
        lambda shape: tf.TensorSpec((None, *shape[1:]), keras.config.floatx()),
        shapes,
    )


def input_shapes(model: keras.Model) -> list[tuple[int | None, ...]]:
    """The shapes that a network takes, with the batch; none if not known."""
    specs = input_specs(model)
    if specs is None:
        return []
    return [tuple(spec.shape) for spec in keras.tree.flatten(specs)]


def is_activation(layer: keras.Layer) -> bool:
    """Whether a layer does nothing but activate."""
    return isinstance(layer, _ACTIVATIONS)


def inner_activation(layer: keras.Layer) -> Callable | None:
    """The activation that a layer such as a convolution ends in, if any.

    Of others that have one, such as a recurrent layer, it is inside.
    """
    if not isinstance(layer, _ENDING_IN_ACTIVATION):
        return None
    linear = layer.activation is keras.activations.linear
    return None if linear else layer.activation


def call_linearly(
    layer: keras.Layer, call: Callable, inputs: Sequence[Any], options: dict
) -> Any:
    """Calls a layer that ends in an activation without it."""
    activation = layer.activation
    layer.activation = keras.activations.linear
    try:
        return call(*inputs, **options)
    finally:
        layer.activation = activation


class Linear(keras.Layer):
    """A layer without its activation, by the same weights."""

    def __init__(self, layer: keras.Layer):
        super().__init__(name=f"{layer.name}_linear", dtype=layer.dtype_policy)
        self._layer = layer

    def call(self, inputs):
        return call_linearly(self._layer, self._layer, [inputs], {})


def require_linear(layer: keras.Layer, path: str) -> None:
    """Raises unless a layer without activation can be a linear map.

    Of what a pooling or reshaping layer gives it can't be told what was
    before an activation.
    """
    merges = isinstance(layer, (keras.layers.Add, keras.layers.Concatenate))
    if merges or (layer.weights and not isinstance(layer, keras.Model)):
        return
    raise ValueError(
        "A method that reads maps before their activation must get sensing "
        "points that are an activation, end in one, or are linear with "
        f"weights. Received: {path!r} of type {type(layer).__name__}. Name "
        "the activation before it."
    )
