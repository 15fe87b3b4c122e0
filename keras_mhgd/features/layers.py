"""Finds the layers of a network by path, and their inputs and outputs.

A network is a graph of layers (functional or sequential), or it is subclassed.
Only the Python code of a subclassed network knows how its layers are called.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.features.masks import mask_of, set_mask

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

# The base class of Keras's image preprocessing layers; not all are random.
_PREPROCESSING = keras.layers.RandomFlip.__base__


def is_graph(model: keras.Layer) -> bool:
    """Checks whether a model is a graph of layers, with symbolic inputs."""
    return isinstance(model, keras.Model) and bool(
        getattr(graph_of(model), "inputs", None)
    )


def require_network(model: keras.Model) -> None:
    """Raises an error unless a network is a built Keras model.

    Args:
        model: The network to check.

    Raises:
        TypeError: If it is no `keras.Model`, or is not built.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise TypeError(
            "A network must be a built keras.Model. "
            f"Received: {model!r} of type {type(model).__name__}. "
            "Give it a keras.Input, or call it once on a batch."
        )


def find_layer(model: keras.Model, path: str) -> keras.Layer:
    """Finds a layer by name, or by path through nested models and layers.

    Args:
        model: A built network.
        path: Name of the layer, or names joined by `/`, such as
            `"backbone/block3_out"`.

    Returns:
        The layer.

    Raises:
        ValueError: If there is no such layer; similar names are listed. Also
            if a graph on the path does not call its layer exactly once, or if
            the found layer has several outputs there.
    """
    *_, layer = _along(model, path)
    return layer


def crosses_code(model: keras.Model, path: str) -> bool:
    """Checks whether the path to a layer leads through code, not graphs."""
    *parents, _ = _along(model, path)
    return not all(map(is_graph, parents))


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
    """Lists the layers directly inside of a model or layer."""
    if is_graph(layer):
        return layer.layers
    return list(layer._flatten_layers(include_self=False, recursive=False))


def leaves(layer: keras.Layer) -> list[keras.Layer]:
    """Lists all inner layers that have no layers inside themselves."""
    return [
        each
        for each in layer._flatten_layers(include_self=False)
        if not children(each)
    ]


