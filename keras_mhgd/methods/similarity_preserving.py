"""Distills the similarities of a batch's samples.

F. Tung, G. Mori, ICCV 2019, arXiv:1907.09682.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.linalg.directions import unit
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.maps import flatten_positions
from keras_mhgd.methods.pieces.targets import student_and_target


def similarity_preserving_loss(
    student_maps: Sequence[tf.Tensor], teacher_maps: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Computes how far the similarities of a batch's samples differ.

    loss = sum over points of ||G^S - G^T||_F^2 / batch^2. G is F F^T with its
    rows scaled to unit length, and F `(batch, positions x channels)` is the
    flattened map.

    Args:
        student_maps: One for each point: maps, sequences or vectors, any
            float dtype.
        teacher_maps: Like `student_maps`; sizes and channels may differ. No
            gradient flows into them.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        squares = tf.math.squared_difference(
            *student_and_target(_similarities(student), _similarities(teacher))
        )
        # The matrix is batch x batch, so the mean divides by batch^2.
        losses.append(tf.reduce_mean(squares))
    return tf.add_n(losses)


def _similarities(feature: tf.Tensor) -> tf.Tensor:
    feature = flatten_positions(feature)
    gram = tf.einsum("apd,bpd->ab", feature, feature)
    return unit(gram, axis=1)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class SimilarityPreserving(Method):
    """Matches how similar a batch's samples are to each other.

    loss = weight ||G^S - G^T||_F^2 / batch^2 at the last sensing point, see
    `similarity_preserving_loss`.

    Args:
        weight: Multiplier of the loss, >= 0. The paper's is 3000.

    Call arguments:
        student: `Features`; the last of its maps is read: `(batch, height,
            width, D)`, `(batch, length, D)` or `(batch, D)`.
        teacher: Like `student`; size and channels may differ.
        labels: Not used.

    Returns:
        `{"similarity_preserving": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> method = keras_mhgd.methods.SimilarityPreserving()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV
        2019, arXiv:1907.09682.
    """

    terms = ("similarity_preserving",)
    needs = Needs(maps=True)

    def __init__(self, weight: float = 3000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def call(self, student, teacher, labels):
        loss = similarity_preserving_loss(student.maps[-1:], teacher.maps[-1:])
        return {"similarity_preserving": self.weight * loss}
