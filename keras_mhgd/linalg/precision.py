"""Chooses the precision that losses are computed in."""

import tensorflow as tf


def as_float(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """Casts `x` to float64 if any of the tensors is float64, else to float32.

    Args:
        x: A tensor of any numeric dtype.
        *others: The tensors that `x` is combined with.

    Returns:
        The values of `x`, float64 or float32.
    """
    dtypes = [tf.convert_to_tensor(each).dtype for each in (x, *others)]
    return tf.cast(x, tf.float64 if tf.float64 in dtypes else tf.float32)
