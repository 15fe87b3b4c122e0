"""What one batch is to a student and to its teacher."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.features.augmentation import split_augmentation
from keras_mhgd.features.layers import (
    augments,
    input_specs,
    is_graph,
    random_layers,
    symbolic_inputs,
)

Shape = tuple[int | None, ...]
Preprocessor = Callable[..., Any] | str | None

# What Keras calls an input that nobody named; the last is of Keras 2.
_AUTOMATIC = re.compile(r"(keras_tensor|input_layer|input)(_\d+)?(CLONE)*")


class Inputs:
    """Makes a teacher's inputs of a batch that is in the student's form.

    Single inputs belong together. Several are matched by name: the keys of a
    dict and the names that `keras.Input` was given. Names that Keras made,
    such as `keras_tensor_3`, don't count. If equally many inputs are left on
    both sides, they are paired in the order in which the networks were given
    them.

    A batch may be a dict with more keys than the student takes. An input of
    the teacher that has a key of its own there is taken from it.

    What a subclassed network takes may not be known: then a batch is passed as
    it is.

    Args:
        student: A built network.
        teacher: Another.
        matched: Whether the teacher's inputs are the student's. If not, each
            network takes the batch by itself.

    Attributes:
        pairs: (student input, teacher input) names that were paired by their
            order, though they differ.
        student_shapes: The shapes `(None, ...)` of the student's inputs in
            flattened order. A size that only the teacher knows is filled in.
            Empty if not known.
        teacher_shapes: The same of the teacher.

    Raises:
        ValueError: If an input of the teacher has no partner, or one of
            another shape.

    Example:
        >>> inputs = keras_mhgd.features.Inputs(student, teacher)
        >>> logits = student(inputs.student(images))
        >>> targets = teacher(inputs.teacher(images))
    """

    def __init__(
        self, student: keras.Model, teacher: keras.Model, matched: bool = True
    ):
        self._student, self._teacher = _Form(student), _Form(teacher)
        ours, theirs = self._student.inputs, self._teacher.inputs
        self.pairs: list[tuple[str, str]] = []
        self.student_shapes = [each.shape for each in ours]
        self.teacher_shapes = [each.shape for each in theirs]
        self._sources = None
        if not (matched and ours and theirs):
            return
        self._sources = self._matched()
        for its, mine in self._sources.items():
            shape = _merged(ours[mine], theirs[its])
            if shape is None:
                raise self._other_shape(ours[mine], theirs[its])
            self.student_shapes[mine] = self.teacher_shapes[its] = shape

    def student(self, x: Any) -> Any:
        """Makes the student's inputs of a batch.

        Args:
            x: The batch: what the student takes; of a dict, with any other
                keys.

        Returns:
            What the student takes.

        Raises:
            ValueError: If the batch lacks an input, or has text where the
                network takes numbers.
        """
        return self._student.taken(x)

    def teacher(self, x: Any) -> Any:
        """Makes the teacher's inputs of a batch, as `student` does."""
        if self._sources is None:
            return self._teacher.taken(x)
        own = keras.tree.flatten(self._student.taken(x))
        keys = x if isinstance(x, dict) else {}
        found = {}
        for index, each in enumerate(self._teacher.inputs):
            if each.name in keys:
                found[index] = keys[each.name]
            elif self._sources.get(index, len(own)) < len(own):
                found[index] = own[self._sources[index]]
        return self._teacher.packed(found, x)

    def _matched(self) -> dict[int, int]:
        """For inputs of the teacher, by index, the index of the student's."""
        ours, theirs = self._student, self._teacher
        by_name = {
            each.name: mine
            for mine, each in enumerate(ours.inputs)
            if each.name
        }
        found = {
            its: by_name[each.name]
            for its, each in enumerate(theirs.inputs)
            if each.name in by_name
        }
        mine_left = [each for each in ours.order if each not in found.values()]
        its_left = [each for each in theirs.order if each not in found]
        if len(mine_left) == len(its_left):
            for mine, its in zip(mine_left, its_left, strict=True):
                found[its] = mine
                pair = ours.inputs[mine], theirs.inputs[its]
                if len(ours.inputs) > 1 and any(each.name for each in pair):
                    self.pairs.append(tuple(each.label for each in pair))
        elif its_left and (mine_left or not isinstance(ours.structure, dict)):
            raise ValueError(
                "The teacher's inputs must have the names of the student's, or "
                f"be as many. Received: {ours.labels} of {ours.name!r}, "
                f"{theirs.labels} of {theirs.name!r}. Rename the inputs, or "
                "pass `teacher_preprocessor=` a function that makes the "
                "teacher's inputs of a batch."
            )
        return found

    def _other_shape(self, mine: "_Input", its: "_Input") -> ValueError:
        made = "lambda x: ..."
        if len(mine.shape) == len(its.shape) == 4 and all(its.shape[1:3]):
            made = f"keras.layers.Resizing({its.shape[1]}, {its.shape[2]})"
        return ValueError(
            "Student and teacher must have the same input shape, unless a "
            f"preprocessor makes one of the other. Received: {mine.shape[1:]} "
            f"{mine.dtype or ''} for {mine.label!r} of {self._student.name!r}, "
            f"{its.shape[1:]} {its.dtype or ''} for {its.label!r} of "
            f"{self._teacher.name!r}. Pass what makes the teacher's input of a "
            f"batch, such as teacher_preprocessor={made}."
        )


