"""Prepares a network for export: inference mode, float32, named outputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.features import input_specs
from keras_mhgd.features.layers import graph_of, is_graph, symbolic_inputs

Sources = Mapping[str, tuple[tuple[int | None, ...], str]]
"""Shape without the batch axis, and dtype, by input name."""

_INPUT_DTYPES = ("float32", "int32", "int64")


def in_inference_mode(model: keras.Model) -> keras.Model:
    """Wraps a network in a graph that is always in inference mode.

    Keras 3.15 exports `model.__call__` without `training`. A layer whose
    `call` has `training=True` by default would then run in training mode:
    all random preprocessing layers would augment. The graph stores
    `training=False` with the call of the network, and passes it to all layers
    inside.

    Args:
        model: Built network with any inputs and outputs.

    Returns:
        A model of the same name, inputs, outputs and variables.

    Raises:
        ValueError: If the network's inputs are not known, or if layers draw
            random numbers or change their variables at inference.
    """
    graph = _as_graph(model)
    if graph is None:
        raise ValueError(
            "A network must be built to be exported, so that its inputs are "
            f"known. Received: {model.name!r}, which is not. Call it on a "
            "batch first."
        )
    inputs = symbolic_inputs(graph)
    outputs = graph(inputs, training=False)
    wrapped = keras.Model(inputs, outputs, name=model.name)
    _require_fixed(wrapped)
    return wrapped


def _as_graph(model: keras.Model) -> keras.Model | None:
    """Wraps a subclassed model in a graph, if its inputs are known."""
    if is_graph(model):
        return model
    specs = input_specs(model) if model.built else None
    if specs is None:
        return None
    found = [
        keras.Input(
            spec.shape[1:],
            dtype=spec.dtype.name,
            # Keras requires that inputs in a dict are named by its keys.
            name=path[-1] if path and isinstance(path[-1], str) else None,
        )
        for path, spec in keras.tree.flatten_with_path(specs)
    ]
    inputs = keras.tree.pack_sequence_as(specs, found)
    return keras.Model(inputs, model(inputs), name=model.name)


def _require_fixed(model: keras.Model) -> None:
    """Raises a ValueError if inference is random or changes a variable.

    A random draw of Keras changes a variable, too: the state of its seed.
    """
    specs = keras.tree.map_structure(
        lambda source: tf.TensorSpec(source.shape, source.dtype),
        symbolic_inputs(model),
    )
    with keras.StatelessScope() as scope:  # collects assignments to variables
        traced = tf.function(
            lambda inputs: model(inputs), autograph=False
        ).get_concrete_function(specs)
    changed = [
        layer
        for layer in model._flatten_layers()
        if any(id(each) in scope.state_mapping for each in layer.variables)
    ]
    names = [
        layer.name
        for layer in changed
        if not any(each in changed for each in _inside(layer))
    ]
    names += _random_operations(traced.graph.as_graph_def())
    if names or scope.state_mapping:
        raise ValueError(
            "A network must give the same answers at every call to be "
            "exported. Received: layers that draw random numbers or change "
            f"their variables at inference too, {names or [model.name]} of "
            f"{model.name!r}. Let their `call` take `training` and do so "
            "where it is true alone, don't call them with `training=True`, or "
            "leave them out."
        )


def _random_operations(graph: tf.compat.v1.GraphDef) -> list[str]:
    """Names the operations that draw from TensorFlow's own generators."""
    functions = [each.node_def for each in graph.library.function]
    return [
        node.name
        for nodes in (graph.node, *functions)
        for node in nodes
        if "seed2" in node.attr or node.op == "RngReadAndSkip"
    ]


def _inside(layer: keras.Layer) -> Iterator[keras.Layer]:
    return layer._flatten_layers(include_self=False)


def checked_model(model: keras.Model) -> keras.Model:
    """Checks that a model can be exported and returns it as a graph."""
    if hasattr(model, "student") or not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a plain `keras.Model`. Received: "
            f"model={model!r} of type {type(model).__name__}. Of a distiller, "
            "pass `distiller.student`."
        )
    graph = _as_graph(model)
    inputs = [] if graph is None else list(named_inputs(graph).values())
    outputs = [] if graph is None else list(named_outputs(graph).values())
    fits = [
        isinstance(tensor, keras.KerasTensor)
        and tensor.dtype in _INPUT_DTYPES
        and tensor.shape[0] is None
        for tensor in inputs
    ]
    fits += [isinstance(tensor, keras.KerasTensor) for tensor in outputs]
    if not outputs or not all(fits):
        raise ValueError(
            "`model` must be a built model, its inputs floats or integers of "
            "any batch size, its inputs and its outputs each a tensor, a list "
            "or a dict of tensors. Received: "
            f"model={model!r} with inputs={inputs} and outputs={outputs}. "
            "Build it around `keras.Input(shape)`."
        )
    return graph


