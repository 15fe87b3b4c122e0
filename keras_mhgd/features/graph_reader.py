"""Features of a graph of layers: another graph of the same layers."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import keras

from keras_mhgd.features.head import graph_origin, read_head, squashes
from keras_mhgd.features.layers import (
    InTwo,
    Point,
    children,
    crosses_code,
    inner_activation,
    is_graph,
    symbolic_inputs,
    symbolic_output,
    symbolic_outputs,
    walk,
)
from keras_mhgd.features.masks import mask_of
from keras_mhgd.features.reading import Reader, Wanted


def extractor(
    model: keras.Model, wanted: Wanted, needs: Collection[str]
) -> keras.Model:
    """Builds the model that gives predictions and features at once.

    Args:
        model: A graph of layers.
        wanted: What is to be read.
        needs: See `FeatureExtractor`.

    Returns:
        A functional model that shares all layers; its output is a dict with
        the fields of `Features`. If a layer makes a mask, `masks` are those
        that the points came with, and `mask` that layer's.
    """
    masking = _masking_layer(model)
    reading = wanted
    if masking is not None:
        reading = wanted._replace(others=[*wanted.others, masking])
    heads = _heads(model) if "logits" in needs else []
    inputs, outputs, found = _read(model, reading, heads, masking is not None)
    fields = wanted.fields(outputs, found)
    if masking is not None:
        fields["masks"] = [found["masks"][path] for path in wanted.points]
        fields["mask"] = found["masks"][masking]
    fields |= read_head(outputs, graph_origin, needs, model.name)
    return keras.Model(inputs, fields)


def _read(
    model: keras.Model,
    wanted: Wanted,
    heads: Sequence[keras.Layer],
    masks: bool,
) -> tuple[Any, Any, dict[str, dict[str, Any]]]:
    """Finds a graph's inputs and outputs, and what is wanted of it."""
    changes = wanted.before or wanted.split or wanted.activations
    nested = any("/" in path for path in wanted.paths)
    if not (changes or heads or masks or nested):
        # The model's own tensors are what is wanted.
        maps = {
            path: symbolic_output(model, model.get_layer(path))
            for path in wanted.paths
        }
        found = {"maps": maps, "given": maps}
        return symbolic_inputs(model), symbolic_outputs(model), found
    reader = _GraphReader(wanted, heads, masks)
    again = reader.again(model)
    return symbolic_inputs(again), symbolic_outputs(again), reader.found


class _GraphReader(Reader):
    """Calls the layers of a graph once more, on symbols.

    A nested model's inner tensors belong to a graph of its own, and a fork
    changes what comes behind it. So all layers are called, with an extractor
    in the place of a nested model.
    """

    def __init__(
        self, wanted: Wanted, heads: Sequence[keras.Layer], masks: bool
    ):
        super().__init__(wanted)
        self._heads = heads
        self._masks = masks
        self._nested: dict[str, keras.Model] = {}
        self._in_two = functools.cache(InTwo)  # it may give several outputs

    def again(self, model: keras.Model) -> keras.Model:
        """Makes the graph that is read, of the model's own layers."""
        paths = [path for path in self.wanted.paths if "/" in path]
        for name in dict.fromkeys(path.partition("/")[0] for path in paths):
            inputs, outputs, found = _read(
                model.get_layer(name),
                _inside(self.wanted, name),
                [],
                self._masks,
            )
            tensors = {kind: each for kind, each in found.items() if each}
            self._nested[name] = keras.Model(
                inputs, {"outputs": outputs, **tensors}
            )
        return keras.models.clone_model(
            keras.Model(symbolic_inputs(model), symbolic_outputs(model)),
            clone_function=lambda layer: layer,
            call_function=self._call,
        )

    def in_two(self, layer, call, args, kwargs):
        return self._in_two(layer)(*args)

    def fork(self, path, tensor):
        if self.wanted.split is None and not self._masks:
            return tensor, None, None
        return Point(path, self.wanted.split)(tensor)

    def is_head(self, layer):
        return any(layer is head for head in self._heads)

    def note(self, layer, inputs, before, result):
        """Nothing: symbols know what made them."""

    def _call(self, layer, *args, **kwargs):
        name = layer.name
        call = layer
        if name in self._nested:
            call = functools.partial(self._call_nested, name)
        result = self.read(name, layer, call, args, kwargs)
        others = set(self.wanted.others) - set(self.wanted.points)
        if self._masks and name in others:
            result, _, mask = Point(name, None)(result)
            self.found["masks"][name] = mask
        return result

    def _call_nested(self, name, *args, **kwargs):
        result = self._nested[name](*args, **kwargs)
        for kind, found in self.found.items():
            for rest, tensor in result.get(kind, {}).items():
                found[f"{name}/{rest}"] = tensor
        return result["outputs"]


def _inside(wanted: Wanted, name: str) -> Wanted:
    """What of that is inside of a nested model."""
    prefix = f"{name}/"

    def rests(paths):
        return [
            path.removeprefix(prefix)
            for path in paths
            if path.startswith(prefix)
        ]

    activations = {
        rest: wanted.activations[prefix + rest]
        for rest in rests(wanted.activations)
    }
    return wanted._replace(
        points=rests(wanted.points),
        others=rests(wanted.others),
        activations=activations,
    )


def _heads(model: keras.Model) -> list[keras.Layer]:
    """The layers that give an output, by a softmax or sigmoid inside."""
    made = [graph_origin(output).by for output in model.outputs]
    return [
        layer for layer in made if inner_activation(layer) and squashes(layer)
    ]


def _masking_layer(model: keras.Model) -> str | None:
    """The path of the first layer that gives a mask along with its output."""
    for path, layer, parent in walk(model):
        if not is_graph(parent):
            continue
        output = symbolic_output(parent, layer)
        if mask_of(output) is not None and _is_reachable(model, path):
            return path
    return None


def _is_reachable(model: keras.Model, path: str) -> bool:
    try:
        return not crosses_code(model, path)
    except ValueError:  # in what is called more than once
        return False


def ends_in_layers(model: keras.Model) -> bool:
    """Whether what a graph ends in is inside of a layer made of layers."""
    return any(map(_ends_in_layers, model.outputs))


def _ends_in_layers(tensor: keras.KerasTensor) -> bool:
    while tensor is not None:
        layer, node_index, _ = tensor._keras_history
        if isinstance(layer, keras.Layer) and children(layer):
            return not isinstance(layer, keras.layers.TimeDistributed)
        inputs = layer._inbound_nodes[node_index].input_tensors
        if len(inputs) != 1 or getattr(layer, "weights", ()):
            return False
        tensor = inputs[0]
    return False