class View(NamedTuple):
    """A batch as both networks take it.

    Attributes:
        student: What the student takes.
        teacher: What the teacher takes.
        y: Labels.
        sample_weight: Weights.
    """

    student: Any
    teacher: Any
    y: Any
    sample_weight: Any


class Views:
    """Makes what a student and its teacher take of one batch.

    A network with a preprocessor takes what that makes of the batch. If none
    has one, or both the same, they have one view of it, and the inputs are
    matched: see `Inputs`. Else each has its own view, and their inputs may
    differ in shape and kind.

    Preprocessors run in inference mode, so that a random one can't show the
    networks different things. They are a part of the step's graph.

    Random augmentation that the student starts with goes before both networks
    if they have one view: they see the same in training too.

    Args:
        student: A built network.
        teacher: Another.
        student_preprocessor: A function or Keras layer that is applied to a
            batch `x`. One with arguments `y` and `sample_weight` gets these
            as well, and may give `x`, `(x, y)` or `(x, y, sample_weight)`.
            `None` is the network's own, which KerasHub's tasks have as
            `preprocessor`. `keras.layers.Identity()` switches that off.
            `"teacher"` is the teacher's.
        teacher_preprocessor: The same; `"student"` is the student's. Labels
            that it makes are left out.

    Attributes:
        given: The two arguments by name, to be saved and tracked. One that is
            the other network's is its name, so that it stays the same object.
        pairs: See `Inputs`.
        student_shapes: See `Inputs`.
        teacher_shapes: See `Inputs`.
        network: What takes `View.student` in training: the student without
            the augmentation that goes before both. It shares all layers.
        unshared: Paths of layers in it that augment still, of which the
            teacher doesn't see the result.

    Raises:
        TypeError: If a preprocessor can't be called.
        ValueError: If one augments at random, or if one view doesn't fit both
            networks.

    Example:
        >>> views = keras_mhgd.features.Views(
        ...     student,
        ...     teacher,
        ...     teacher_preprocessor=keras.layers.Rescaling(2.0, -1.0),
        ... )
        >>> view = views(images, labels)
        >>> logits, targets = student(view.student), teacher(view.teacher)
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        student_preprocessor: Preprocessor = None,
        teacher_preprocessor: Preprocessor = None,
    ):
        mine = _preprocessor("student", student_preprocessor, student)
        its = _preprocessor("teacher", teacher_preprocessor, teacher)
        if mine == "teacher" and its == "student":
            raise ValueError(
                "Only one of the preprocessors may be the other's. Received: "
                f"student_preprocessor={mine!r}, teacher_preprocessor={its!r}. "
                "Give one of them a function or layer."
            )
        if mine == "teacher":
            mine = its
        if its == "student":
            its = mine
        self.is_one = mine is its
        self.given = _references(
            _unless_own(student_preprocessor, student),
            _unless_own(teacher_preprocessor, teacher),
            shared=self.is_one and mine is not None,
        )
        self._student, self._teacher = mine, its
        self._saved = _own(student), _own(teacher), *self.given.values()
        self._inputs = Inputs(student, teacher, matched=self.is_one)
        self.pairs = self._inputs.pairs
        self.student_shapes = self._inputs.student_shapes
        self.teacher_shapes = self._inputs.teacher_shapes
        parts = split_augmentation(student)
        self._augment = parts.augment if self.is_one else None
        self.network = parts.network if self.is_one else student
        self.unshared = random_layers(self.network)

    def __call__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> View:
        """Makes both views of a batch, each once.

        Args:
            x: The batch.
            y: Its labels, or `None`.
            sample_weight: Its weights, or `None`.
            training: Whether the student's augmentation is applied.

        Returns:
            Both views, with the labels and weights for the student.
        """
        seen, y, sample_weight = self._seen(x, y, sample_weight, training)
        other = seen if self.is_one else _applied(self._teacher, x)[0]
        return View(
            self._inputs.student(seen),
            self._inputs.teacher(other),
            y,
            sample_weight,
        )

    def student(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> tuple[Any, Any, Any]:
        """Makes the student's view alone: `x`, `y` and `sample_weight`."""
        x, y, sample_weight = self._seen(x, y, sample_weight, training)
        return self._inputs.student(x), y, sample_weight

    def _seen(self, x, y, sample_weight, training) -> tuple[Any, Any, Any]:
        x, y, sample_weight = _applied(self._student, x, y, sample_weight)
        if training and self._augment is not None:
            x = self._augment(x, training=True)
        return x, y, sample_weight

    def teacher(self, x: Any) -> Any:
        """Makes the teacher's view alone, of the raw batch."""
        return self._inputs.teacher(_applied(self._teacher, x)[0])

    @property
    def supports_jit(self) -> bool:
        """Whether XLA compiles the preprocessors: it does not handle text."""
        return not any(
            not layer.supports_jit or hasattr(layer, "tokenize")
            for each in (self._student, self._teacher)
            for layer in _layers(each)
        )

    def get_config(self) -> dict[str, Any]:
        """Serializes the two arguments.

        Raises:
            ValueError: If one is a function that can't be loaded again, or if
                two share a layer with a file of its own, such as a vocabulary.
        """
        _require_apart(self._saved)
        return {
            name: _serialized(name, each) for name, each in self.given.items()
        }