def with_named_outputs(model: keras.Model) -> keras.Model:
    """Returns the graph with a dict of outputs instead of a list."""
    outputs = _symbolic_outputs(model)
    if not isinstance(outputs, list | tuple):
        return model
    named = named_outputs(model)
    return keras.Model(symbolic_inputs(model), named, name=model.name)


def named_inputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Gives the inputs of a graph by name.

    The names are the keys of a dict, `input_0` and so on for a list, or
    `images` for a single tensor.
    """
    return named(symbolic_inputs(model), "images", "input")


def named_outputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Gives the outputs of a graph by key, or by `output_0` and so on."""
    return named(_symbolic_outputs(model), "output_0", "output")


def _symbolic_outputs(model: keras.Model) -> Any:
    outputs = graph_of(model).output
    single = isinstance(outputs, list | tuple) and len(outputs) == 1
    return outputs[0] if single else outputs


def named(structure: Any, single: str, prefix: str) -> dict[str, Any]:
    """Names the inputs or the outputs of a network.

    Args:
        structure: A tensor, or a list or dict of tensors.
        single: Name for a tensor that is in no list or dict.
        prefix: Prefix of the names `<prefix>_0` and so on for a list.

    Returns:
        Tensors by name, in order.
    """
    if isinstance(structure, Mapping):
        return dict(structure)
    if isinstance(structure, list | tuple):
        return {f"{prefix}_{i}": each for i, each in enumerate(structure)}
    return {single: structure}


def in_structure(model: keras.Model, inputs: Mapping[str, Any]) -> Any:
    """Packs named inputs into the structure that a graph is called with."""
    structure = symbolic_inputs(model)
    if isinstance(structure, Mapping):
        return dict(inputs)
    each = [inputs[name] for name in named_inputs(model)]
    return each if isinstance(structure, list | tuple) else each[0]


def sources(model: keras.Model) -> Sources:
    """Gives the shape and dtype of each input of a graph, by name."""
    return {
        name: (tuple(source.shape[1:]), source.dtype)
        for name, source in named_inputs(model).items()
    }


def checked_inputs(
    name: str, given: Any, expected: Sources
) -> dict[str, np.ndarray]:
    """Returns arrays by name, each of the expected shape and dtype.

    Args:
        name: Name of the argument in messages.
        given: An array for one input, or a dict or a list of arrays.
        expected: Shape and dtype of each input of the network, by name.
            `None` in a shape fits any size.

    Returns:
        The arrays, in the order of `expected`.

    Raises:
        ValueError: If the names or shapes are not the expected ones, or the
            inputs have different numbers of samples.
    """
    bare = not isinstance(given, Mapping | list | tuple)
    if len(expected) == 1 and not isinstance(given, Mapping):
        given, bare = dict.fromkeys(expected, given), True
    arrays = named(given, "images", "input")
    if set(arrays) != set(expected):
        raise ValueError(
            f"`{name}` must hold an array for each input of the network, "
            f"{sorted(expected)}. Received: {sorted(arrays)}. Pass a dict of "
            "arrays by these names."
        )
    arrays = {
        key: _checked_array(
            name if bare else f"{name}[{key!r}]", arrays[key], *expected[key]
        )
        for key in expected
    }
    counts = {key: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"`{name}` must hold as many samples for one input as for the "
            f"others. Received: {counts}. Pass arrays of one length."
        )
    return arrays


def _checked_array(
    name: str, array: np.ndarray, shape: Sequence[int | None], dtype: str
) -> np.ndarray:
    array = np.asarray(array, dtype)
    fits = tf.TensorShape((None, *shape)).is_compatible_with(array.shape)
    if not fits or len(array) == 0:
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(
            f"`{name}` must have the shape ({expected}) with N >= 1. "
            f"Received: {name}.shape={array.shape}. Pass at least one "
            "image, prepared as for training."
        )
    return array


def in_float32(model: keras.Model) -> keras.Model:
    """Rebuilds the model in float32 if a layer has another dtype policy."""
    config = model.get_config()
    policies = [p for p in _dtype_policies(config) if p["name"] != "float32"]
    if not policies:
        return model
    for policy in policies:
        policy["name"] = "float32"
    # Layers that create sublayers give these the global policy.
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
