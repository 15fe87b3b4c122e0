"""Finds which positions of a sequence are real and which are padding."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

_INPUT = "padding_mask"  # the name in KerasHub's networks


def mask_of(tensor: Any) -> tf.Tensor | None:
    """Gives the mask that Keras attached to a tensor, if any."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: tf.Tensor | None) -> None:
    """Attaches a mask to a tensor, as Keras does."""
    if mask is not None:
        tensor._keras_mask = mask


def input_mask(names: Sequence[str], inputs: Any) -> tf.Tensor | None:
    """Finds the input with the name `padding_mask`, if any.

    Args:
        names: Names of the inputs, in flattened order; empty if unknown.
        inputs: The inputs that a network is called with.
    """
    if isinstance(inputs, dict):
        mask = inputs.get(_INPUT)
    else:
        flat = keras.tree.flatten(inputs)
        mask = dict(zip(names, flat, strict=False)).get(_INPUT)
    return None if mask is None else tf.cast(mask, tf.bool)


def choose(
    tensors: Sequence[tf.Tensor],
    own: Iterable[tf.Tensor | None],
    network: tf.Tensor | None,
) -> list[tf.Tensor | None] | None:
    """Finds the mask of each tensor.

    The mask is the tensor's own, else the network's if the lengths are equal.
    Lengths that are known only at run time are compared at run time. If they
    differ then, every position counts as real.

    Args:
        tensors: Outputs of layers; only sequences `(batch, length, D)` have a
            mask.
        own: Each tensor's own mask, `(batch, length)` or `None`.
        network: The mask of the network's input `(batch, length)`, or `None`.

    Returns:
        A boolean `(batch, length)` or `None` for each; `None` if there is no
        mask at all.
    """
    masks = [
        _mask(tensor, mask, network)
        for tensor, mask in zip(tensors, own, strict=True)
    ]
    return None if all(mask is None for mask in masks) else masks


def _mask(tensor, own, network) -> tf.Tensor | None:
    if not tf.is_tensor(tensor) or len(tensor.shape) != 3:
        return None
    if own is not None and tensor.shape[:2].is_compatible_with(own.shape):
        return own
    if network is None or len(network.shape) != 2:
        return None
    if not tensor.shape[1:2].is_compatible_with(network.shape[1:]):
        return None
    if tensor.shape[1] is not None and network.shape[1] is not None:
        return network
    length, positions = tf.shape(tensor)[1], tf.shape(network)[1]
    # Not by `tf.cond`: XLA needs branches that give equal shapes.
    nearest = tf.minimum(tf.range(length), positions - 1)
    return tf.gather(network, nearest, axis=1) | (length != positions)
