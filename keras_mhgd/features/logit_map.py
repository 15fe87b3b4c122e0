"""Reads the logits of each position of a network's last map."""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd.features.head import IDLE, Origin, end_of, is_of_keras

_FORMS = ("linear", "softmax", "sigmoid")


class _Head(NamedTuple):
    """Describes how a network classifies its last map.

    Attributes:
        classifier: The last layer with weights.
        map: The map `(batch, height, width, D)` before the pooling.
        flattens: Whether the map is flattened and not pooled.
    """

    classifier: keras.Layer
    map: Any
    flattens: bool


def read_logit_map(outputs: Any, origin: Origin, name: str) -> Any:
    """Computes the logits of each position of the last map.

    The classifier of a network is linear. So its logits are the mean of the
    logits of all positions, where L(j, k) = W f(j, k) + b for a classifier W
    behind a global average pooling. If the map of P positions is flattened
    instead, each position has weights of its own, and L(j, k) = P W_jk f(j, k)
    + b. Dropout before the classifier is left out.

    Args:
        outputs: The network's predictions, symbolic or of a batch.
        origin: Finds how a tensor was made.
        name: The network's name, for messages.

    Returns:
        `(batch, height, width, classes)`, symbolic or of the batch.

    Raises:
        ValueError: If the network has several outputs, or ends otherwise.
    """
    tensors = keras.tree.flatten(outputs)
    head = _find(tensors[0], origin) if len(tensors) == 1 else None
    if head is None:
        raise ValueError(
            "A method that reads the logit map must get networks of one "
            "output, whose classifier (Dense, or Conv2D of size 1) comes "
            "after GlobalAveragePooling2D, or after Flatten of maps of a "
            f"known size. Received: {name!r}, which does not end so. Choose "
            "another method, or end the network in these layers."
        )
    if isinstance(head.map, keras.KerasTensor):
        return _OnPositions(head.classifier, head.flattens)(head.map)
    return _logits(head.classifier, head.flattens, head.map)


def _find(tensor: Any, origin: Origin) -> _Head | None:
    """Goes back from an output to its classifier and on to the last map."""
    if end_of(tensor, origin).form not in _FORMS:
        return None
    made = origin(tensor)
    while len(made.inputs) == 1 and not getattr(made.by, "weights", ()):
        made = made.origin(made.inputs[0])
    classifier = made.by
    if not _is_classifier(classifier):
        return None
    while len(made.inputs) == 1:
        made = made.origin(made.inputs[0])
        if len(made.inputs) != 1:
            return None
        before = made.inputs[0]
        one_position = all(size == 1 for size in before.shape[1:-1])
        if isinstance(made.by, keras.layers.GlobalAveragePooling2D):
            found = _Head(classifier, before, flattens=False)
            return found if _channels_last(made.by) else None
        if isinstance(made.by, keras.layers.Flatten) and not one_position:
            known = len(before.shape) == 4 and None not in before.shape[1:]
            found = _Head(classifier, before, flattens=True)
            return found if known and _channels_last(made.by) else None
        reshapes = isinstance(
            made.by, (keras.layers.Flatten, keras.layers.Reshape)
        )
        if not (isinstance(made.by, IDLE) or (reshapes and one_position)):
            return None
    return None


def _is_classifier(layer: keras.Operation | None) -> bool:
    if not is_of_keras(layer) or getattr(layer, "quantization_mode", None):
        return False
    if isinstance(layer, keras.layers.Conv2D):
        size_1 = layer.kernel_size == (1, 1) and layer.strides == (1, 1)
        return size_1 and layer.groups == 1 and _channels_last(layer)
    return isinstance(layer, keras.layers.Dense)


def _channels_last(layer: keras.Layer) -> bool:
    return layer.data_format == "channels_last"


def _logits(layer: keras.Layer, flattens: bool, maps: tf.Tensor) -> tf.Tensor:
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel), layer.compute_dtype)
    maps = tf.cast(maps, layer.compute_dtype)
    channels, classes = maps.shape[-1], kernel.shape[-1]
    if flattens:
        sizes = maps.shape[1:-1]
        kernel = tf.reshape(kernel, (*sizes, channels, classes))
        logits = tf.einsum("bhwd,hwdc->bhwc", maps, kernel) * math.prod(sizes)
    else:
        kernel = tf.reshape(kernel, (channels, classes))
        logits = tf.tensordot(maps, kernel, 1)
    if layer.bias is None:
        return logits
    return logits + tf.cast(tf.convert_to_tensor(layer.bias), logits.dtype)


class _OnPositions(keras.Layer):
    """Applies a classifier to each position of a map, with its own weights.

    The classifier itself is not called a second time. So its record of calls,
    which sensing points are found by, stays as it is.
    """

    def __init__(self, classifier: keras.Layer, flattens: bool):
        name = f"{classifier.name}_on_positions"
        super().__init__(name=name, autocast=False)
        self.classifier = classifier
        self.flattens = flattens

    def call(self, inputs):
        return _logits(self.classifier, self.flattens, inputs)

    def compute_output_spec(self, inputs):
        classes = self.classifier.kernel.shape[-1]
        dtype = self.classifier.compute_dtype
        return keras.KerasTensor((*inputs.shape[:-1], classes), dtype)
