"""Reads predictions and features of a network in one forward pass."""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.features import graph_reader, masks
from keras_mhgd.features.code_reader import Tap
from keras_mhgd.features.features import Features
from keras_mhgd.features.head import end_of, graph_origin, squashes
from keras_mhgd.features.layers import (
    Split,
    crosses_code,
    find_layer,
    graph_of,
    inner_activation,
    is_graph,
    require_network,
    symbolic_outputs,
    with_input_shapes,
)
from keras_mhgd.features.reading import wanted


class FeatureExtractor:
    """Runs a network once, and reads its predictions and sensing points.

    An extractor shares the network's layers and has no weights of its own. It
    is no Keras object, so a model that holds an extractor saves no layer
    twice.

    Args:
        network: A built `keras.Model`. If it is subclassed, its layers are
            watched while its code runs.
        points: Sensing points: layers by name, or by path inside nested
            models and layers, such as `"backbone/block3_out"`.
        needs: Any of `"logits"`, `"embedding"`, `"last_map"`, `"logit_map"`
            and `"maps_before_activation"`: see `Features`.
        others: Layers whose outputs `Features.layers` holds, named in the same
            form as `points`.
        require_finite: Whether a NaN or infinite feature raises
            `tf.errors.InvalidArgumentError` with its layer's name. Meant for
            frozen networks, because training cannot mend their features.
        split: Function that makes two tensors of a sensing point's output.
            The network continues with the first, and `Features.forks` holds
            the second.
        logits: Those of `points` that must give logits. If such a layer ends
            in a softmax or sigmoid, the input of that function is read.
        view: Function that makes the network's inputs from a batch.
        input_shapes: Shapes of the inputs, in flattened order, for a graph
            that takes inputs of any size: see `with_input_shapes`.

    Attributes:
        shapes: `Features` with the shapes of the tensors that a call returns,
            without masks.
        ends: The `End` of each output, in the outputs' structure.

    Raises:
        TypeError: If `network` is no built Keras model.
        ValueError: If a layer does not exist, or if a needed feature cannot
            be determined.
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
        input_shapes: Sequence[tuple[int | None, ...]] | None = None,
        view: Callable[[Any], Any] | None = None,
    ):
        require_network(network)
        self.view = view
        if input_shapes:
            network = with_input_shapes(network, input_shapes)
        self.network = network
        self.points = list(points)
        self.require_finite = require_finite
        by_code = not is_graph(network) or any(
            crosses_code(network, path) for path in (*points, *others)
        )
        if not by_code and {"logits", "embedding"} & set(needs):
            by_code = graph_reader.ends_in_layers(network)
        if not by_code and {"last_map", "logit_map"} & set(needs):
            by_code = graph_reader.ends_in_layers(network, pooling=True)
        activations = {}
        for path in logits:
            layer = find_layer(network, path)
            if inner_activation(layer) and squashes(layer):
                activations[path] = keras.layers.Activation(
                    layer.activation, dtype=layer.compute_dtype
                )
        read = wanted(network, points, others, needs, split, activations)
        if by_code:
            self._run = Tap(network, read, needs)
            shapes, self.ends = self._run.shapes, self._run.ends
        else:
            self._run = graph_reader.extractor(network, read, needs)
            shapes = keras.tree.map_structure(
                lambda tensor: tuple(tensor.shape), self._run.output
            )
            self.ends = _ends(network)
        self.shapes = Features(**_split_off(shapes)[0])
        self._numbers = None
        self._inputs = []
        if is_graph(network):
            self._inputs = [each.name for each in graph_of(network).inputs]

    def __call__(self, x: Any, training: bool = False) -> Features:
        """Applies `view` to a batch, and reads the network's features."""
        return self.read(x if self.view is None else self.view(x), training)

    def read(self, inputs: Any, training: bool = False) -> Features:
        """Reads the features for inputs in the network's own form.

        Args:
            inputs: A batch of the network's inputs. `view` is not applied.
            training: Whether the network runs in training mode.

        Returns:
            The features of the batch.

        Raises:
            tf.errors.InvalidArgumentError: If `require_finite` is set, and a
                feature is NaN or infinite.
        """
        fields = self._run(inputs, training=training)
        fields, own, made = _split_off(fields)
        found = Features(**fields)
        given = masks.input_mask(self._inputs, inputs)
        found = _with_masks(found, own, made if given is None else given)
        found = found.at(None, self._numbers)
        return self._finite(found) if self.require_finite else found

    def at_points(self, numbers: Sequence[int] | None) -> "FeatureExtractor":
        """Makes a copy of the extractor with some of its points.

        Args:
            numbers: Positions of the points in `points`; `None` for all.
        """
        made = copy.copy(self)
        made._numbers = numbers
        if numbers is not None:
            made.points = [self.points[number] for number in numbers]
        made.shapes = self.shapes.at(None, numbers)
        return made

    def unchecked(self) -> "FeatureExtractor":
        """Makes a copy of the extractor without `require_finite`."""
        made = copy.copy(self)
        made.require_finite = False
        return made

    def _finite(self, found: Features) -> Features:
        checked = {
            name: keras.tree.map_structure(
                lambda tensor, name=name: self._check(tensor, f"its {name}"),
                getattr(found, name),
            )
            for name in ("logits", "embedding", "last_map", "logit_map")
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


def _ends(network: keras.Model) -> Any:
    ends = keras.tree.map_structure(
        lambda tensor: end_of(tensor, graph_origin), symbolic_outputs(network)
    )
    forms = [end_of(each, graph_origin).form for each in network.outputs]
    if None in forms and graph_reader.ends_in_layers(network):
        return Tap(network).ends  # a tap sees the layers inside of layers
    return ends


def _split_off(fields: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
    """Separates the points' masks and the network's mask from the rest."""
    fields = dict(fields)
    own = fields.pop("masks", [None] * len(fields["maps"]))
    return fields, own, fields.pop("mask", None)


def _with_masks(
    found: Features,
    own: Sequence[tf.Tensor | None],
    network: tf.Tensor | None,
) -> Features:
    outputs = keras.tree.flatten(found.outputs)
    of_outputs = masks.choose(outputs, map(masks.mask_of, outputs), network)
    if of_outputs is not None:
        of_outputs = keras.tree.pack_sequence_as(found.outputs, of_outputs)
    return found._replace(
        masks=masks.choose(found.maps, own, network), output_masks=of_outputs
    )
