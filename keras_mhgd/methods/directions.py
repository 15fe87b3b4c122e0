"""Lengths and directions of vectors, safe where a vector is zero."""

import numpy as np
import tensorflow as tf


def direction_and_length(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits vectors into unit vectors and Euclidean lengths.

    A zero vector has direction 0 and length 0, both with gradient 0.

    Args:
        x: Vectors in the last axis, floating point.

    Returns:
        Directions, of the shape of `x`, and lengths, without its last axis.
    """
    # Dividing by the largest entry keeps the squares in range. It is a
    # constant for the gradient: neither result depends on it.
    size = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))
    nonzero = size >= np.finfo(x.dtype.as_numpy_dtype).tiny
    scaled = tf.where(nonzero, x / tf.where(nonzero, size, 1), 0)
    squares = tf.reduce_sum(scaled**2, axis=-1, keepdims=True)
    norm = tf.sqrt(tf.where(nonzero, squares, 1))
    length = tf.where(nonzero, size * norm, 0)
    return scaled / norm, tf.squeeze(length, axis=-1)


def cosines(x: tf.Tensor) -> tf.Tensor:
    """Computes the cosines between all rows.

    Args:
        x: `(batch, D)`, floating point.

    Returns:
        `(batch, batch)`; 0 in the row and column of a zero vector.
    """
    directions, _ = direction_and_length(x)
    return tf.matmul(directions, directions, transpose_b=True)
