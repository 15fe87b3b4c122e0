"""Features of a graph of layers: another graph of the same layers."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import keras
import tensorflow as tf

from keras_mhgd.features.head import Origin, head_of
from keras_mhgd.features.layers import (
    Linear,
    children,
    find_layer,
    inner_activation,
    is_activation,
    require_linear,
    symbolic_inputs,
    symbolic_output,
)

Split = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


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
        the fields of `Features`.
    """
    before = "maps_before_activation" in needs
    wanted = list(dict.fromkeys([*points, *others]))
    found = _with_outputs(model, wanted, points, before, split, activations)
    fields = {
        "outputs": found["outputs"],
        "maps": [found["maps"][path] for path in points],
    }
    if split is not None:
        fields["forks"] = [found["forks"][path] for path in points]
    if before:
        fields["maps_before_activation"] = [
            found["before"][path] for path in points
        ]
    if others:
        fields["layers"] = {path: found["given"][path] for path in others}
    fields |= head_of(fields["outputs"], _origin, needs, model.name)
    return keras.Model(found["inputs"], fields)


def _with_outputs(
    model: keras.Model,
    paths: Sequence[str],
    points: Sequence[str],
    before: bool,
    split: Split | None,
    activations: Mapping[str, keras.Layer],
) -> dict:
    """Finds inputs, outputs, and by path what `extractor` needs of layers.

    The maps and forks of points, what was before their activation, and what
    all layers gave.
    """
    for path in paths:
        find_layer(model, path)
    inputs, outputs = symbolic_inputs(model), model.outputs[0]
    as_is = split is None and not before and not activations
    if as_is and all("/" not in path for path in paths):
        maps = {
            path: symbolic_output(model, model.get_layer(path))
            for path in paths
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
    inner = {}
    for path in paths:
        head, _, rest = path.partition("/")
        if rest:
            inner.setdefault(head, []).append(rest)
    extractors = {
        head: _nested(
            model.get_layer(head),
            head,
            rests,
            points,
            before,
            split,
            activations,
        )
        for head, rests in inner.items()
    }
    found = {"maps": {}, "forks": {}, "before": {}, "given": {}}

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
        elif name in activations:
            found["before"][name] = result = Linear(layer)(*args)
        elif before and name in points:
            found["before"][name], result = _in_two(layer, args, kwargs, name)
        else:
            result = layer(*args, **kwargs)
        if split is not None and name in points:
            result, found["forks"][name] = _Fork(split, name)(result)
        if name in paths:
            found["maps"][name] = result
        if name in activations:
            result = activations[name](result)
        if name in paths:
            found["given"][name] = result
        return result

    again = keras.models.clone_model(
        keras.Model(inputs, outputs),
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return found | {
        "inputs": symbolic_inputs(again),
        "outputs": again.outputs[0],
    }


def _nested(
    model, name, paths, points, before, split, activations
) -> keras.Model:
    inside = _inside(name, points)
    own = {
        rest: activations[f"{name}/{rest}"]
        for rest in _inside(name, activations)
    }
    found = _with_outputs(model, paths, inside, before, split, own)
    inputs, outputs = found.pop("inputs"), found.pop("outputs")
    tensors = {kind: each for kind, each in found.items() if each}
    return keras.Model(inputs, {"outputs": outputs, **tensors})


def _inside(name: str, paths: Iterable[str]) -> list[str]:
    """What is left of those paths that lead into a layer."""
    return [
        path.removeprefix(f"{name}/")
        for path in paths
        if path.startswith(f"{name}/")
    ]


def _in_two(layer, args, kwargs, name):
    """What a layer's activation gets, and the layer's output."""
    if is_activation(layer):
        return args[0], layer(*args, **kwargs)
    activation = inner_activation(layer)
    if activation is None:
        require_linear(layer, name)
        result = layer(*args, **kwargs)
        return result, result
    linear = Linear(layer)(*args)
    return linear, activation(linear)


class _Fork(keras.Layer):
    """Gives its input twice, as `split` does."""

    def __init__(self, split: Split, name: str):
        super().__init__(name=f"{name}_fork", autocast=False)
        self._split = split

    def call(self, inputs):
        return self._split(inputs)


def _origin(tensor: keras.KerasTensor) -> Origin:
    layer, node_index, _ = tensor._keras_history
    inputs = layer._inbound_nodes[node_index].input_tensors
    if isinstance(layer, _Fork):
        return _origin(inputs[0])
    return layer, inputs[0] if len(inputs) == 1 else None


def ends_in_layers(model: keras.Model) -> bool:
    """Whether what a graph ends in is inside of a layer made of layers."""
    layer, inputs = _origin(model.outputs[0])
    while not _has_layers(layer):
        if inputs is None or getattr(layer, "weights", ()):
            return False
        layer, inputs = _origin(inputs)
    return True


def _has_layers(layer: keras.Operation) -> bool:
    return isinstance(layer, keras.Layer) and bool(children(layer))
