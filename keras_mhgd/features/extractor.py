"""Predictions and features of a network in one forward pass."""

import copy
from collections.abc import Collection, Sequence

import keras
import tensorflow as tf

from keras_mhgd.features import symbolic
from keras_mhgd.features.batch import Features
from keras_mhgd.features.head import squashes
from keras_mhgd.features.layers import (
    crosses_code,
    find_layer,
    inner_activation,
    is_graph,
    require_network,
)
from keras_mhgd.features.symbolic import Split
from keras_mhgd.features.tap import Tap


class FeatureExtractor:
    """Runs a network once for its predictions and its sensing points.

    Shares the network's layers: it has no weights of its own, and is no
    Keras object, so that a model that holds one saves nothing twice.

    Args:
        network: A built `keras.Model` with one output. Of a subclassed one
            the layers are watched while its code runs.
        points: Layers by name, or by path inside nested models and layers,
            such as `"backbone/block3_out"`.
        needs: Any of `"logits"`, `"embedding"` and
            `"maps_before_activation"`: see `Features`.
        others: Layers like `points` for `Features.layers`.
        require_finite: Whether a feature that is NaN or infinite raises
            `tf.errors.InvalidArgumentError`, naming its layer. Meant for
            frozen networks, whose features nothing in training can mend.
        split: Gives a sensing point's output twice: what the network goes on
            with, and what `Features.forks` holds.
        logits: Those of `points` that are to be logits: of a layer that ends in
            a softmax or sigmoid, what that gets.

    Raises:
        TypeError: If `network` is no built Keras model.
        ValueError: If it has several outputs, if there is no such layer, or
            if what is needed can't be told.
    """

    def __init__(
        self,
        network: keras.Model,
        points: Sequence[str],
        needs: Collection[str] = (),
        others: Sequence[str] = (),
        require_finite: bool = False,
        split: Split | None = None,
        logits: Collection[str] = (),
    ):
        require_network(network)
        self.network = network
        self.points = list(points)
        self.require_finite = require_finite
        by_code = not is_graph(network) or any(
            crosses_code(network, path) for path in (*points, *others)
        )
        if not by_code and {"logits", "embedding"} & set(needs):
            by_code = symbolic.ends_in_layers(network)
        activations = {}
        for path in logits:
            layer = find_layer(network, path)
            if inner_activation(layer) and squashes(layer):
                activations[path] = keras.layers.Activation(
                    layer.activation, dtype=layer.dtype_policy
                )
        others = list(others)
        arguments = network, self.points, others, needs, split, activations
        if by_code:
            self._run = Tap(*arguments)
            shapes = self._run.shapes
        else:
            self._run = symbolic.extractor(*arguments)
            shapes = keras.tree.map_structure(
                lambda tensor: tuple(tensor.shape), self._run.output
            )
        self.shapes = Features(**shapes)

    def __call__(self, inputs, training: bool = False) -> Features:
        found = Features(**self._run(inputs, training=training))
        return self._finite(found) if self.require_finite else found

    def unchecked(self) -> "FeatureExtractor":
        """Makes the same extractor without `require_finite`."""
        made = copy.copy(self)
        made.require_finite = False
        return made

    def _finite(self, found: Features) -> Features:
        checked = {
            name: self._check(getattr(found, name), f"its {name}")
            for name in ("logits", "embedding")
            if getattr(found, name) is not None
        }
        for name in ("maps", "maps_before_activation"):
            if getattr(found, name) is not None:
                checked[name] = [
                    self._check(tensor, f"layer {point!r}")
                    for point, tensor in zip(
                        self.points, getattr(found, name), strict=True
                    )
                ]
        if found.layers is not None:
            checked["layers"] = {
                path: self._check(tensor, f"layer {path!r}")
                for path, tensor in found.layers.items()
            }
        return found._replace(**checked)

    def _check(self, tensor: tf.Tensor, where: str) -> tf.Tensor:
        return tf.debugging.check_numerics(
            tensor,
            f"The features of {self.network.name!r} must be finite. "
            f"Received NaN or infinity at {where}. Check the network's "
            "weights and the input",
        )
