"""Feature maps to one unit vector a sample."""

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_mhgd import linalg
from keras_mhgd.features import Features
from keras_mhgd.linalg.directions import unit
from keras_mhgd.linalg.precision import as_float

_STUDENT_VECTORS = 4


def teacher_vector(feature: tf.Tensor) -> tf.Tensor:
    """Compresses a teacher's feature to its first right singular vector.

    Args:
        feature: Maps `(batch, height, width, D)`, of videos too, sequences
            `(batch, length, D)` or vectors `(batch, D)`, which are normalised
            only.

    Returns:
        Unit vectors `(batch, D)`, float32 or float64, no gradient. Their
        signs are those that the solver gives: see `fixed_signs`.
    """
    feature = tf.stop_gradient(feature)
    if feature.shape.rank == 2:
        return unit(feature)
    return linalg.right_singular_vectors(_matrices(feature), 1)[:, :, 0]


def fixed_signs(vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Gives vectors the sign that makes their components' sum not negative.

    Args:
        vectors: `(batch, D)` each.

    Returns:
        The vectors, each of them the same or its negative.
    """
    return [
        tf.where(tf.reduce_sum(each, 1, keepdims=True) < 0, -each, each)
        for each in vectors
    ]


def student_vector(
    feature: tf.Tensor, teacher: tf.Tensor, gradient: str = "exact"
) -> tf.Tensor:
    """Compresses a student's feature, aligned to the teacher's vector.

    Of the four leading right singular vectors takes the one nearest to the
    teacher's, see `keras_mhgd.linalg.align`.

    Args:
        feature: As in `teacher_vector`.
        teacher: The teacher's unit vectors `(batch, D)`.
        gradient: As in `keras_mhgd.linalg.right_singular_vectors`.

    Returns:
        Unit vectors `(batch, D)`; float64 if one of both is, else float32.
    """
    feature = tf.convert_to_tensor(feature)
    if feature.shape.rank == 2:
        return unit(feature)
    matrices = _matrices(feature)
    vectors = linalg.right_singular_vectors(
        matrices, _STUDENT_VECTORS, gradient=gradient
    )
    return linalg.align(as_float(vectors, teacher), as_float(teacher, vectors))


def teacher_vectors(features: Features) -> list[tf.Tensor]:
    """Compresses all of a teacher's maps, unless they are already.

    Args:
        features: With `maps` as in `teacher_vector`, or with `vectors`.

    Returns:
        Unit vectors `(batch, D)` of each sensing point.
    """
    if features.vectors is not None:
        return features.vectors
    return [teacher_vector(feature) for feature in features.maps]


def student_vectors(
    maps: Sequence[tf.Tensor],
    teacher: Sequence[tf.Tensor],
    gradient: str = "exact",
) -> list[tf.Tensor]:
    """Compresses all of a student's maps, aligned to the teacher's vectors.

    Args:
        maps: Features as in `student_vector`, with the teacher's channels.
        teacher: What `teacher_vectors` gives.
        gradient: As in `student_vector`.

    Returns:
        Unit vectors `(batch, D)` of each sensing point.
    """
    return [
        student_vector(feature, vector, gradient)
        for feature, vector in zip(maps, teacher, strict=True)
    ]


def _matrices(feature: tf.Tensor) -> tf.Tensor:
    *positions, depth = feature.shape[1:]
    if len(positions) == 1:
        return feature
    if None in positions:
        return tf.reshape(feature, (tf.shape(feature)[0], -1, depth))
    return tf.reshape(feature, (-1, math.prod(positions), depth))
