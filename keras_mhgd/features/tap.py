"""Features of a subclassed network, read while its code runs."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.features.head import Origin, head_of
from keras_mhgd.features.layers import (
    call_linearly,
    find_layer,
    inner_activation,
    input_specs,
    is_activation,
    leaves,
    require_linear,
)
from keras_mhgd.features.symbolic import Split


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
    """

    def __init__(
        self,
        model: keras.Model,
        points: Sequence[str],
        others: Sequence[str],
        needs: Collection[str],
        split: Split | None,
        activations: Mapping[str, keras.Layer],
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

    def __call__(self, inputs, training: bool = False) -> dict[str, Any]:
        calls = []  # (layer, its inputs, what it gave) in the order of calls
        found = {"maps": {}, "forks": {}, "before": {}}
        paths = {id(layer): path for path, layer in self._points.items()}

        def watch(layer, call, *args, **kwargs):
            path = paths.get(id(layer))
            if path is None:
                result = call(*args, **kwargs)
                calls.append((layer, args, result))
                return result
            before, result = self._in_two(layer, call, args, kwargs, path)
            _keep(found["before"], path, before)
            if self._split is not None:
                result, fork = self._split(result)
                _keep(found["forks"], path, fork)
            _keep(found["maps"], path, result)
            calls.append((layer, args, result))
            if path in self._activations:
                activation, before = self._activations[path], result
                result = activation(before)
                calls.append((activation, (before,), result))
            return result

        watched = [
            *leaves(self._model),
            *self._points.values(),
            *self._others.values(),
        ]
        with _watching(watched, watch):
            outputs = self._model(inputs, training=training)
        for path in self._points:
            if path not in found["maps"]:
                raise _not_called_once(path, 0)
        fields = {
            "outputs": outputs,
            "maps": [found["maps"][path] for path in self._points],
        }
        if self._split is not None:
            fields["forks"] = [found["forks"][path] for path in self._points]
        if self._before:
            fields["maps_before_activation"] = [
                found["before"][path] for path in self._points
            ]
        if self._others:
            fields["layers"] = {
                path: _given(calls, path, self._activations.get(path, layer))
                for path, layer in self._others.items()
            }
        return fields | head_of(
            outputs, _origins(calls), self._needs, self._model.name
        )

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of what a call gives."""
        run = tf.function(self.__call__).get_concrete_function(
            _known_specs(self._model)
        )
        outputs = run.structured_outputs
        return keras.tree.map_structure(
            lambda tensor: tuple(tensor.shape), outputs
        )

    def _in_two(self, layer, call, args, kwargs, path):
        """What a layer's activation gets, and what the point reads."""
        if path in self._activations:
            linear = call_linearly(layer, call, args, kwargs)
            return linear, linear
        activation = inner_activation(layer)
        if not self._before or (
            activation is None and not is_activation(layer)
        ):
            result = call(*args, **kwargs)
            return result, result
        if activation is None:
            return args[0], call(*args, **kwargs)
        linear = call_linearly(layer, call, args, kwargs)
        return linear, activation(linear)


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
    """Calls `watch(layer, call, ...)` in the place of each `layer.call`."""
    layers = list({id(layer): layer for layer in layers}.values())
    own = [vars(layer).get("call") for layer in layers]
    for layer in layers:
        layer.call = _wrapped(layer, layer.call, watch)
    try:
        yield
    finally:
        for layer, call in zip(layers, own, strict=True):
            if call is None:
                del layer.call  # the class's own is there again
            else:
                layer.call = call


def _wrapped(layer: keras.Layer, call: Callable, watch: Callable) -> Callable:
    def wrapper(*args, **kwargs):
        return watch(layer, call, *args, **kwargs)

    return wrapper


def _keep(found: dict[str, Any], path: str, tensor: Any) -> None:
    if path in found:
        raise _not_called_once(path, "more")
    found[path] = tensor


def _given(calls, path: str, layer: keras.Layer) -> Any:
    results = [result for each, _, result in calls if each is layer]
    if len(results) != 1:
        raise _not_called_once(path, len(results))
    return results[0]


def _not_called_once(path: str, times: int | str) -> ValueError:
    return ValueError(
        "A sensing point must be a layer that the network calls once. "
        f"Received: {path!r}, called {times} times. Choose another layer."
    )


def _origins(calls) -> Callable[[Any], Origin]:
    """Gives the layer that made a tensor, each call of a layer at most once.

    A layer such as an idle dropout gives the very tensor that it got.
    """
    backwards = reversed(calls)

    def origin(tensor):
        for layer, inputs, result in backwards:
            if result is tensor:
                return layer, inputs[0] if len(inputs) == 1 else None
        return None, None

    return origin
