"""Reads a network's last map, and the logits of each of its positions."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd.features.head import IDLE, Origin, end_of, is_of_keras

_FORMS = ("linear", "softmax", "sigmoid")


class Head(NamedTuple):
    """Describes how a network classifies its last map.

    Attributes:
        map: The map `(batch, height, width, D)` before the pooling.
        layers: All layers from the pooling to the output, in their order.
        classifier: The one of these that has weights.
    """

    map: Any
    layers: list[keras.Operation]
    classifier: keras.Layer

    @property
    def flattens(self) -> bool:
        """Whether the map is flattened and not pooled."""
        return isinstance(self.layers[0], keras.layers.Flatten)


def read_last_map(
    outputs: Any, origin: Origin, needs: Collection[str], name: str
) -> dict[str, Any]:
    """Finds the last map, and computes the logits of its positions.

    The classifier of a network is linear. So its logits are the mean of the
    logits of all positions, where L(j, k) = W f(j, k) + b for a classifier W
    behind a global average pooling. If the map of P positions is flattened
    instead, each position has weights of its own, and L(j, k) = P W_jk f(j, k)
    + b. Dropout before the classifier is left out.

    Args:
        outputs: The network's predictions, symbolic or of a batch.
        origin: Finds how a tensor was made.
        needs: Any of `"last_map"` and `"logit_map"`; others are ignored.
        name: The network's name, for messages.

    Returns:
        The needed tensors by name: `(batch, height, width, D)`, and `(batch,
        height, width, classes)`.

    Raises:
        ValueError: If the network has several outputs, or ends otherwise.
    """
    needs = {"last_map", "logit_map"} & set(needs)
    if not needs:
        return {}
    head = require_head(outputs, origin, name)
    found = {"last_map": head.map}
    if "logit_map" in needs:
        if isinstance(head.map, keras.KerasTensor):
            found["logit_map"] = _OnPositions(head)(head.map)
        else:
            found["logit_map"] = _logits(
                head.classifier, head.flattens, head.map
            )
    return {need: found[need] for need in needs}


def require_head(outputs: Any, origin: Origin, name: str) -> Head:
    """Finds how a network classifies its last map.

    Args:
        outputs: As in `read_last_map`.
        origin: As in `read_last_map`.
        name: As in `read_last_map`.

    Raises:
        ValueError: If the network has several outputs, or ends otherwise.
    """
    tensors = keras.tree.flatten(outputs)
    head = _find(tensors[0], origin) if len(tensors) == 1 else None
    if head is None:
        raise ValueError(
            "A method that reads the last map must get networks of one "
            "output, whose classifier (Dense, or Conv2D of size 1) comes "
            "after GlobalAveragePooling2D, or after Flatten of maps of a "
            f"known size. Received: {name!r}, which does not end so. Choose "
            "another method, or end the network in these layers."
        )
    return head


def _find(tensor: Any, origin: Origin) -> Head | None:
    """Goes back from an output to its classifier and on to the last map."""
    if end_of(tensor, origin).form not in _FORMS:
        return None
    made = origin(tensor)
    layers = [made.by]
    while len(made.inputs) == 1 and not getattr(made.by, "weights", ()):
        made = made.origin(made.inputs[0])
        layers.insert(0, made.by)
    classifier = made.by
    if not _is_classifier(classifier):
        return None
    while len(made.inputs) == 1:
        made = made.origin(made.inputs[0])
        if len(made.inputs) != 1:
            return None
        layers.insert(0, made.by)
        before = made.inputs[0]
        one_position = all(size == 1 for size in before.shape[1:-1])
        found = Head(before, layers, classifier)
        if isinstance(made.by, keras.layers.GlobalAveragePooling2D):
            return found if _channels_last(made.by) else None
        if found.flattens and not one_position:
            known = len(before.shape) == 4 and None not in before.shape[1:]
            return found if known and _channels_last(made.by) else None
        reshapes = found.flattens or isinstance(made.by, keras.layers.Reshape)
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

    def __init__(self, head: Head):
        name = f"{head.classifier.name}_on_positions"
        super().__init__(name=name, autocast=False)
        self.classifier = head.classifier
        self.flattens = head.flattens

    def call(self, inputs):
        return _logits(self.classifier, self.flattens, inputs)

    def compute_output_spec(self, inputs):
        classes = self.classifier.kernel.shape[-1]
        dtype = self.classifier.compute_dtype
        return keras.KerasTensor((*inputs.shape[:-1], classes), dtype)
