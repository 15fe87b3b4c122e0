"""Separates a network from random augmentation at its start."""

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
    """Holds the two parts of a network.

    Attributes:
        augment: The augmentation at the network's start. It is random when
            called with `training=True`. `None` if the network has none.
        network: The rest of the network, with unchanged layers and paths.
    """

    augment: keras.Model | None
    network: keras.Model


def split_augmentation(network: keras.Model) -> Augmented:
    """Separates a network from the random augmentation at its start.

    The augmented batch can then be passed to another network as well.

    Args:
        network: A built network.

    Returns:
        The two parts, which share all layers with the network.

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
    """Finds the last tensor of the augmentation that starts at a tensor."""
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
