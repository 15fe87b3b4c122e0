"""Features of a graph of layers: another graph of the same layers."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from keras_mhgd.features.head import graph_origin, read_head, squashes
from keras_mhgd.features.layers import (
    InTwo,
    Point,
    Split,
    children,
    crosses_code,
    find_layer,
    inner_activation,
    is_activation,
    is_graph,
    require_linear,
    symbolic_inputs,
    symbolic_output,
    symbolic_outputs,
    walk,
)
from keras_mhgd.features.masks import mask_of

_KINDS = ("maps", "forks", "masks", "before", "given")


class _Wanted(NamedTuple):
    """What is to be read in a model: paths, and how."""

    points: list[str]  # sensing points
    others: list[str]  # layers whose output or mask is wanted
    before: bool
    split: Split | None
    activations: dict[str, keras.Layer]
    heads: list[keras.Layer]
    masks: bool

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys([*self.points, *self.others]))

    @property
    def as_is(self) -> bool:
        """Whether the model's own tensors are what is wanted."""
        return not any(
            [
                self.before,
                self.split,
                self.activations,
                self.heads,
                self.masks,
                *("/" in path for path in self.paths),
            ]
        )

    def inside(self, name: str) -> "_Wanted":
        """What of that is inside of a nested model."""
        prefix = f"{name}/"

        def rests(paths):
            return [
                path.removeprefix(prefix)
                for path in paths
                if path.startswith(prefix)
            ]

        return self._replace(
            points=rests(self.points),
            others=rests(self.others),
            activations={
                rest: self.activations[prefix + rest]
                for rest in rests(self.activations)
            },
            heads=[],
        )


def extractor(
    model: keras.Model,
    points: Sequence[str],
    others: Sequence[str],
    needs: Collection[str],
    split: Split | None,
    activations: Mapping[str, keras.Layer],
) -> keras.Model:
    """Builds the model that gives predictions and features at once.

    Args:
        model: A graph of layers.
        points: Paths of the sensing points.
        others: Paths of other layers whose output is wanted.
        needs: See `FeatureExtractor`.
        split: See `FeatureExtractor`.
        activations: By path of a point that is read before its layer's own
            activation: what is called in the place of that.

    Returns:
        A functional model that shares all layers; its output is a dict with
        the fields of `Features`. If a layer makes a mask, `masks` are those
        that the points came with, and `mask` that layer's.
    """
    masking = _masking_layer(model)
    wanted = _Wanted(
        points=list(points),
        others=[*others, *([masking] if masking else [])],
        before="maps_before_activation" in needs,
        split=split,
        activations=dict(activations),
        heads=_heads(model) if "logits" in needs else [],
        masks=masking is not None,
    )
    for path in wanted.paths:
        find_layer(model, path)
    found = _with_outputs(model, wanted)
    fields = {
        "outputs": found["outputs"],
        "maps": [found["maps"][path] for path in points],
    }
    if split is not None:
        fields["forks"] = [found["forks"][path] for path in points]
    if wanted.before:
        fields["maps_before_activation"] = [
            found["before"][path] for path in points
        ]
    if others:
        fields["layers"] = {path: found["given"][path] for path in others}
    if wanted.masks:
        fields["masks"] = [found["masks"][path] for path in points]
        fields["mask"] = found["masks"][masking]
    fields |= read_head(fields["outputs"], graph_origin, needs, model.name)
    return keras.Model(found["inputs"], fields)


def _with_outputs(model: keras.Model, wanted: _Wanted) -> dict[str, Any]:
    """Finds a model's inputs and outputs, and by path what is wanted."""
    inputs, outputs = symbolic_inputs(model), symbolic_outputs(model)
    if wanted.as_is:
        maps = {
            path: symbolic_output(model, model.get_layer(path))
            for path in wanted.paths
        }
        return {
            "inputs": inputs,
            "outputs": outputs,
            "maps": maps,
            "given": maps,
        }

    # A nested model's inner tensors belong to a graph of its own, and a fork
    # changes what comes behind it. So the layers are called once more, with an
    # extractor in the place of a nested model.
    parents = dict.fromkeys(
        path.partition("/")[0] for path in wanted.paths if "/" in path
    )
    extractors = {
        name: _nested(model.get_layer(name), wanted.inside(name))
        for name in parents
    }
    found = {kind: {} for kind in _KINDS}
    in_two = functools.cache(InTwo)  # a layer may give several outputs

    def call(layer, *args, **kwargs):
        name = layer.name
        if name in extractors:
            result = extractors[name](*args, **kwargs)
            for kind in found:
                found[kind] |= {
                    f"{name}/{rest}": tensor
                    for rest, tensor in result.get(kind, {}).items()
                }
            result = result["outputs"]
        elif name in wanted.activations:
            result, _ = in_two(layer)(*args)
            found["before"][name] = result
        elif wanted.before and name in wanted.points:
            found["before"][name], result = _in_two(layer, args, kwargs, name)
        elif any(layer is head for head in wanted.heads):
            _, result = in_two(layer)(*args)
        else:
            result = layer(*args, **kwargs)
        split = wanted.split if name in wanted.points else None
        if split or wanted.masks and name in wanted.paths:
            result, fork, mask = Point(name, split)(result)
            found["forks"][name], found["masks"][name] = fork, mask
        if name in wanted.paths:
            found["maps"][name] = result
        if name in wanted.activations:
            result = wanted.activations[name](result)
        if name in wanted.paths:
            found["given"][name] = result
        return result

    again = keras.models.clone_model(
        keras.Model(inputs, outputs),
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return found | {
        "inputs": symbolic_inputs(again),
        "outputs": symbolic_outputs(again),
    }


def _nested(model: keras.Model, wanted: _Wanted) -> keras.Model:
    found = _with_outputs(model, wanted)
    inputs, outputs = found.pop("inputs"), found.pop("outputs")
    tensors = {kind: each for kind, each in found.items() if each}
    return keras.Model(inputs, {"outputs": outputs, **tensors})


def _in_two(layer, args, kwargs, name):
    """What a layer's activation gets, and the layer's output."""
    if is_activation(layer):
        return args[0], layer(*args, **kwargs)
    if inner_activation(layer) is None:
        require_linear(layer, name)
        result = layer(*args, **kwargs)
        return result, result
    return InTwo(layer)(*args)


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
