"""Features of a subclassed network, read while its code runs."""

import contextlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from keras_mhgd.features.layers import (
    Split,
    call_in_two,
    find_layer,
    inner_activation,
    input_specs,
    is_activation,
    leaves,
    require_linear,
)
from keras_mhgd.features.masks import mask_of, set_mask

_MASKING = (keras.layers.Embedding, keras.layers.Masking)


class _Call(NamedTuple):
    """A call of a layer."""

    layer: keras.Layer
    inputs: tuple[Any, ...]
    before: Any  # what the activation inside of it got, if that is kept
    result: Any


class Tap:
    """Runs a network and keeps what chosen layers get and give.

    For the time of a forward pass the `call` of the network's layers is
    wrapped; under `tf.function`, while it is traced.

    Args:
        model: A built network.
        points: Paths of the sensing points.
        others: Paths of other layers whose output is wanted.
        needs: See `FeatureExtractor`.
        split: See `FeatureExtractor`.
        activations: As in `symbolic.extractor`.

    Attributes:
        shapes: The shapes of what a call gives.
        ends: The `End` of each output, in their structure.
    """

    def __init__(
        self,
        model: keras.Model,
        points: Sequence[str] = (),
        others: Sequence[str] = (),
        needs: Collection[str] = (),
        split: Split | None = None,
        activations: Mapping[str, keras.Layer] = types.MappingProxyType({}),
    ):
        self._model = model
        self._points = {path: find_layer(model, path) for path in points}
        self._others = {path: find_layer(model, path) for path in others}
        self._needs = needs
        self._split = split
        self._activations = activations
        self._before = "maps_before_activation" in needs
        if self._before:
            for path, layer in self._points.items():
                if not is_activation(layer) and not inner_activation(layer):
                    require_linear(layer, path)
        self.shapes, self.ends = self._traced()

    def __call__(self, inputs, training: bool = False) -> dict[str, Any]:
        fields, _ = self._run(inputs, training)
        return fields

    def _run(self, inputs, training: bool) -> tuple[dict[str, Any], Origin]:
        """Gives the features, and the origin of tensors."""
        calls = []  # in their order
        found = {"maps": {}, "forks": {}, "before": {}, "masks": {}}
        paths = {id(layer): path for path, layer in self._points.items()}
        made_masks = []

        def watch(layer, call, *args, **kwargs):
            path = paths.get(id(layer))
            masking = isinstance(layer, _MASKING)
            if path is not None or masking:
                call = _with_mask(layer, call)
            before, result = self._call(layer, call, args, kwargs, path)
            mask = mask_of(result)
            if masking and mask is not None:
                made_masks.append(mask)
            if path is None:
                calls.append(_Call(layer, args, before, result))
                return result
            if self._before:
                _keep(found["before"], path, _at(before, layer, args, result))
            if path in self._activations:
                result, before = before, None
                set_mask(result, mask)
            if self._split is not None:
                result, fork = self._split(result)
                set_mask(result, mask)
                _keep(found["forks"], path, fork)
            _keep(found["maps"], path, result)
            _keep(found["masks"], path, mask)
            calls.append(_Call(layer, args, before, result))
            if path in self._activations:
                activation, linear = self._activations[path], result
                result = activation(linear)
                calls.append(_Call(activation, (linear,), None, result))
            return result

        watched = [
            *leaves(self._model),
            *_layers_in_time(self._model),
            *self._points.values(),
            *self._others.values(),
        ]
        with _watching(watched, watch):
            outputs = self._model(inputs, training=training)
        for path in self._points:
            if path not in found["maps"]:
                raise _not_called_once(path, 0)

        def of_points(kind):
            return [found[kind][path] for path in self._points]

        fields = {
            "outputs": outputs,
            "maps": of_points("maps"),
            "masks": of_points("masks"),
            "mask": made_masks[0] if made_masks else None,
        }
        if self._split is not None:
            fields["forks"] = of_points("forks")
        if self._before:
            fields["maps_before_activation"] = of_points("before")
        if self._others:
            fields["layers"] = {
                path: _given(calls, path, self._activations.get(path, layer))
                for path, layer in self._others.items()
            }
        origin = _origins(calls)
        head = read_head(outputs, origin, self._needs, self._model.name)
        return fields | head, origin

    def _call(self, layer, call, args, kwargs, path) -> tuple[Any, Any]:
        """What the activation inside of a layer gets, if wanted; the result."""
        wanted = (
            path in self._activations
            or (self._before and path is not None)
            or ("logits" in self._needs and squashes(layer))
        )
        if wanted and inner_activation(layer) is not None:
            return call_in_two(layer, call, args, kwargs)
        return None, call(*args, **kwargs)

    def _traced(self) -> tuple[dict[str, Any], Any]:
        """The shapes of what a call gives, and what the outputs are."""
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

        traced = tf.function(run).get_concrete_function(
            _known_specs(self._model)
        )
        shapes = keras.tree.map_structure(
            lambda tensor: tuple(tensor.shape), traced.structured_outputs
        )
        return shapes, ends[-1]


def calls(
    model: keras.Model, layers: Iterable[keras.Layer]
) -> list[tuple[keras.Layer, Any, Any]]:
    """Lists what a network calls, in the order in which the calls end.

    Args:
        model: A built network.
        layers: Those of its layers whose calls are wanted.

    Returns:
        Layer, what it gets and what it gives, of a run that was traced.
    """
    found = []

    def watch(layer, call, *args, **kwargs):
        result = call(*args, **kwargs)
        found.append((layer, (args, kwargs), result))
        return result

    with _watching(list(layers), watch):
        run = tf.function(model.__call__)
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
    """Calls `watch(layer, call, ...)` in the place of each layer's call."""
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
                delattr(layer, name)  # the class's own is there again
            else:
                setattr(layer, name, call)


def _wrapped(layer: keras.Layer, call: Callable, watch: Callable) -> Callable:
    def wrapper(*args, **kwargs):
        return watch(layer, call, *args, **kwargs)

    return wrapper


def _with_mask(layer: keras.Layer, call: Callable) -> Callable:
    """Makes a call set the mask that Keras would set after it.

    At once: attention takes the mask off the tensor that it gets.
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


def _at(before, layer, args, result) -> Any:
    """What a sensing point is before its activation."""
    if before is not None:
        return before
    return args[0] if is_activation(layer) else result


def _keep(found: dict[str, Any], path: str, tensor: Any) -> None:
    if path in found:
        raise _not_called_once(path, "more")
    found[path] = tensor


def _given(calls: list[_Call], path: str, layer: keras.Layer) -> Any:
    results = [each.result for each in calls if each.layer is layer]
    if len(results) != 1:
        raise _not_called_once(path, len(results))
    return results[0]


def _not_called_once(path: str, times: int | str) -> ValueError:
    return ValueError(
        "A sensing point must be a layer that the network calls once. "
        f"Received: {path!r}, called {times} times. Choose another layer."
    )


def _origins(calls: list[_Call]) -> Origin:
    """Gives the origin of tensors, each call of a layer at most once.

    A layer such as an idle dropout gives the very tensor that it got.
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
