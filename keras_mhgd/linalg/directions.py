"""Computes lengths and directions of vectors, also of zero vectors."""

from collections.abc import Sequence

import tensorflow as tf

from keras_mhgd.linalg.precision import as_float


def unit(x: tf.Tensor, axis: int | Sequence[int] = -1) -> tf.Tensor:
    """Divides vectors by their Euclidean length.

    A vector without an entry above 1e-30 in magnitude counts as zero. It gives
    zero, with gradient zero.

    Args:
        x: Any shape, any float dtype.
        axis: The axis or axes that hold the entries of a vector.

    Returns:
        Unit vectors, of the shape of `x`, float32 or float64.
    """
    return _split(x, axis)[0]


def direction_and_length(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits vectors into unit vectors and Euclidean lengths.

    A zero vector has direction 0 and length 0, both with gradient 0.

    Args:
        x: Vectors in the last axis, any float dtype.

    Returns:
        Directions, of the shape of `x`, and lengths, without its last axis;
        float32 or float64.
    """
    directions, lengths = _split(x, -1)
    return directions, tf.squeeze(lengths, axis=-1)


def cosines(x: tf.Tensor) -> tf.Tensor:
    """Computes the cosines between all rows.

    Args:
        x: `(batch, D)`, any float dtype.

    Returns:
        `(batch, batch)`, float32 or float64; 0 in the row and column of a
        zero vector.
    """
    directions = unit(x)
    return tf.matmul(directions, directions, transpose_b=True)


def _split(x, axis):
    x = as_float(x)
    # Dividing by the largest entry keeps the squares in range. The largest
    # entry is a constant for the gradient: neither result depends on it.
    size = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis, keepdims=True))
    # For smaller entries, the gradient would overflow, since it grows as
    # 1 / size. The test isn't size > 1e-30, because a maximum may skip NaN, and
    # NaN must stay NaN.
    nonzero = ~tf.reduce_all(tf.abs(x) <= 1e-30, axis, keepdims=True)
    scaled = tf.where(nonzero, x / tf.where(nonzero, size, 1), 0)
    squares = tf.reduce_sum(scaled**2, axis, keepdims=True)
    norm = tf.sqrt(tf.where(nonzero, squares, 1))
    return scaled / norm, tf.where(nonzero, size * norm, 0)
