"""Preprocesses a batch for a student and for its teacher."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.features.augmentation import split_augmentation
from keras_mhgd.features.inputs import Inputs
from keras_mhgd.features.layers import augments, random_layers

Preprocessor = Callable[..., Any] | str | None
"""A function or layer; the name of the network that has it; `None`: its own."""


class View(NamedTuple):
    """Holds a batch in the forms that both networks take.

    Attributes:
        student: The student's inputs.
        teacher: The teacher's inputs.
        y: Labels.
        sample_weight: Weights of the samples.
    """

    student: Any
    teacher: Any
    y: Any
    sample_weight: Any


class Views:
    """Makes the inputs of a student and its teacher from one batch.

    A preprocessor is applied to the batch before its network. If neither
    network has a preprocessor, or both share one, the networks have one view
    of the batch. Then the teacher's inputs are matched with the student's: see
    `Inputs`. Otherwise each network has its own view, and the inputs may
    differ in shape and kind.

    Preprocessors run in inference mode. So a random preprocessor cannot give
    the networks different inputs. Preprocessors are part of the step's graph.

    If the networks have one view, random augmentation at the student's start
    is applied before both networks. So both see the same augmented images in
    training.

    Args:
        student: A built network.
        teacher: Another built network.
        student_preprocessor: A function or Keras layer that is applied to a
            batch `x`. If it has arguments `y` and `sample_weight`, these are
            passed as well, and it may return `x`, `(x, y)` or
            `(x, y, sample_weight)`. `None` means the network's own
            preprocessor, which KerasHub's tasks have as `preprocessor`.
            `keras.layers.Identity()` switches that off. `"teacher"` means the
            teacher's preprocessor.
        teacher_preprocessor: Likewise. `"student"` means the student's
            preprocessor. Labels that the teacher's preprocessor makes are
            ignored.

    Attributes:
        given: The two arguments by name, to be saved and tracked. If the
            networks share a preprocessor, one argument is the name of the
            other network. So they still share one object after loading.
        pairs: See `Inputs`.
        student_shapes: See `Inputs`.
        teacher_shapes: See `Inputs`.
        network: The model that takes `View.student` in training: the student
            without the augmentation that is applied before both networks. It
            shares all layers with the student.
        unshared: Paths of layers in `network` that still augment. The teacher
            does not see the images that they augment.

    Raises:
        TypeError: If a preprocessor can't be called.
        ValueError: If a preprocessor augments at random, if each is to be the
            other's, or if one view doesn't fit both networks.

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
        """Makes both views of a batch, with one run of each preprocessor.

        Args:
            x: The batch.
            y: Its labels, or `None`.
            sample_weight: Its weights, or `None`.
            training: Whether the student's augmentation is applied.

        Returns:
            Both views, with the student's labels and weights.
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
        """Makes only the student's view.

        Args:
            x: The batch.
            y: Its labels, or `None`.
            sample_weight: Its weights, or `None`.
            training: Whether the student's augmentation is applied.

        Returns:
            The student's inputs, labels and weights.
        """
        x, y, sample_weight = self._seen(x, y, sample_weight, training)
        return self._inputs.student(x), y, sample_weight

    def labels(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Gives the specs of the labels after the student's preprocessor.

        Args:
            x: `tf.TensorSpec` of each input.
            y: Those of the labels, or `None`.
            sample_weight: That of the weights, or `None`.

        Returns:
            `tf.TensorSpec` of the labels, in their structure, or `None`.
        """
        if self._student is None:
            return y
        run = tf.function(
            functools.partial(_applied, self._student), autograph=False
        )
        traced = run.get_concrete_function(x, y, sample_weight)
        return traced.structured_outputs[1]

    def _seen(self, x, y, sample_weight, training) -> tuple[Any, Any, Any]:
        x, y, sample_weight = _applied(self._student, x, y, sample_weight)
        if training and self._augment is not None:
            x = self._augment(x, training=True)
        return x, y, sample_weight

    def teacher(self, x: Any) -> Any:
        """Makes only the teacher's view.

        Args:
            x: The batch, before any preprocessor.

        Returns:
            The teacher's inputs.
        """
        return self._inputs.teacher(_applied(self._teacher, x)[0])

    @property
    def supports_jit(self) -> bool:
        """Whether XLA can compile the preprocessors; XLA can't handle text."""
        return not any(
            not layer.supports_jit or hasattr(layer, "tokenize")
            for each in (self._student, self._teacher)
            for layer in _layers(each)
        )

    def get_config(self) -> dict[str, Any]:
        """Serializes the two arguments.

        Raises:
            ValueError: If a preprocessor is a function that can't be loaded
                again. Also if two preprocessors share a layer that has
                variables or files of its own, such as a vocabulary.
        """
        _require_apart(self._saved)
        return {
            name: _serialized(name, each) for name, each in self.given.items()
        }


def _own(network: keras.Model) -> Any:
    """Gives a KerasHub task's preprocessor, which its `call` does not run."""
    if not hasattr(network, "preprocess_samples"):
        return None
    return getattr(network, "preprocessor", None)


def _unless_own(preprocessor: Preprocessor, network: keras.Model) -> Any:
    return None if preprocessor is _own(network) else preprocessor


def _references(mine: Any, its: Any, shared: bool) -> dict[str, Any]:
    """Replaces one of two shared preprocessors by the other network's name.

    Keras loads the two arguments separately, so a shared object would become
    two.
    """
    if shared and its is None and mine is not None:
        mine = "teacher"
    elif shared and its is not None and mine != "teacher":
        its = "student"
    return {"student_preprocessor": mine, "teacher_preprocessor": its}


def _preprocessor(
    part: str, preprocessor: Preprocessor, network: keras.Model
) -> Preprocessor:
    """Gives a network's preprocessor, or the name of the network that has it.

    `None` if nothing runs before the network.
    """
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
    # An `Identity` switches off the network's own preprocessor.
    return None if type(preprocessor) is keras.layers.Identity else preprocessor


_OTHER = {"student": "teacher", "teacher": "student"}


def _layers(preprocessor: Any) -> list[keras.Layer]:
    if not isinstance(preprocessor, keras.Layer):
        return []
    return list(preprocessor._flatten_layers())


def _applied(
    preprocessor: Any, x: Any, y: Any = None, sample_weight: Any = None
) -> tuple[Any, Any, Any]:
    """Applies a preprocessor to a batch, its labels and its weights."""
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
    except ValueError:  # a function that is not written in Python
        return set()


def _require_apart(preprocessors: Sequence[Any]) -> None:
    """Raises an error if preprocessors share a layer that must be saved."""
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
    """Converts text in `x` to tensors, the only form that Keras takes.

    Args:
        x: Arrays or lists of strings, alone or in a dict or tuple. Everything
            else stays unchanged.

    Returns:
        The structure of `x`, with tensors instead of text.
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