def _own(network: keras.Model) -> Any:
    """What a KerasHub task runs before it, but not in its `call`."""
    if not hasattr(network, "preprocess_samples"):
        return None
    return getattr(network, "preprocessor", None)


def _unless_own(preprocessor: Preprocessor, network: keras.Model) -> Any:
    return None if preprocessor is _own(network) else preprocessor


def _references(mine: Any, its: Any, shared: bool) -> dict[str, Any]:
    """Arguments that give the same when their objects are loaded apart."""
    if shared and its is None and mine is not None:
        mine = "teacher"
    elif shared and its is not None and mine != "teacher":
        its = "student"
    return {"student_preprocessor": mine, "teacher_preprocessor": its}


def _preprocessor(
    part: str, preprocessor: Preprocessor, network: keras.Model
) -> Preprocessor:
    """What runs before a network, or whose; `None` if nothing does."""
    name, other = f"{part}_preprocessor", _OTHER[part]
    if preprocessor is None:
        preprocessor = _own(network)
    if preprocessor == other or preprocessor is None:
        return preprocessor
    if not callable(preprocessor):
        raise TypeError(
            f"`{name}` must be a function, a Keras layer, {other!r} or None. "
            f"Received: {preprocessor!r}."
        )
    random = [each.name for each in _layers(preprocessor) if augments(each)]
    if random:
        raise ValueError(
            f"`{name}` must not augment at random: teacher and student would "
            f"see different views, so it runs in inference mode, where {random}"
            " do nothing. Received: these layers. Augment the data set, as in "
            "data.map(lambda x, y: (augment(x, training=True), y))."
        )
    # It switches off what a network has, and then there is nothing to run.
    return None if type(preprocessor) is keras.layers.Identity else preprocessor


