"""Random augmentation that is a part of a network."""

from typing import NamedTuple

import keras

from keras_mhgd.features.layers import (
    augments,
    children,
    graph_of,
    is_graph,
    leaves,
    symbolic_inputs,
)


class Augmented(NamedTuple):
    """A network in two.

    Attributes:
        augment: The augmentation that it starts with, which is random when
            called with `training=True`; `None` if there is none.
        network: What comes behind that: the same layers, under the same
            paths.
    """

    augment: keras.Model | None
    network: keras.Model


def split_augmentation(network: keras.Model) -> Augmented:
    """Parts a network from the random augmentation that it starts with.

    So what is augmented can be shown to another network as well.

    Args:
        network: A built network.

    Returns:
        Its parts, which share all layers with it.

    Example:
        >>> augmented = keras.Sequential(
        ...     [
        ...         keras.Input((28, 28, 1)),
        ...         keras.layers.RandomFlip(),
        ...         student,
        ...     ]
        ... )
        >>> parts = keras_mhgd.features.split_augmentation(augmented)
        >>> view = parts.augment(images, training=True)
        >>> predictions = parts.network(view), teacher(view)
    """
    augment = None
    inputs = symbolic_inputs(network) if is_graph(network) else None
    if isinstance(inputs, keras.KerasTensor):
        end = _end(network, inputs)
        if end is not inputs:
            augment = keras.Model(inputs, end)
            network = keras.Model(end, network.outputs[0], name=network.name)
    return Augmented(augment, network)


def _end(network: keras.Model, tensor: keras.KerasTensor) -> keras.KerasTensor:
    """The last tensor of the augmentation that starts with another."""
    nodes = [
        node
        for nodes in graph_of(network)._nodes_by_depth.values()
        for node in nodes
    ]
    while True:
        following = [
            node
            for node in nodes
            if any(each is tensor for each in node.input_tensors)
        ]
        if len(following) != 1 or not _only_augments(following[0].operation):
            return tensor
        tensor = following[0].output_tensors[0]


def _only_augments(layer: keras.Operation) -> bool:
    if isinstance(layer, keras.Model) and children(layer):
        return all(
            augments(each) or isinstance(each, keras.layers.InputLayer)
            for each in leaves(layer)
        )
    return augments(layer)
