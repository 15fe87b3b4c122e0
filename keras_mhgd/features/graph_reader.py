"""Reads features of a graph of layers by a new graph of these layers."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import keras

from keras_mhgd.features.head import graph_origin, read_head, squashes
from keras_mhgd.features.last_map import read_last_map
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
    """Builds a model that gives predictions and features at once.

    Args:
        model: A graph of layers.
        wanted: The layers to read.
        needs: See `FeatureExtractor`.

    Returns:
        A functional model that shares all layers. Its output is a dict with
        the fields of `Features`. If a layer makes a mask, the dict also has
        `masks`, the masks of the points' outputs, and `mask`, the mask of the
        first such layer.
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
    fields |= read_last_map(outputs, graph_origin, needs, model.name)
    return keras.Model(inputs, fields)


def _read(
    model: keras.Model,
    wanted: Wanted,
    heads: Sequence[keras.Layer],
    masks: bool,
) -> tuple[Any, Any, dict[str, dict[str, Any]]]:
    """Finds a graph's inputs, its outputs and the wanted tensors."""
    changes = wanted.before or wanted.split or wanted.activations
    nested = any("/" in path for path in wanted.paths)
    if not (changes or heads or masks or nested):
        # The tensors of the unchanged graph can be read directly.
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
    """Calls the layers of a graph once more, on symbolic tensors.

    The inner tensors of a nested model belong to a separate graph, and a fork
    changes the inputs of all later layers. So all layers are called again. A
    nested model is replaced by a model that also returns its inner tensors.
    """

    def __init__(
        self, wanted: Wanted, heads: Sequence[keras.Layer], masks: bool
    ):
        super().__init__(wanted)
        self._heads = heads
        self._masks = masks
        self._nested: dict[str, keras.Model] = {}
        # Cached, since a layer that gives several outputs is called for each.
        self._in_two = functools.cache(InTwo)

    def again(self, model: keras.Model) -> keras.Model:
        """Rebuilds the graph from the model's own layers, and reads it."""
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
        """Does nothing: symbolic tensors record how they were made."""

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
    """Selects the wanted layers inside of a nested model."""
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
    """Finds the output layers that end in a softmax or sigmoid."""
    made = [graph_origin(output).by for output in model.outputs]
    return [
        layer for layer in made if inner_activation(layer) and squashes(layer)
    ]


def _masking_layer(model: keras.Model) -> str | None:
    """Finds the path of the first layer whose output has a mask."""
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
    except ValueError:  # a layer on the path is called more than once
        return False


def ends_in_layers(model: keras.Model, pooling: bool = False) -> bool:
    """Checks whether a layer made of layers gives an output of a graph.

    Args:
        model: A graph of layers.
        pooling: Whether the question is, instead, if such a layer gives the
            output or has the pooling of the last map inside.
    """
    return any(_ends_in_layers(each, pooling) for each in model.outputs)


def _ends_in_layers(tensor: keras.KerasTensor, pooling: bool) -> bool:
    classifiers = 1 if pooling else 0  # layers with weights to go past
    while tensor is not None:
        layer, node_index, _ = tensor._keras_history
        if isinstance(layer, keras.Layer) and children(layer):
            return not isinstance(layer, keras.layers.TimeDistributed)
        inputs = layer._inbound_nodes[node_index].input_tensors
        classifiers -= bool(getattr(layer, "weights", ()))
        if len(inputs) != 1 or classifiers < 0:
            return False
        if pooling and _takes_maps(layer, inputs):
            return False
        tensor = inputs[0]
    return False


def _takes_maps(
    layer: keras.Operation, inputs: Sequence[keras.KerasTensor]
) -> bool:
    """Checks whether a layer turns maps of several positions into vectors."""
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return True
    sizes = inputs[0].shape[1:-1]
    flattens = isinstance(layer, keras.layers.Flatten)
    return flattens and any(size != 1 for size in sizes)
