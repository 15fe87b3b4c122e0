"""What is read at a layer, whether a graph or code calls it."""

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
    """What is to be read of a network, by the paths of its layers.

    Attributes:
        points: The sensing points.
        others: Other layers whose output is wanted.
        before: Whether points are read before their activation too.
        split: See `FeatureExtractor`.
        activations: By path of a point that is read before the activation
            that its layer ends in: what is called in the place of that.
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
        """Puts what was read under the names that `Features` has for it.

        Args:
            outputs: What the network gives.
            found: What a `Reader` has found.
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
    """Lists what a `FeatureExtractor` reads, once it has checked the paths.

    Raises:
        ValueError: If there is no such layer, or what comes before its
            activation can't be told.
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
    """Calls layers, and keeps what is wanted of them.

    A graph calls its layers on symbols, code on tensors. A subclass says how
    a layer is called then; what is read where is told here alone.

    Attributes:
        found: What was read, by its kind and path: `maps`, `forks`, `masks`,
            `before` the activation, and what other layers have `given`.
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
        """Calls a layer: what its own activation gets, and its result."""

    @abc.abstractmethod
    def fork(self, path: str, tensor: Any) -> tuple[Any, Any, Any]:
        """Gives what goes on, the fork and the mask, `None` for none."""

    @abc.abstractmethod
    def is_head(self, layer: keras.Layer) -> bool:
        """Whether logits are read of what a layer's own activation gets."""

    @abc.abstractmethod
    def note(
        self, layer: keras.Layer, inputs: Sequence, before: Any, result: Any
    ) -> None:
        """Takes notice of a call."""

    def read(
        self,
        path: str | None,
        layer: keras.Layer,
        call: Callable,
        args: Sequence,
        kwargs: dict,
    ) -> Any:
        """Calls a layer, and gives what the network goes on with.

        Args:
            path: The layer's; `None` if nothing is wanted of it.
            layer: The layer.
            call: What calls it.
            args: What it gets.
            kwargs: The same by keywords.
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
    """Makes the error for a sensing point that is called more or less."""
    return ValueError(
        "A sensing point must be a layer that the network calls once. "
        f"Received: {path!r}, called {times} times. Choose another layer."
    )
