"""Logits and embedding of a network, whatever it ends in."""

from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.features.layers import Linear, is_activation

Origin = tuple[keras.Operation | None, Any]

_SQUASHING = (
    keras.activations.softmax,
    keras.activations.sigmoid,
    keras.ops.softmax,
    keras.ops.sigmoid,
    tf.nn.softmax,
    tf.nn.sigmoid,
)

_RESHAPING = (keras.layers.Flatten, keras.layers.Reshape)


def squashes(layer: keras.Operation | None) -> bool:
    """Whether a layer is, or ends in, a softmax or sigmoid function."""
    return getattr(layer, "activation", None) in _SQUASHING


def head_of(
    outputs: Any,
    origin: Callable[[Any], Origin],
    needs: Collection[str],
    name: str,
) -> dict[str, Any]:
    """Finds logits and embedding from the outputs backwards.

    Args:
        outputs: The network's predictions, symbolic or of a batch.
        origin: Gives the layer or operation that made a tensor, and its input
            if it has just one; `None` for what there isn't.
        needs: Any of `"logits"` and `"embedding"`; others are ignored.
        name: The network's, for messages.

    Returns:
        Those of the two that are needed, by name.

    Raises:
        ValueError: If one of them can't be told.
    """
    found = {}
    if "logits" not in needs and "embedding" not in needs:
        return found
    layer, inputs = origin(outputs)
    if "logits" in needs:
        found["logits"] = _before_activation(layer, inputs, outputs, name)
        if found["logits"] is outputs:
            _require_no_activation(layer, inputs, origin)
    if "embedding" in needs:
        while inputs is not None and not getattr(layer, "weights", ()):
            layer, inputs = origin(inputs)
        if inputs is None or any(size != 1 for size in inputs.shape[1:-1]):
            raise ValueError(
                "A method that reads the embedding must get networks whose "
                "classifier, the last layer with weights, gets vectors "
                f"(batch, D). Received: {name!r}, where that can't be told. "
                "Choose another method, or end the network in a Dense layer."
            )
        if len(inputs.shape) > 2:  # maps of one position
            inputs = keras.ops.reshape(inputs, (-1, inputs.shape[-1]))
        found["embedding"] = inputs
    return found


def _before_activation(
    layer: keras.Operation | None, inputs: Any, outputs: Any, name: str
) -> Any:
    """What the last layer's softmax or sigmoid gets; else its output."""
    if not isinstance(layer, keras.Layer):
        raise ValueError(
            "A method that reads logits must get networks that end in a "
            f"layer. Received: {name!r}, which ends in other operations: "
            "whether they give logits can't be told. End the network in a "
            "Dense, Softmax or Activation layer."
        )
    if isinstance(layer, keras.layers.Softmax):
        return inputs
    if not squashes(layer):
        return outputs
    if is_activation(layer):
        return inputs
    if isinstance(layer, keras.layers.Dense):
        return Linear(layer)(inputs)
    raise _not_last(layer)


def _require_no_activation(
    layer: keras.Operation | None,
    inputs: Any,
    origin: Callable[[Any], Origin],
) -> None:
    """Raises if what only reshapes hides a softmax or sigmoid."""
    while isinstance(layer, _RESHAPING):
        layer, inputs = origin(inputs)
        if squashes(layer) or isinstance(layer, keras.layers.Softmax):
            raise _not_last(layer)


def _not_last(layer: keras.Layer) -> ValueError:
    return ValueError(
        "A method that reads logits must get networks that end in logits, a "
        "Dense layer, or a softmax or sigmoid of its own. Received: a softmax "
        f"or sigmoid in the layer {layer.name!r} of type "
        f"{type(layer).__name__}. Move it to a layer of its own at the end."
    )
