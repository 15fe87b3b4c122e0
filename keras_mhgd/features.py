"""Sensing points: from layer names to features in one forward pass."""

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

SensingPoints = Sequence[str | tuple[str, str]] | None
Split = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Features(NamedTuple):
    """What one forward pass of a network yields.

    Attributes:
        outputs: The network's predictions `(batch, num_classes)`.
        maps: The output of each sensing point, front end first: feature maps
            `(batch, height, width, D)`, sequences `(batch, length, D)` or
            vectors `(batch, D)`.
        logits: What the final softmax or sigmoid gets, or the predictions of
            a network without one; `None` unless asked for.
        embedding: What the classifier, the last layer with weights, gets:
            `(batch, D)`; `None` unless asked for.
        vectors: The maps compressed, `(batch, D)` each: see
            `keras_mhgd.compression`; `None` unless compressed.
        forks: The maps once more, through which gradients return clipped;
            `None` if the extractor has no `split`.
    """

    outputs: tf.Tensor
    maps: list[tf.Tensor]
    logits: tf.Tensor | None = None
    embedding: tf.Tensor | None = None
    vectors: list[tf.Tensor] | None = None
    forks: list[tf.Tensor] | None = None


class Taught(NamedTuple):
    """A batch with what is known of the teacher's features.

    Attributes:
        images: What a network takes.
        kept: The fields of `Features` that are not `None`, in tuples instead
            of lists: those are tensors to `tf.data`.
    """

    images: tf.Tensor
    kept: dict[str, tf.Tensor | tuple[tf.Tensor, ...]]

    @property
    def features(self) -> Features:
        """The kept features."""
        lists = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.kept.items()
        }
        return Features(**lists)


class FeatureExtractor:
    """Runs a network once for its predictions and its sensing points.

    Shares the network's layers: it has no weights of its own, and is no
    Keras object, so that a model that holds one saves nothing twice.

    Args:
        model: A built functional or sequential `keras.Model` with one output.
        points: Layers by name, or by path inside nested models, such as
            `"backbone/block3_out"`.
        needs: Any of `"logits"` and `"embedding"`: see `Features`.
        require_finite: Whether a feature that is NaN or infinite raises
            `tf.errors.InvalidArgumentError`, naming its layer. Meant for
            frozen networks, whose features nothing in training can mend.
        split: Gives a sensing point's output twice: what the network goes on
            with, and what `Features.forks` holds.

    Raises:
        TypeError: If `model` is neither functional nor sequential.
        ValueError: If it has several outputs, if there is no such layer, or
            if its logits or embedding are needed and can't be told.
    """

    def __init__(
        self,
        model: keras.Model,
        points: Sequence[str],
        needs: Collection[str] = (),
        require_finite: bool = False,
        split: Split | None = None,
    ):
        require_graph(model)
        self.points = list(points)
        self.require_finite = require_finite
        self._name = model.name
        self._model = _with_features(model, self.points, split)
        if "logits" in needs or "embedding" in needs:
            self._model = _with_head(self._model, needs, model.name)
        self.shapes = Features(
            **keras.tree.map_structure(
                lambda tensor: tuple(tensor.shape), self._model.output
            )
        )

    def __call__(self, inputs, training: bool = False) -> Features:
        found = Features(**self._model(inputs, training=training))
        if not self.require_finite:
            return found
        maps = [
            self._finite(tensor, f"layer {point!r}")
            for point, tensor in zip(self.points, found.maps, strict=True)
        ]
        head = {
            name: self._finite(getattr(found, name), f"its {name}")
            for name in ("logits", "embedding")
            if getattr(found, name) is not None
        }
        return found._replace(maps=maps, **head)

    def _finite(self, tensor: tf.Tensor, where: str) -> tf.Tensor:
        return tf.debugging.check_numerics(
            tensor,
            f"The features of {self._name!r} must be finite. "
            f"Received NaN or infinity at {where}. Check the network's "
            "weights and the input",
        )


