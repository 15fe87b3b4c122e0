"""Lists the steps that a network computes, and how they are joined."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.features import code_reader
from keras_mhgd.features.layers import children, graph_of, is_graph, walk


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Describes one call of a layer or operation.

    Tensors of different steps must be compared by identity.
    """

    path: str | None  # None for an operation or a layer of several calls
    layer: keras.Operation
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    is_point: bool  # whether it can be a sensing point

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the first output, with the batch axis."""
        return tuple(self.outputs[0].shape)


def outline(model: keras.Model) -> list[Step]:
    """Lists the steps of a network, in an order in which they can run.

    The steps inside of nested models are listed. The steps of a graph include
    operations that are no layers. If a part of the network is subclassed, the
    steps are calls of layers only, and operations between layers are missing.

    Args:
        model: A built network.

    Returns:
        The steps, front end first.
    """
    walked = list(walk(model))
    if all(is_graph(parent) for _, _, parent in walked):
        return list(_of_graph(model, "", {}))
    return of_code(model, {path: layer for path, layer, _ in walked})


def inside(layer: keras.Layer, path: str) -> dict[str, keras.Layer]:
    """Finds a layer's inner layers by path; of equal paths, the last."""
    found = {}
    for child in children(layer):
        found[f"{path}/{child.name}"] = child
        found |= inside(child, f"{path}/{child.name}")
    return found


def of_code(
    model: keras.Model, layers: Mapping[str, keras.Layer]
) -> list[Step]:
    """Lists calls of a network's layers, in the order in which they end."""
    calls = code_reader.calls(model, layers.values())
    times = collections.Counter(id(layer) for layer, _, _ in calls)
    paths = {
        id(layer): path
        for path, layer in layers.items()
        if times[id(layer)] == 1
    }
    steps = []
    for layer, inputs, result in calls:
        outputs = _tensors(result)
        if outputs:
            path = paths.get(id(layer))
            is_point = path is not None and tf.is_tensor(result)
            steps.append(Step(path, layer, _tensors(inputs), outputs, is_point))
    return steps


def _tensors(structure: Any) -> tuple[tf.Tensor, ...]:
    return tuple(filter(tf.is_tensor, keras.tree.flatten(structure)))


def _of_graph(
    model: keras.Model, prefix: str, known: dict[int, Any]
) -> Iterator[Step]:
    """Yields the steps of a graph.

    Args:
        model: The graph.
        prefix: Prefix of the layers' paths.
        known: Replacements of tensors, by the identity of the tensor that is
            replaced. A nested graph's inputs and outputs have twins in the
            outer graph, and only one tensor of such a pair appears in steps.
            The outputs of nested graphs are added to this dict.
    """

    def outer(tensors):
        return tuple(known.get(id(each), each) for each in tensors)

    by_depth = graph_of(model)._nodes_by_depth
    nodes = [
        node for depth in sorted(by_depth)[::-1] for node in by_depth[depth]
    ]
    times = collections.Counter(id(node.operation) for node in nodes)
    for node in nodes:
        layer, inputs = node.operation, outer(node.input_tensors)
        once = times[id(layer)] == 1
        if once and is_graph(layer):
            inner = graph_of(layer)
            twins = dict(zip(map(id, inner.inputs), inputs, strict=True))
            yield from _of_graph(layer, f"{prefix}{layer.name}/", twins)
            for twin, tensor in zip(
                node.output_tensors, inner.outputs, strict=True
            ):
                known[id(twin)] = twins.get(id(tensor), tensor)
        elif inputs:  # a node without inputs is an input of the graph
            outputs = tuple(node.output_tensors)
            named = once and isinstance(layer, keras.Layer)
            yield Step(
                prefix + layer.name if named else None,
                layer,
                inputs,
                outputs,
                named and len(outputs) == 1,
            )
