"""Prepares student and teacher tensors for comparison in a loss."""

import tensorflow as tf

from keras_mhgd.linalg.precision import as_float


def student_and_target(
    student: tf.Tensor, teacher: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Casts both tensors to one dtype and makes the teacher's a constant.

    Args:
        student: A tensor of any numeric dtype.
        teacher: A tensor of any numeric dtype; its shape may differ.

    Returns:
        Both tensors, float64 if one of them is float64, else float32. No
        gradient flows into the second one.
    """
    target = tf.stop_gradient(as_float(teacher, student))
    return as_float(student, teacher), target
