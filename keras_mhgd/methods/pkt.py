"""Distills similarities within a batch as probabilities (PKT).

N. Passalis, A. Tefas, ECCV 2018, arXiv:1803.10837.
"""

import keras
import tensorflow as tf

from keras_mhgd.linalg.directions import cosines
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.targets import student_and_target

_EPSILON = 1e-7  # of the published code, in both arguments of the logarithm


def probabilistic_transfer_loss(
    student: tf.Tensor, teacher: tf.Tensor
) -> tf.Tensor:
    """Computes the divergence of similarities within a batch.

    loss = 1/B^2 sum_ij p^T_ij log((p^T_ij + e) / (p^S_ij + e)), with
    p_ij = c_ij / sum_j c_ij, c_ij = (cos(x_i, x_j) + 1) / 2, e = 1e-7 and B
    the batch size. Pairs i = j are included, and the sum is divided by B^2, as
    in the authors' code. The paper writes the sum over i != j.

    Args:
        student: Embeddings `(batch, D)`.
        teacher: Embeddings `(batch, D')`, D' may differ from D; no gradient
            flows into them.

    Returns:
        Scalar, >= 0 up to e; 0 where all cosines are equal.
    """
    student, teacher = student_and_target(student, teacher)
    ours, theirs = _probabilities(student), _probabilities(teacher)
    # log(a / b) is taken as log1p(a / b - 1), because the probabilities are
    # close together. No p_ij with i != j exceeds 1/2, so the argument is above
    # -1.
    ratio = tf.math.log1p((theirs - ours) / (ours + _EPSILON))
    # The differences add up to 0 except for rounding. Subtracting them cancels
    # the rounding of the other sum, which would be 1e-5 of the loss.
    return tf.reduce_mean(theirs * ratio - (theirs - ours))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class PKT(Method):
    """Matches the probability that samples of a batch are neighbours.

    loss = weight probabilistic_transfer_loss. For each sample, the cosines
    with all embeddings of the batch give a distribution. The loss is the
    divergence of these distributions in student and teacher.

    The method compares relations, so the embeddings' widths may differ.

    Args:
        weight: Multiplier of the loss, >= 0. The loss is a mean over
            batch^2 small numbers. The default is the weight in the published
            comparison of methods (RepDistiller).

    Call arguments:
        student: `Features` of the student; `embedding` is `(batch, D)`.
        teacher: `Features` of the teacher; D may differ.
        labels: Not used.

    Returns:
        `{"pkt": loss}`, a scalar.

    Raises:
        ValueError: If `weight` is negative.

    Example:
        >>> method = keras_mhgd.methods.PKT()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        N. Passalis, A. Tefas, "Learning Deep Representations with
        Probabilistic Knowledge Transfer", ECCV 2018, arXiv:1803.10837.
    """

    terms = ("pkt",)
    needs = Needs(embedding=True)

    def __init__(self, weight: float = 30_000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def call(self, student, teacher, labels):
        loss = probabilistic_transfer_loss(student.embedding, teacher.embedding)
        return {"pkt": self.weight * loss}


def _probabilities(x: tf.Tensor) -> tf.Tensor:
    # A cosine can be below -1 by round-off.
    similar = tf.maximum((cosines(x) + 1) / 2, 0)
    # Each sum is at least 1/2, because a row is similar to itself.
    return similar / tf.reduce_sum(similar, axis=1, keepdims=True)
