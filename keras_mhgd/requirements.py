"""Checks that student, teacher and data fit each other."""

import collections.abc
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.outputs import Heads


def warn_of_random_layers(student: keras.Model, found: Sequence[str]) -> None:
    """Warns of random layers that augment only the student's inputs."""
    if found:
        warnings.warn(
            "Student and teacher should see the same view of a sample. "
            f"Received: {student.name!r} with random layers inside, {found}, "
            "which only the student trains with. Augment the data instead, as "
            "in data.map(lambda x, y: (augment(x, training=True), y)).",
            stacklevel=4,
        )


def require_trainable(student: keras.Model) -> None:
    """Raises unless the student's weights can train."""
    if not student.trainable_variables:
        raise ValueError(
            "`student` must have weights that train. Received: "
            f"{student.name!r}, which has none. Set student.trainable = True."
        )
    fixed = [
        layer.name
        for layer in student._flatten_layers()
        if getattr(layer, "quantization_mode", None)
        and not getattr(layer, "lora_enabled", False)
        and layer.trainable
    ]
    if fixed:
        raise ValueError(
            "`student` must have weights that train. Received: "
            f"{fixed}, which are quantized: only their biases would. Quantize "
            "the student after the training, or call `enable_lora` on them."
        )


def require_nothing_shared(student: keras.Model, teacher: keras.Model) -> None:
    """Raises if training the student would change the teacher."""
    theirs = {id(variable) for variable in teacher.variables}
    frozen = {
        id(variable)
        for layer in student._flatten_layers()
        if not layer.trainable
        for variable in layer.variables
    }
    shared = {
        variable.path
        for variable in student.variables
        if id(variable) in theirs - frozen
        # A shared seed of a random layer doesn't change a teacher's outputs.
        and tf.as_dtype(variable.dtype).is_floating
    }
    if shared:
        raise ValueError(
            "Student and teacher must not share weights that train: the "
            f"teacher would change. Received: {sorted(shared)[:4]} in both "
            f"{student.name!r} and {teacher.name!r}. Give the teacher layers "
            "of its own with keras.models.clone_model and set_weights, or "
            "freeze the shared layers."
        )


def require_same_classes(
    heads: Heads, student: Features, teacher: Features
) -> None:
    """Raises unless two networks have the same outputs and classes."""
    ours = heads.split(student.outputs)
    try:
        theirs = heads.split(teacher.outputs)
    except ValueError as error:
        raise ValueError(
            "Student and teacher must have the same outputs. Received: "
            f"{student.outputs} of the student, {teacher.outputs} of the "
            "teacher. Name and order them alike."
        ) from error
    for head in heads.names:
        if ours[head] is None or theirs[head] is None:
            raise ValueError(
                "Student and teacher must have the same outputs. Received: "
                f"{student.outputs} of the student, {teacher.outputs} of the "
                "teacher. Name and order them alike."
            )
        if ours[head][-1:] != theirs[head][-1:]:
            raise ValueError(
                "Student and teacher must have the same number of classes. "
                f"Received: outputs {ours[head][1:]} of the student, "
                f"{theirs[head][1:]} of the teacher. Take a teacher of these "
                "classes, or train a new last layer for it first."
            )


def require_repeatable(x: Any) -> None:
    """Raises if the data can be iterated over only once."""
    if isinstance(x, collections.abc.Iterator):
        raise ValueError(
            "`x` must be data that can be gone through again, since the method "
            "learns from it before the student does. Received: an iterator of "
            f"type {type(x).__name__}, of which nothing has been taken. Pass "
            "arrays, a tf.data.Dataset or a keras.utils.PyDataset, or call "
            "`prepare` with such data first."
        )


def require_learning_teacher(
    method: str, teachers: Sequence[keras.Model], heads: Heads
) -> None:
    """Raises unless there is one trainable teacher with one output."""
    if len(teachers) > 1 or heads.several:
        raise ValueError(
            f"`teacher` must be one network with one output, since {method} "
            f"trains it along. Received: {len(teachers)} teacher(s) with "
            f"{len(heads.names)} output(s). Choose another method, such as "
            "'soft_logits'."
        )
    if not teachers[0].trainable_variables:
        raise ValueError(
            f"`teacher` must be trainable, since {method} "
            f"trains it along. Received: {teachers[0].name!r}, which is "
            "frozen. Set teacher.trainable = True."
        )
