"""Computes divergences of class distributions and standardizes logits."""

import numpy as np
import tensorflow as tf


def standardized(
    x: tf.Tensor, axis: int = -1, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Shifts and scales to mean 0 and standard deviation 1 along an axis.

    z = (x - mean) / sigma, with sigma^2 = mean (x - mean)^2. This mean divides
    by the count, not by the count less one. Where the values are equal up to
    round-off, z and its gradient are 0.

    For logits this is the Z-score of S. Sun et al., "Logit Standardization in
    Knowledge Distillation", CVPR 2024, arXiv:2403.01427 (algorithm 1 there,
    before the division by the temperature).

    Args:
        x: A floating-point tensor.
        axis: The axis that the mean is taken over.
        weights: 1 for entries that count and 0 for others, broadcast to the
            shape of `x`; `None` if all count. Entries that don't count become
            0.

    Returns:
        A tensor like `x`.
    """
    if weights is not None:
        weights = tf.broadcast_to(tf.cast(weights, x.dtype), tf.shape(x))
        x = tf.where(weights > 0, x, 0)

    def mean(values):
        if weights is None:
            return tf.reduce_mean(values, axis, keepdims=True)
        return tf.math.divide_no_nan(
            tf.reduce_sum(values * weights, axis, keepdims=True),
            tf.reduce_sum(weights, axis, keepdims=True),
        )

    centred = x - mean(x)
    if weights is not None:
        centred *= weights
    # Dividing by the largest entry keeps the squares in range. The result does
    # not depend on the scale of x, so that entry can be a constant for the
    # gradient.
    size = _largest(centred, axis)
    round_off = 8 * np.finfo(x.dtype.as_numpy_dtype).eps
    varies = size > round_off * _largest(x, axis)
    centred = tf.where(varies, centred / tf.where(varies, size, 1), 0)
    variance = mean(centred**2)
    return centred * tf.math.rsqrt(tf.where(varies, variance, 1))


def softened_divergence(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 1.0,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the mean divergence of the student's classes from the teacher's.

    mean_b KL(p_T || p_S) = mean_b sum_c p_T (log p_T - log p_S), with
    p = softmax(logits / temperature).

    Args:
        student_logits: `(batch, classes)`, floating point.
        teacher_logits: A tensor of the student's shape and dtype.
        temperature: > 0; above 1 it softens the distributions.
        weights: As in `mean_over_rows`.

    Returns:
        Scalar >= 0, of the logits' dtype; 0 where the distributions are
        equal.
    """
    log_student = tf.nn.log_softmax(student_logits / temperature)
    log_teacher = tf.nn.log_softmax(teacher_logits / temperature)
    difference = tf.exp(log_teacher) * (log_teacher - log_student)
    return mean_over_rows(tf.reduce_sum(difference, axis=-1), weights)


def mean_over_rows(
    values: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Computes the mean over the rows that count.

    Args:
        values: `(rows,)`, floating point.
        weights: 1 for rows that count and 0 for others, `(rows,)`; `None` if
            all count.

    Returns:
        Scalar; 0 where no row counts.
    """
    if weights is None:
        return tf.reduce_mean(values)
    weights = tf.cast(weights, values.dtype)
    # Values that don't count may be infinite or NaN, and stay so times 0.
    values = tf.where(weights > 0, values, 0)
    return tf.math.divide_no_nan(
        tf.reduce_sum(values * weights), tf.reduce_sum(weights)
    )


def _largest(x: tf.Tensor, axis: int) -> tf.Tensor:
    return tf.stop_gradient(tf.reduce_max(tf.abs(x), axis, keepdims=True))