def pair(
    student: keras.Model,
    teacher: keras.Model,
    sensing_points: SensingPoints = None,
    at_least: int = 2,
) -> list[tuple[str, str]]:
    """Pairs the sensing points of a student with those of its teacher.

    Args:
        student: The network that learns.
        teacher: The network that it learns from.
        sensing_points: `None` pairs the stage ends of both (see `stage_ends`)
            that reduce their input by the same factor; or a list, front end
            first, of layer names that both networks have or of (student
            layer, teacher layer) pairs.
        at_least: Number of pairs that are needed.

    Returns:
        (student layer, teacher layer) pairs.

    Raises:
        ValueError: If there are too few, or a layer is not found.
    """
    if sensing_points is None:
        by_factor = stage_ends(teacher)
        pairs = [
            (name, by_factor[factor])
            for factor, name in stage_ends(student).items()
            if factor in by_factor
        ]
    else:
        if isinstance(sensing_points, str):
            sensing_points = [sensing_points]
        pairs = [
            (point, point) if isinstance(point, str) else tuple(point)
            for point in sensing_points
        ]
    if len(pairs) < at_least or any(len(point) != 2 for point in pairs):
        raise ValueError(
            f"`sensing_points` must give {at_least} or more layers, front end "
            "first. "
            f"Received: sensing_points={sensing_points!r}, which gives "
            f"{pairs}. Pass layer names or (student layer, teacher layer) "
            f"pairs. Layers of the student: {_names(student)}. Layers of the "
            f"teacher: {_names(teacher)}."
        )
    for student_point, teacher_point in pairs:
        find_layer(student, student_point)
        find_layer(teacher, teacher_point)
    return pairs


def stage_ends(model: keras.Model) -> dict[int, str]:
    """Finds the last layer before each change of resolution.

    A run of layers of one resolution counts as a stage if one of them has
    weights. Nested models are looked into.

    Args:
        model: A built functional or sequential model of images.

    Returns:
        Layer paths by the factor by which they reduce the input's height (to
        the nearest power of two), front end first.

    Example:
        >>> teacher = keras_mhgd.models.get("vgg_small", (28, 28, 1), 10)
        >>> keras_mhgd.features.stage_ends(teacher)
        {1: 'stage1', 2: 'stage2', 4: 'stage3'}
    """
    require_graph(model)
    height = model.input_shape[1] if len(model.input_shape) == 4 else None
    ends, weighted = {}, set()
    for path, layer, parent in _walk(model):
        shape = getattr(_output(parent, layer), "shape", ())
        if height is None or len(shape) != 4 or not shape[1]:
            continue
        ends[shape[1]] = path
        if layer.weights:
            weighted.add(shape[1])
    # The nearest power of two: odd heights are rounded on the way down.
    return {
        2 ** round(math.log2(height / each)): path
        for each, path in ends.items()
        if each in weighted
    }


def find_layer(model: keras.Model, path: str) -> keras.Layer:
    """Finds a layer by name, or by path through nested models.

    Raises:
        ValueError: If there is no such layer; near names are listed.
    """
    layer = model
    for name in path.split("/"):
        parent = layer
        inner = {child.name: child for child in getattr(parent, "layers", [])}
        if name not in inner:
            paths = _names(model)
            near = difflib.get_close_matches(path, paths, n=5, cutoff=0.4)
            raise ValueError(
                f"A sensing point must be a layer of {model.name!r}. "
                f"Received: {path!r}. Near names: {near or paths}."
            )
        layer = inner[name]
        if _output(parent, layer) is None:
            raise ValueError(
                "A sensing point must be a layer that the network calls once "
                f"and that has one output. Received: {path!r} of "
                f"{model.name!r}, where {name!r} is not. Choose another layer."
            )
    return layer


