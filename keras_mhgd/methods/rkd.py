"""Distills distances and angles within a batch (relational distillation).

W. Park, D. Kim, Y. Lu, M. Cho, CVPR 2019, arXiv:1904.05068.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative
from keras_mhgd.linalg.directions import direction_and_length
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.targets import student_and_target


def relational_distance_loss(
    student: tf.Tensor, teacher: tf.Tensor, normalize: bool = False
) -> tf.Tensor:
    """Computes how far the relative distances within a batch differ.

    loss = mean_ij h(psi^S_ij - psi^T_ij), psi_ij = |x_i - x_j| / mu, with mu
    the mean distance over the pairs i != j and Huber's
    h(u) = u^2 / 2 where |u| <= 1, else |u| - 1/2.

    Args:
        student: Embeddings `(batch, D)`.
        teacher: Embeddings `(batch, D')`, D' may differ from D; no gradient
            flows into them.
        normalize: Whether embeddings are scaled to unit length first and mu
            is the mean over all batch^2 pairs, including the zeros i = j, as
            in the code of MHGD's authors. `False` is as in RKD's own code.

    Returns:
        Scalar >= 0; 0 where all relative distances are equal.
    """
    student, teacher = student_and_target(student, teacher)
    difference = _distances(student, normalize) - _distances(teacher, normalize)
    return tf.reduce_mean(_huber(difference))


def relational_angle_loss(
    student: tf.Tensor, teacher: tf.Tensor, normalize: bool = False
) -> tf.Tensor:
    """Computes how far the angles within a batch differ.

    loss = mean_ijk h(a^S_ijk - a^T_ijk). a_ijk = e_ij . e_ik is the cosine of
    the angle at x_i, with e_ij the direction from x_i to x_j, and h is as in
    `relational_distance_loss`. A cosine is 0 if a side has length 0.

    Args:
        student: Embeddings `(batch, D)`.
        teacher: Embeddings `(batch, D')`, D' may differ from D; no gradient
            flows into them.
        normalize: Whether embeddings are scaled to unit length first.

    Returns:
        Scalar >= 0; 0 where all angles are equal.
    """
    student, teacher = student_and_target(student, teacher)
    difference = _angles(student, normalize) - _angles(teacher, normalize)
    return tf.reduce_mean(_huber(difference))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class RKD(Method):
    """Matches distances and angles among the embeddings of a batch.

    loss = distance_weight relational_distance_loss
    + angle_weight relational_angle_loss.

    Both terms compare relations, so the embeddings' widths may differ. Memory
    grows with batch^2 D and batch^3.

    Args:
        distance_weight: Multiplier of the distances' term, >= 0.
        angle_weight: Multiplier of the angles' term, >= 0. The defaults are
            those of the paper's classification experiments.
        normalize: Whether embeddings are scaled to unit length first and
            distances are relative to the mean over all pairs, including i = j
            (the code of MHGD's authors). The default is as in RKD's own code.
        weight: Multiplier of both terms, >= 0.

    Call arguments:
        student: `Features` of the student; `embedding` is `(batch, D)`.
        teacher: `Features` of the teacher; D may differ.
        labels: Not used.

    Returns:
        `{"rkd_distance": loss, "rkd_angle": loss}`, two scalars.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> method = keras_mhgd.methods.RKD(angle_weight=50.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation",
        CVPR 2019, arXiv:1904.05068.
    """

    terms = ("rkd_distance", "rkd_angle")
    needs = Needs(embedding=True)

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        normalize: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_not_negative(
            distance_weight=distance_weight, angle_weight=angle_weight
        )
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.normalize = normalize

    def call(self, student, teacher, labels):
        pair = student.embedding, teacher.embedding
        distance = relational_distance_loss(*pair, normalize=self.normalize)
        angle = relational_angle_loss(*pair, normalize=self.normalize)
        return {
            "rkd_distance": self.weight * (self.distance_weight * distance),
            "rkd_angle": self.weight * (self.angle_weight * angle),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
            "normalize": self.normalize,
        }


def _sides(x: tf.Tensor, normalize: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives directions `(batch, batch, D)` and lengths of x_j - x_i at [i, j].

    Both are computed from the differences. A small distance that is computed
    from products of rows in float32 would be mere round-off.
    """
    if normalize:
        x, _ = direction_and_length(x)
    return direction_and_length(x[tf.newaxis] - x[:, tf.newaxis])


def _distances(x: tf.Tensor, normalize: bool) -> tf.Tensor:
    _, distances = _sides(x, normalize)
    batch = tf.cast(tf.shape(x)[0], x.dtype)
    pairs = batch * (batch if normalize else batch - 1)
    # Equal rows have mean distance 0, and one row has no pairs. Both
    # divisions then give 0.
    mean = tf.math.divide_no_nan(tf.reduce_sum(distances), pairs)
    return tf.math.divide_no_nan(distances, mean)


def _angles(x: tf.Tensor, normalize: bool) -> tf.Tensor:
    directions, _ = _sides(x, normalize)
    return tf.matmul(directions, directions, transpose_b=True)


def _huber(x: tf.Tensor) -> tf.Tensor:
    size = tf.abs(x)
    return tf.where(size <= 1, 0.5 * x**2, size - 0.5)