_OTHER = {"student": "teacher", "teacher": "student"}


def _layers(preprocessor: Any) -> list[keras.Layer]:
    if not isinstance(preprocessor, keras.Layer):
        return []
    return list(preprocessor._flatten_layers())


def _applied(
    preprocessor: Any, x: Any, y: Any = None, sample_weight: Any = None
) -> tuple[Any, Any, Any]:
    """What a preprocessor makes of a batch."""
    if preprocessor is None:
        return x, y, sample_weight
    arguments = _arguments(preprocessor)
    options = {}
    if isinstance(preprocessor, keras.Layer) and "training" in arguments:
        options["training"] = False
    if not {"y", "sample_weight"} <= arguments:
        return preprocessor(x, **options), y, sample_weight
    made = preprocessor(x, y=y, sample_weight=sample_weight, **options)
    x, new_y, new_weight = keras.utils.unpack_x_y_sample_weight(made)
    return (
        x,
        y if new_y is None else new_y,
        sample_weight if new_weight is None else new_weight,
    )


def _arguments(preprocessor: Any) -> set[str]:
    is_layer = isinstance(preprocessor, keras.Layer)
    called = preprocessor.call if is_layer else preprocessor
    try:
        return set(inspect.signature(called).parameters)
    except ValueError:  # one that is not written in Python
        return set()


def _require_apart(preprocessors: Sequence[Any]) -> None:
    """Raises if a layer of two, that is saved once, can't be loaded twice."""
    seen: dict[int, keras.Layer] = {}
    for preprocessor in preprocessors:
        own = {
            id(layer): layer
            for layer in _layers(preprocessor)
            if layer.variables or hasattr(layer, "save_assets")
        }
        shared = [layer.name for key, layer in own.items() if key in seen]
        if shared:
            raise ValueError(
                "Preprocessors must not share layers to be saved: Keras saves "
                f"one and loads two. Received: {shared} in two of them. Make "
                "each its own, or pass teacher_preprocessor='student' and set "
                "teacher.preprocessor = None."
            )
        seen |= own


def _serialized(name: str, preprocessor: Preprocessor) -> Any:
    is_code = inspect.isroutine(preprocessor)
    known = preprocessor if is_code else type(preprocessor)
    registered = keras.saving.get_registered_name(known)
    if (
        isinstance(preprocessor, keras.Layer | str | None)
        or keras.saving.get_registered_object(registered) is known
    ):
        return keras.saving.serialize_keras_object(preprocessor)
    raise ValueError(
        f"`{name}` must be a Keras layer or a registered function to be saved. "
        f"Received: {preprocessor!r}. Decorate it with "
        "@keras.saving.register_keras_serializable(), or save "
        "`distiller.student`."
    )


def text_as_tensors(x: Any) -> Any:
    """Makes tensors of the text in `x`, which Keras takes as nothing else.

    Args:
        x: Arrays or lists of strings, in a dict or tuple or alone; all else is
            left as it is.

    Returns:
        The same structure.
    """
    if isinstance(x, dict):
        return {key: text_as_tensors(each) for key, each in x.items()}
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        return tuple(text_as_tensors(each) for each in x)
    is_list = isinstance(x, list) and all(isinstance(each, str) for each in x)
    is_array = isinstance(x, np.ndarray) and (
        x.dtype.kind in "US"
        or x.dtype.kind == "O"
        and all(isinstance(each, str | bytes) for each in x.flat)
    )
    return tf.constant(x) if is_list or is_array else x