def require_graph(model: keras.Model) -> None:
    """Raises unless a model has a graph of layers and one output."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise TypeError(
            "A network must be a built functional or sequential keras.Model. "
            f"Received: {model!r} of type {type(model).__name__}. "
            "Give it a keras.Input."
        )
    if len(model.outputs) != 1:
        raise ValueError(
            "A network must have one output, its class scores. "
            f"Received: {model.name!r} with {len(model.outputs)} outputs."
        )


def _with_features(
    model: keras.Model, paths: Sequence[str], split: Split | None
) -> keras.Model:
    """Builds the model that gives predictions and features at once."""
    for path in paths:
        find_layer(model, path)
    inputs, outputs = _inputs(model), model.outputs[0]
    if split is None and all("/" not in path for path in paths):
        maps = [_output(model, model.get_layer(path)) for path in paths]
        return keras.Model(inputs, {"outputs": outputs, "maps": maps})

    # A nested model's inner tensors belong to a graph of its own, and a fork
    # changes what comes behind it. So the layers are called once more, with an
    # extractor in the place of a nested model.
    inner = {}
    for path in paths:
        head, _, rest = path.partition("/")
        if rest:
            inner.setdefault(head, []).append(rest)
    extractors = {
        head: _with_features(model.get_layer(head), rests, split)
        for head, rests in inner.items()
    }
    maps, forks = {}, {}

    def call(layer, *args, **kwargs):
        name = layer.name
        result = extractors.get(name, layer)(*args, **kwargs)
        if name in extractors:
            inside = [f"{name}/{rest}" for rest in inner[name]]
            maps.update(zip(inside, result["maps"], strict=True))
            if split is not None:
                forks.update(zip(inside, result["forks"], strict=True))
            result = result["outputs"]
        if name in paths:
            if split is not None:
                result, forks[name] = _Fork(split, name)(result)
            maps[name] = result
        return result

    again = keras.models.clone_model(
        keras.Model(inputs, outputs),
        clone_function=lambda layer: layer,
        call_function=call,
    )
    found = {
        "outputs": again.outputs[0],
        "maps": [maps[path] for path in paths],
    }
    if split is not None:
        found["forks"] = [forks[path] for path in paths]
    return keras.Model(_inputs(again), found)


class _Fork(keras.Layer):
    """Gives its input twice, as `split` does."""

    def __init__(self, split: Split, name: str):
        super().__init__(name=f"{name}_fork", autocast=False)
        self._split = split

    def call(self, inputs):
        return self._split(inputs)


def _with_head(
    extractor: keras.Model, needs: Collection[str], name: str
) -> keras.Model:
    """Adds logits and embedding to what an extractor gives."""
    found = dict(extractor.output)
    layer, inputs = _last_call(found["outputs"])
    if "logits" in needs:
        found["logits"] = _before_activation(layer, inputs, found["outputs"])
    if "embedding" in needs:
        while inputs is not None and not layer.weights:
            layer, inputs = _last_call(inputs)
        if inputs is None or len(inputs.shape) != 2:
            raise ValueError(
                "A method that reads the embedding must get networks whose "
                "classifier is a layer of vectors (batch, D) in the outermost "
                f"graph. Received: {name!r}, where it is not. Choose another "
                "method, or end the network in a Dense layer."
            )
        found["embedding"] = inputs
    return keras.Model(_inputs(extractor), found)


def _before_activation(
    layer: keras.Layer,
    inputs: keras.KerasTensor,
    outputs: keras.KerasTensor,
) -> keras.KerasTensor:
    """What the last layer's softmax or sigmoid gets; else its output."""
    squashing = (keras.activations.softmax, keras.activations.sigmoid)
    if isinstance(layer, keras.layers.Softmax):
        return inputs
    if getattr(layer, "activation", None) not in squashing:
        return outputs
    if isinstance(layer, keras.layers.Activation):
        return inputs
    if isinstance(layer, keras.layers.Dense):
        return _Linear(layer)(inputs)
    raise ValueError(
        "A method that reads logits must get networks that end in logits, a "
        "Dense layer, or a softmax or sigmoid of its own. Received: a last "
        f"layer {layer.name!r} of type {type(layer).__name__} with the "
        f"activation {layer.activation.__name__!r}. Move the activation to a "
        "layer of its own."
    )


class _Linear(keras.Layer):
    """A dense layer without its activation, by the same weights."""

    def __init__(self, dense: keras.layers.Dense):
        super().__init__(name=f"{dense.name}_linear", dtype=dense.dtype_policy)
        self._dense = dense

    def call(self, inputs):
        x = keras.ops.matmul(inputs, self._dense.kernel)
        return x if self._dense.bias is None else x + self._dense.bias


def _last_call(
    tensor: keras.KerasTensor,
) -> tuple[keras.Layer, keras.KerasTensor | None]:
    """The layer that gives a tensor, and its input if it has just one."""
    layer, node_index, _ = tensor._keras_history
    inputs = layer._inbound_nodes[node_index].input_tensors
    if isinstance(layer, _Fork):
        return _last_call(inputs[0])
    return layer, inputs[0] if len(inputs) == 1 else None


def _walk(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.Layer, keras.Model]]:
    """Yields path, layer and the model that calls it, front end first."""
    for layer in model.layers:
        if getattr(_graph(layer), "inputs", None):
            yield from _walk(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer, model


def _names(model: keras.Model) -> list[str]:
    return [path for path, _, _ in _walk(model)]


def _graph(model: keras.Layer) -> keras.Layer:
    """The functional model inside of a sequential one; else the same."""
    return getattr(model, "_functional", None) or model


def _inputs(model: keras.Model):
    """A model's inputs in the structure that it is called with."""
    inputs = _graph(model).input
    single = isinstance(inputs, (list, tuple)) and len(inputs) == 1
    return inputs[0] if single else inputs


def _output(model: keras.Model, layer: keras.Layer) -> keras.KerasTensor | None:
    """The symbolic output of a layer that `model` calls once; else `None`.

    Not `layer.output`, which is of the first call ever: it may belong to
    another model's graph, or to a sequential one before its last `add`.
    """
    by_depth = getattr(_graph(model), "_nodes_by_depth", {})
    outputs = [
        tensor
        for nodes in by_depth.values()
        for node in nodes
        if node.operation is layer
        for tensor in node.output_tensors
    ]
    return outputs[0] if len(outputs) == 1 else None
