"""The precision that losses are computed in."""

import tensorflow as tf


def as_float(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """Casts to float64 if it or another tensor is float64, else to float32.

    Args:
        x: A tensor of any numeric dtype.
        *others: What it is computed with.

    Returns:
        The values of `x`.
    """
    dtypes = [tf.convert_to_tensor(each).dtype for each in (x, *others)]
    return tf.cast(x, tf.float64 if tf.float64 in dtypes else tf.float32)