class _Input(NamedTuple):
    """One input of a network.

    Attributes:
        label: What it is called in messages.
        name: Its key in a dict, or the name that it was given, if any.
        shape: `(None, ...)`.
        dtype: Its dtype's name; `None` if not known.
    """

    label: str
    name: str | None
    shape: Shape
    dtype: str | None


class _Form:
    """What a network takes: its inputs in their structure."""

    def __init__(self, network: keras.Model):
        self.name = network.name
        known = is_graph(network)
        self.structure = (
            symbolic_inputs(network) if known else input_specs(network)
        )
        leaves = [
            (path, tensor)
            for path, tensor in keras.tree.flatten_with_path(self.structure)
            if tensor is not None
        ]
        self.inputs = [_input(path, tensor, known) for path, tensor in leaves]
        self.labels = [each.label for each in self.inputs]
        self._is_flat = all(len(path) < 2 for path, _ in leaves)
        # Flattened, a dict is sorted: here it is in the order it was given.
        self.order = list(range(len(leaves)))
        if isinstance(self.structure, dict):
            given = list(self.structure)
            self.order.sort(key=lambda index: given.index(leaves[index][0][0]))

    def taken(self, x: Any) -> Any:
        """What the network takes of a batch: of a dict not all keys."""
        if not (self._is_flat and self.inputs and isinstance(x, dict)):
            self._require_kind(keras.tree.flatten(x))
            return x
        found = {
            index: x[each.name]
            for index, each in enumerate(self.inputs)
            if each.name in x
        }
        return self.packed(found, x)

    def packed(self, found: dict[int, Any], x: Any) -> Any:
        """Gives tensors, by index, the structure of the inputs."""
        missing = [
            each.label
            for index, each in enumerate(self.inputs)
            if index not in found
        ]
        if missing:
            received = list(x) if isinstance(x, dict) else type(x).__name__
            raise ValueError(
                f"A batch must have all inputs of {self.name!r}: "
                f"{self.labels}. Received: {received}, without {missing}. Add "
                "them, or pass `student_preprocessor=` or "
                "`teacher_preprocessor=` a function that makes the network's "
                "inputs of a batch."
            )
        flat = [found[index] for index in range(len(self.inputs))]
        self._require_kind(flat)
        return keras.tree.pack_sequence_as(self.structure, flat)

    def _require_kind(self, tensors: list[Any]) -> None:
        for each, tensor in zip(self.inputs, tensors, strict=False):
            kind = getattr(tensor, "dtype", None)
            if kind == tf.string and each.dtype not in (None, "string"):
                raise ValueError(
                    f"{self.name!r} must get numbers. Received: text for "
                    f"{each.label!r}. Pass `student_preprocessor=` or "
                    "`teacher_preprocessor=` what makes numbers of text, such "
                    "as the preprocessor of a KerasHub task."
                )


def _input(path: tuple[Any, ...], tensor: Any, known: bool) -> _Input:
    name = tensor.name
    if path and isinstance(path[-1], str):
        name = path[-1]
    elif name and _AUTOMATIC.fullmatch(name):
        name = None
    label = name or "input" + "".join(f"[{each}]" for each in path)
    dtype = tf.as_dtype(tensor.dtype).name if known else None
    return _Input(label, name, (None, *tensor.shape[1:]), dtype)


def _merged(mine: _Input, its: _Input) -> Shape | None:
    """The shape with all known sizes; `None` if they or the kinds differ."""
    text = [each.dtype == "string" for each in (mine, its) if each.dtype]
    if len(mine.shape) != len(its.shape) or len(set(text)) == 2:
        return None
    sizes = list(zip(mine.shape, its.shape, strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in sizes):
        return None
    return tuple(ours if its is None else its for ours, its in sizes)
