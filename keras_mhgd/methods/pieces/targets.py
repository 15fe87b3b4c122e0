"""Student and teacher tensors as a loss compares them."""

import tensorflow as tf

from keras_mhgd.linalg.precision import as_float


def student_and_target(
    student: tf.Tensor, teacher: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Brings both to one precision, and makes the teacher a constant.

    Args:
        student: A tensor of any numeric dtype.
        teacher: Another; its shape may differ.

    Returns:
        Both in float64 if one of them is, else in float32. No gradient flows
        into the second.
    """
    target = tf.stop_gradient(as_float(teacher, student))
    return as_float(student, teacher), target
