"""Reads tensors at layers, whether a graph or code calls the layers."""

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from keras_mhgd.features.layers import (
    Split,
    find_layer,
    inner_activation,
    is_activation,
    require_linear,
)


class Wanted(NamedTuple):
    """Lists what to read of a network, by the paths of its layers.

    Attributes:
        points: The sensing points.
        others: Other layers whose output is wanted.
        before: Whether points are also read before their activation.
        split: See `FeatureExtractor`.
        activations: Activation layers by the paths of points that end in an
            activation but are read before it. The activation layer is called
            instead of the point's own activation.
    """

    points: list[str]
    others: list[str]
    before: bool = False
    split: Split | None = None
    activations: Mapping[str, keras.Layer] = {}

    @property
    def paths(self) -> list[str]:
        """All paths, each once."""
        return list(dict.fromkeys([*self.points, *self.others]))

    def fields(
        self, outputs: Any, found: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Arranges the tensors that were read by the fields of `Features`.

        Args:
            outputs: The network's outputs.
            found: The tensors that a `Reader` has found.
        """

        def at_points(kind):
            return [found[kind][path] for path in self.points]

        fields = {"outputs": outputs, "maps": at_points("maps")}
        if self.split is not None:
            fields["forks"] = at_points("forks")
        if self.before:
            fields["maps_before_activation"] = at_points("before")
        if self.others:
            fields["layers"] = {
                path: found["given"][path] for path in self.others
            }
        return fields


def wanted(
    network: keras.Model,
    points: Sequence[str],
    others: Sequence[str],
    needs: Collection[str],
    split: Split | None,
    activations: Mapping[str, keras.Layer],
) -> Wanted:
    """Checks the paths, and lists what a `FeatureExtractor` reads.

    Raises:
        ValueError: If a layer does not exist, or if its value before the
            activation is needed and unknown.
    """
    before = "maps_before_activation" in needs
    found = Wanted(list(points), list(others), before, split, activations)
    for path in found.paths:
        layer = find_layer(network, path)
        activates = is_activation(layer) or inner_activation(layer)
        if before and path in found.points and not activates:
            require_linear(layer, path)
    return found


class Reader(abc.ABC):
    """Calls layers, and keeps the wanted tensors.

    A graph calls its layers on symbolic tensors, code calls them on tensors.
    Each of the two has a subclass, which defines how a layer is called. This
    class alone decides which tensors are read.

    Attributes:
        found: The tensors that were read, by kind and path. The kinds are
            `maps`, `forks`, `masks`, `before` (the activation's input) and
            `given` (the output of another layer).
    """

    def __init__(self, wanted: Wanted):
        self.wanted = wanted
        self.found: dict[str, dict[str, Any]] = {
            kind: {} for kind in ("maps", "forks", "masks", "before", "given")
        }

    @abc.abstractmethod
    def in_two(
        self, layer: keras.Layer, call: Callable, args: Sequence, kwargs: dict
    ) -> tuple[Any, Any]:
        """Calls a layer; gives its activation's input and its own output."""

    @abc.abstractmethod
    def fork(self, path: str, tensor: Any) -> tuple[Any, Any, Any]:
        """Gives the tensor to continue with, and its fork and mask if any."""

    @abc.abstractmethod
    def is_head(self, layer: keras.Layer) -> bool:
        """Checks whether logits are read before a layer's own activation."""

    @abc.abstractmethod
    def note(
        self, layer: keras.Layer, inputs: Sequence, before: Any, result: Any
    ) -> None:
        """Records a call."""

    def read(
        self,
        path: str | None,
        layer: keras.Layer,
        call: Callable,
        args: Sequence,
        kwargs: dict,
    ) -> Any:
        """Calls a layer, and gives the tensor that the network continues with.

        Args:
            path: The layer's path; `None` if nothing is wanted of the layer.
            layer: The layer.
            call: Function that calls the layer.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
        """
        wanted = self.wanted
        is_point = path in wanted.points
        activation = wanted.activations.get(path)
        before = None
        if inner_activation(layer) is not None and (
            activation is not None
            or (wanted.before and is_point)
            or self.is_head(layer)
        ):
            before, result = self.in_two(layer, call, args, kwargs)
        else:
            result = call(*args, **kwargs)
        if wanted.before and is_point:
            own = args[0] if is_activation(layer) else result
            self._keep("before", path, own if before is None else before)
        if activation is not None:
            result, before = before, None
        if is_point:
            result, fork, mask = self.fork(path, result)
            self._keep("maps", path, result)
            self._keep("forks", path, fork)
            self._keep("masks", path, mask)
        self.note(layer, args, before, result)
        if activation is not None:
            linear, result = result, activation(result)
            self.note(activation, [linear], None, result)
        if path in wanted.others:
            self._keep("given", path, result)
        return result

    def _keep(self, kind, path, tensor):
        if tensor is None:
            return
        if path in self.found[kind]:
            raise not_called_once(path, "more")
        self.found[kind][path] = tensor


def not_called_once(path: str, times: int | str) -> ValueError:
    """Makes the error for a sensing point that is not called exactly once."""
    return ValueError(
        "A sensing point must be a layer that the network calls once. "
        f"Received: {path!r}, called {times} times. Choose another layer."
    )
