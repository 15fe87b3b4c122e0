"""Reads the features of a subclassed network while its code runs."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd.features.head import (
    Made,
    Origin,
    end_of,
    read_head,
    squashes,
)
from keras_mhgd.features.last_map import read_last_map
from keras_mhgd.features.layers import (
    call_in_two,
    find_layer,
    input_specs,
    leaves,
)
from keras_mhgd.features.masks import mask_of, set_mask
from keras_mhgd.features.reading import Reader, Wanted, not_called_once

_NOTHING = Wanted(points=[], others=[])
_MASKING = (keras.layers.Embedding, keras.layers.Masking)


class _Call(NamedTuple):
    """Records one call of a layer."""

    layer: keras.Layer
    inputs: tuple[Any, ...]
    before: Any  # the input of the layer's own activation, if kept
    result: Any


class Tap:
    """Runs a network and keeps the tensors that are read of its layers.

    The layers' `call` methods are wrapped during a forward pass. Under
    `tf.function` they are wrapped only while the function is traced.

    Args:
        model: A built network.
        wanted: The layers to read.
        needs: See `FeatureExtractor`.

    Attributes:
        shapes: The shapes of the fields that a call returns, without masks.
        ends: The `End` of each output, in the outputs' structure.
    """

    def __init__(
        self,
        model: keras.Model,
        wanted: Wanted = _NOTHING,
        needs: Collection[str] = (),
    ):
        self._model = model
        self._wanted = wanted
        self._needs = needs
        self.shapes, self.ends = self._traced()

    def __call__(self, inputs, training: bool = False) -> dict[str, Any]:
        fields, _ = self._run(inputs, training)
        return fields

    def _run(self, inputs, training: bool) -> tuple[dict[str, Any], Origin]:
        """Gives the fields of `Features`, and the `Origin` of tensors."""
        reader = _CodeReader(self._model, self._wanted, self._needs)
        with _watching(reader.watched, reader.watch):
            outputs = self._model(inputs, training=training)
        for path in self._wanted.paths:
            if path not in {**reader.found["maps"], **reader.found["given"]}:
                raise not_called_once(path, 0)
        fields = self._wanted.fields(outputs, reader.found)
        fields["masks"] = [
            reader.found["masks"].get(path) for path in self._wanted.points
        ]
        fields["mask"] = reader.made_masks[0] if reader.made_masks else None
        origin = _origins(reader.calls)
        arguments = outputs, origin, self._needs, self._model.name
        head = read_head(*arguments) | read_last_map(*arguments)
        return fields | head, origin

    def _traced(self) -> tuple[dict[str, Any], Any]:
        """Finds the shapes of a call's fields, and the outputs' ends."""
        ends = []

        def run(inputs):
            fields, origin = self._run(inputs, training=False)
            ends.append(
                keras.tree.map_structure(
                    lambda tensor: end_of(tensor, origin), fields["outputs"]
                )
            )
            del fields["masks"], fields["mask"]
            return fields

        traced = tf.function(run, autograph=False).get_concrete_function(
            _known_specs(self._model)
        )
        shapes = keras.tree.map_structure(
            lambda tensor: tuple(tensor.shape), traced.structured_outputs
        )
        return shapes, ends[-1]


class _CodeReader(Reader):
    """Reads layers on tensors, while a network's code calls the layers.

    Attributes:
        watched: The layers whose calls are watched.
        calls: Calls of the watched layers, in the order in which they end.
        made_masks: Masks that embedding and masking layers made, in order.
    """

    def __init__(
        self, model: keras.Model, wanted: Wanted, needs: Collection[str]
    ):
        super().__init__(wanted)
        layers = {path: find_layer(model, path) for path in wanted.paths}
        self._paths = {id(layer): path for path, layer in layers.items()}
        self._reads_logits = "logits" in needs
        self.watched = [
            *leaves(model),
            *_layers_in_time(model),
            *layers.values(),
        ]
        self.calls: list[_Call] = []
        self.made_masks: list[tf.Tensor] = []

    def watch(self, layer, call, *args, **kwargs):
        """Runs instead of a layer's `call`, and reads the layer."""
        path = self._paths.get(id(layer))
        masking = isinstance(layer, _MASKING)
        if path in self.wanted.points or masking:
            call = _with_mask(layer, call)
        result = self.read(path, layer, call, args, kwargs)
        if masking and mask_of(result) is not None:
            self.made_masks.append(mask_of(result))
        return result

    def in_two(self, layer, call, args, kwargs):
        before, result = call_in_two(layer, call, args, kwargs)
        set_mask(before, mask_of(result))
        return before, result

    def fork(self, path, tensor):
        mask, fork = mask_of(tensor), None
        if self.wanted.split is not None:
            tensor, fork = self.wanted.split(tensor)
            set_mask(tensor, mask)
        return tensor, fork, mask

    def is_head(self, layer):
        return self._reads_logits and squashes(layer)

    def note(self, layer, inputs, before, result):
        self.calls.append(_Call(layer, tuple(inputs), before, result))