def walk(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.Layer, keras.Model]]:
    """Yields path, layer and calling model; enters nested models."""
    for layer in children(model):
        if isinstance(layer, keras.Model) and children(layer):
            yield from walk(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer, model


def names(model: keras.Model) -> list[str]:
    """Lists the paths that `walk` yields."""
    return [path for path, _, _ in walk(model)]


def graph_of(model: keras.Layer) -> keras.Layer:
    """Gives the functional model inside of a sequential one, else `model`."""
    return getattr(model, "_functional", None) or model


def symbolic_inputs(model: keras.Model) -> Any:
    """Gives a graph's inputs in the structure that it is called with."""
    inputs = graph_of(model).input
    single = isinstance(inputs, (list, tuple)) and len(inputs) == 1
    return inputs[0] if single else inputs


def symbolic_outputs(model: keras.Model) -> Any:
    """Gives a graph's outputs in the structure that a call returns."""
    outputs = graph_of(model).output
    single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
    return outputs[0] if single else outputs


def symbolic_output(
    model: keras.Model, layer: keras.Layer
) -> keras.KerasTensor | None:
    """Finds the output of a layer that a graph calls once, if it has just one.

    `layer.output` is not used, because it is the output of the layer's first
    call of all. That call may belong to another model's graph, or to a
    sequential model before its last `add`.
    """
    calls = _symbolic_calls(model, layer)
    single = len(calls) == 1 and len(calls[0]) == 1
    return calls[0][0] if single else None


def _symbolic_calls(
    model: keras.Model, layer: keras.Layer
) -> list[list[keras.KerasTensor]]:
    """Lists the outputs of each call of a layer by a graph."""
    by_depth = getattr(graph_of(model), "_nodes_by_depth", {})
    return [
        node.output_tensors
        for nodes in by_depth.values()
        for node in nodes
        if node.operation is layer
    ]


def input_specs(model: keras.Model) -> Any:
    """Gives the specs of a network's inputs, in their structure.

    Only the shapes of a subclassed network's inputs are known, and the dtype
    is assumed to be Keras's default float.

    Args:
        model: A built network.

    Returns:
        A `tf.TensorSpec` of each input, with the batch axis; `None` if no
        shape is known.
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
    """Lists the shapes of a network's inputs.

    Args:
        model: A built network.

    Returns:
        The shape of each input, with the batch axis, in flattened order. Empty
        if no shape is known.
    """
    specs = input_specs(model)
    if specs is None:
        return []
    return [tuple(spec.shape) for spec in keras.tree.flatten(specs)]


def with_input_shapes(
    network: keras.Model, shapes: Sequence[tuple[int | None, ...]]
) -> keras.Model:
    """Makes a graph of the same layers for inputs of known sizes.

    The new graph has the network's own layers, weights and paths. The sizes of
    its maps follow from the given sizes, in nested graphs too.

    Args:
        network: A built network. One that is no graph is returned unchanged.
        shapes: Shape of each input, with the batch axis, in flattened order.

    Returns:
        A functional model, or the network itself if it has these shapes.

    Raises:
        ValueError: If `shapes` do not fit the network's inputs.

    Example:
        >>> inputs = keras.Input((None, None, 3))
        >>> outputs = keras.layers.Conv2D(8, 3, strides=2, name="c")(inputs)
        >>> network = keras.Model(inputs, outputs)
        >>> sized = with_input_shapes(network, [(None, 33, 33, 3)])
        >>> sized.output_shape
        (None, 16, 16, 8)
    """
    if not is_graph(network):
        return network
    inputs = graph_of(network).inputs
    own = [tuple(each.shape) for each in inputs]
    fits = len(own) == len(shapes) and all(
        tf.TensorShape(mine[1:]).is_compatible_with(shape[1:])
        for mine, shape in zip(own, shapes, strict=True)
    )
    if not fits:
        raise ValueError(
            "The shapes of inputs must fit the network's own. Received: "
            f"{list(shapes)} for {network.name!r}, which takes {own}."
        )
    if own == [tuple(shape) for shape in shapes]:
        return network
    return _sized(
        network,
        [
            keras.Input(batch_shape=shape, dtype=each.dtype, name=each.name)
            for each, shape in zip(inputs, shapes, strict=True)
        ],
    )


def _sized(
    model: keras.Model, inputs: Sequence[keras.KerasTensor]
) -> keras.Model:
    def call(layer, *args, **kwargs):
        if is_graph(layer) and len(_symbolic_calls(model, layer)) == 1:
            layer = _sized(
                layer,
                [
                    keras.Input(batch_shape=each.shape, dtype=each.dtype)
                    for each in keras.tree.flatten(args)
                ],
            )
        return layer(*args, **kwargs)

    structure = symbolic_inputs(model)
    return keras.models.clone_model(
        keras.Model(structure, symbolic_outputs(model), name=model.name),
        input_tensors=keras.tree.pack_sequence_as(structure, list(inputs)),
        clone_function=lambda layer: layer,
        call_function=call,
    )


def random_layers(network: keras.Model) -> list[str]:
    """Finds the layers that augment their input at random.

    Dropout and noise layers are not listed, because they regularise.

    Args:
        network: A network.

    Returns:
        The layers' paths.

    Example:
        >>> flip = keras.layers.RandomFlip(name="flip")
        >>> network = keras.Sequential([keras.Input((8, 8, 3)), flip])
        >>> random_layers(network)
        ['flip']
    """
    return list(_random_layers(network, ""))


def _random_layers(parent: keras.Layer, prefix: str) -> Iterator[str]:
    for layer in children(parent):
        if augments(layer):
            yield prefix + layer.name
        else:
            yield from _random_layers(layer, f"{prefix}{layer.name}/")


def augments(layer: keras.Layer) -> bool:
    """Checks whether a layer is a Keras layer that changes images randomly."""
    kinds = type(layer).__mro__
    named = any("ImageAugmentationLayer" in kind.__name__ for kind in kinds)
    draws = any(
        isinstance(value, keras.random.SeedGenerator)
        for value in vars(layer).values()
    )
    return named or draws and isinstance(layer, _PREPROCESSING)


def is_activation(layer: keras.Layer) -> bool:
    """Checks whether a layer does nothing but apply an activation."""
    return isinstance(layer, _ACTIVATIONS)


def inner_activation(layer: keras.Layer) -> Callable | None:
    """Finds the activation that a layer such as a convolution ends in.

    `None` if the layer has no activation, or applies its activation further
    inside, as recurrent layers do.
    """
    if not isinstance(layer, _ENDING_IN_ACTIVATION):
        return None
    linear = layer.activation is keras.activations.linear
    return None if linear else layer.activation


def call_in_two(
    layer: keras.Layer, call: Callable, inputs: Sequence[Any], options: dict
) -> tuple[Any, Any]:
    """Calls a layer, and gives its activation's input and its own output.

    A wrapper around the activation records the input. So the layer's own call
    runs unchanged: also with integer weights, with low-rank weights or with a
    regularised output.
    """
    activation, got = layer.activation, []

    def recorded(x):
        got.append(x)
        return activation(x)

    layer.activation = recorded
    try:
        result = call(*inputs, **options)
    finally:
        layer.activation = activation
    return got[0], result


class InTwo(keras.Layer):
    """Applies `call_in_two` in a graph, with the layer's own weights."""

    def __init__(self, layer: keras.Layer):
        super().__init__(name=f"{layer.name}_in_two", autocast=False)
        self.layer = layer
        self.supports_masking = True

    def call(self, inputs):
        before, result = call_in_two(self.layer, self.layer, [inputs], {})
        set_mask(before, mask_of(result))
        return before, result

    def compute_output_spec(self, inputs):
        spec = self.layer.compute_output_spec(inputs)
        return spec, keras.KerasTensor(spec.shape, spec.dtype)

    def compute_mask(self, inputs, previous_mask):
        return None  # the results have masks already


Split = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Point(keras.Layer):
    """Reads the output of a layer in a graph.

    Gives the tensor that the network continues with, the fork and the mask.

    Args:
        name: Name of the layer whose output is read.
        split: See `FeatureExtractor`. If `None`, the fork is the output.
    """

    def __init__(self, name: str, split: Split | None):
        super().__init__(name=f"{name}_point", autocast=False)
        self._split = split
        self.supports_masking = True

    def call(self, inputs):
        # Read here, since a later attention layer removes its input's mask.
        mask = mask_of(inputs)
        if self._split is None:
            return inputs, inputs, mask
        result, fork = self._split(inputs)
        set_mask(result, mask)
        return result, fork, mask

    def compute_output_spec(self, inputs):
        result, fork, _ = super().compute_output_spec(inputs)
        return result, fork, keras.KerasTensor(inputs.shape[:-1], "bool")

    def compute_mask(self, inputs, previous_mask):
        return None  # the result has a mask already


def require_linear(layer: keras.Layer, path: str) -> None:
    """Raises an error unless a layer without activation can be a linear map.

    After pooling or reshaping, the value before the activation is unknown.
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
