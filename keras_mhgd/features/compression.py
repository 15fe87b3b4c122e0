"""Compresses feature maps to one unit vector for each sample."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_mhgd import linalg
from keras_mhgd.features import Features
from keras_mhgd.linalg.directions import unit
from keras_mhgd.linalg.precision import as_float

_STUDENT_VECTORS = 4


def teacher_vector(feature: tf.Tensor) -> tf.Tensor:
    """Compresses a teacher's feature to its first right singular vector.

    Args:
        feature: Feature maps of images `(batch, height, width, D)` or of
            videos, sequences `(batch, length, D)`, or vectors `(batch, D)`.
            Vectors are only normalised.

    Returns:
        Unit vectors `(batch, D)`, float32 or float64, without gradient. Those
        of maps and sequences have the sign that makes the sum of their
        components not negative.
    """
    feature = tf.stop_gradient(feature)
    if feature.shape.rank == 2:
        return unit(feature)
    vector = linalg.right_singular_vectors(_matrices(feature), 1)[:, :, 0]
    negative = tf.reduce_sum(vector, axis=1, keepdims=True) < 0
    return tf.where(negative, -vector, vector)


def varied_signs(
    vectors: Sequence[tf.Tensor], shapes: Sequence[tuple[int | None, ...]]
) -> list[tf.Tensor]:
    """Gives singular vectors signs that vary from sample to sample.

    A singular vector has no sign of its own. The published code of MHGD takes
    the sign that its solver gives, which differs between samples although all
    components of a map after a ReLU are positive. Another solver, device or
    padding gives others. Here a vector gets the sign of its product with a
    fixed random vector whose components sum to 0: that differs between samples
    likewise, and depends on nothing else.

    Args:
        vectors: Tensors `(batch, D)`, from `teacher_vectors`.
        shapes: The shapes of the features that they were computed from. A
            feature that is a vector itself already has a sign, and keeps it.

    Returns:
        The tensors, with each vector unchanged or negated.
    """
    return [
        _by_random_vector(each) if len(shape) > 2 else each
        for each, shape in zip(vectors, shapes, strict=True)
    ]


def _by_random_vector(vectors: tf.Tensor) -> tf.Tensor:
    # NumPy keeps this generator's numbers the same in all versions.
    numbers = np.random.RandomState(0).standard_normal(vectors.shape[-1])
    # After a ReLU all vectors point much the same way: a direction across.
    numbers -= numbers.mean()
    direction = tf.constant(numbers, vectors.dtype)[:, tf.newaxis]
    return tf.where(tf.matmul(vectors, direction) < 0, -vectors, vectors)


def student_vector(
    feature: tf.Tensor, teacher: tf.Tensor, gradient: str = "exact"
) -> tf.Tensor:
    """Compresses a student's feature, aligned to the teacher's vector.

    Takes the one of the four leading right singular vectors that is nearest
    to the teacher's vector: see `keras_mhgd.linalg.align`.

    Args:
        feature: As in `teacher_vector`.
        teacher: The teacher's unit vectors `(batch, D)`.
        gradient: As in `keras_mhgd.linalg.right_singular_vectors`.

    Returns:
        Unit vectors `(batch, D)`. Vectors are float64 if the feature is; maps
        and sequences also if `teacher` is. Otherwise the result is float32.
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
    """Compresses all of a teacher's maps, unless `vectors` exist already.

    Args:
        features: The teacher's features, with `maps` as in `teacher_vector`
            or with `vectors`.

    Returns:
        Unit vectors `(batch, D)` for each sensing point.
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
        maps: Features as in `student_vector`, each with as many channels as
            the teacher's.
        teacher: The teacher's vectors, from `teacher_vectors`.
        gradient: As in `student_vector`.

    Returns:
        Unit vectors `(batch, D)` for each sensing point.
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