def calls(
    model: keras.Model, layers: Iterable[keras.Layer]
) -> list[tuple[keras.Layer, Any, Any]]:
    """Lists the calls of chosen layers, in the order in which they end.

    Args:
        model: A built network.
        layers: The layers of the network whose calls are wanted.

    Returns:
        Triples (layer, inputs, output), one for each call in a traced run.
        The inputs are the call's `(args, kwargs)`.
    """
    found = []

    def watch(layer, call, *args, **kwargs):
        result = call(*args, **kwargs)
        found.append((layer, (args, kwargs), result))
        return result

    with _watching(list(layers), watch):
        run = tf.function(model.__call__, autograph=False)
        run.get_concrete_function(_known_specs(model))
    return found


def _known_specs(model: keras.Model) -> Any:
    specs = input_specs(model)
    if specs is None:
        raise ValueError(
            "A subclassed network must have inputs whose shapes are known. "
            f"Received: {model.name!r}, which has not been called. Make it "
            "functional, or call it once on a batch."
        )
    return specs


@contextlib.contextmanager
def _watching(layers: Sequence[keras.Layer], watch: Callable):
    """Calls `watch(layer, call, ...)` instead of each layer's own call."""
    layers = list({id(layer): layer for layer in layers}.values())
    names = [
        "quantized_call" if layer.quantization_mode else "call"
        for layer in layers
    ]
    own = [
        vars(layer).get(name) for layer, name in zip(layers, names, strict=True)
    ]
    for layer, name in zip(layers, names, strict=True):
        setattr(layer, name, _wrapped(layer, getattr(layer, name), watch))
    try:
        yield
    finally:
        for layer, name, call in zip(layers, names, own, strict=True):
            if call is None:
                delattr(layer, name)  # uncovers the method of the class
            else:
                setattr(layer, name, call)


def _wrapped(layer: keras.Layer, call: Callable, watch: Callable) -> Callable:
    def wrapper(*args, **kwargs):
        return watch(layer, call, *args, **kwargs)

    return wrapper


def _with_mask(layer: keras.Layer, call: Callable) -> Callable:
    """Makes a call set the mask that Keras would set after the call.

    The mask must be read before the network continues: a later attention
    layer removes the mask from its input tensor.
    """

    def wrapper(*args, **kwargs):
        previous = kwargs.get("mask")
        if previous is None:
            previous = keras.tree.map_structure(mask_of, args[0])
        result = call(*args, **kwargs)
        if layer.supports_masking and mask_of(result) is None:
            set_mask(result, layer.compute_mask(args[0], previous))
        return result

    return wrapper


def _layers_in_time(model: keras.Layer) -> list[keras.Layer]:
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.TimeDistributed)
    ]


def _origins(calls: list[_Call]) -> Origin:
    """Makes the `Origin` of the tensors that some calls gave.

    A call's inputs are searched for among earlier calls only. An idle dropout
    returns its input tensor, so a search among all calls would never end.
    """

    def origin(tensor):
        for index in reversed(range(len(calls))):
            layer, args, before, result = calls[index]
            if result is tensor:
                inputs = [
                    each
                    for each in keras.tree.flatten(args)
                    if tf.is_tensor(each)
                ]
                return Made(layer, inputs, _origins(calls[:index]), before)
        return Made(None, [], origin)

    return origin
