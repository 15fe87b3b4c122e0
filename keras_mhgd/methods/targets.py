"""Student and teacher tensors as a loss compares them."""

import tensorflow as tf


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
    student = tf.convert_to_tensor(student)
    teacher = tf.convert_to_tensor(teacher)
    is_double = tf.float64 in (student.dtype, teacher.dtype)
    dtype = tf.float64 if is_double else tf.float32
    return tf.cast(student, dtype), tf.stop_gradient(tf.cast(teacher, dtype))
