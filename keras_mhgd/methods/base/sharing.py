"""A replica's shares of a method's terms."""

import tensorflow as tf

from keras_mhgd.distribution import replicas
from keras_mhgd.features import Features
from keras_mhgd.methods.base.method import Method


def shares(
    method: Method,
    student: Features,
    teacher: Features,
    labels: tf.Tensor | None,
) -> dict[str, tf.Tensor]:
    """Computes a replica's shares of the terms of a batch.

    Args:
        method: The method; its `spans` say how.
        student: The student's features of this replica's part.
        teacher: The teacher's `targets`.
        labels: The labels.

    Returns:
        A scalar for each of `terms`: over the replicas they add up to the
        terms of the whole batch.
    """
    student, teacher = method.reduce(student, teacher)
    # Padding is unevenly spread: its means are those of the whole batch.
    padded = method.needs.points and (
        student.masks is not None or teacher.masks is not None
    )
    if method.spans == "replica":
        return method(student, teacher, labels)
    if method.spans == "sample" and not padded:
        part = replicas.share_of(_count(method, student))
        terms = method(student, teacher, labels)
        return {name: part * terms[name] for name in terms}
    terms = method(*replicas.joined((student, teacher, labels)))
    return {name: replicas.share(terms[name]) for name in terms}


def update(
    method: Method,
    student: Features,
    teacher: Features,
    labels: tf.Tensor | None,
) -> None:
    """Calls a method's `update` for the whole batch: see `shares`."""
    if type(method).update is Method.update:
        return  # what it would get is not computed for nothing
    reduced = method.reduce(student, teacher)
    method.update(*replicas.joined((*reduced, labels)))


def _count(method: Method, student: Features) -> tf.Tensor:
    """Counts what the means of a method are over: rows, or samples."""
    if method.needs.logits and student.weights is not None:
        return tf.reduce_sum(student.weights)
    first = student.logits if method.needs.logits else student.outputs
    first = tf.nest.flatten(first)[0]
    return tf.shape(replicas.with_samples(first))[0]
