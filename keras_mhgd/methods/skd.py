"""Distills predictions and how they relate within a batch (SKD).

H.-J. Jeong, H.-J. Lee, S.-H. Choi, CVPR 2026.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.linalg.directions import cosines, direction_and_length
from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.methods.base.method import Needs
from keras_mhgd.methods.pieces.divergence import mean_over_rows, standardized
from keras_mhgd.methods.pieces.targets import student_and_target
from keras_mhgd.methods.soft_logits import soft_logits_loss
from keras_mhgd.tasks import SINGLE_LABEL


def whitened_gram_loss(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    tikhonov: float = 0.1,
    divide_by_classes: bool = False,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the whitened distance of a batch's matrices of cosines.

    loss = mean_i sqrt(D_i^T (Cov + lambda I)^-1 D_i), with D_i the rows of
    D = G^S - G^T. G holds the cosines of the logits of all pairs of samples.
    Cov is the covariance of the B rows of D, divided by B - 1. This is the
    Mahalanobis distance of each row from 0.

    With Cov + lambda I = L L^T, the i-th root is the length of L^-1 D_i.

    Args:
        student_logits: `(batch, classes)`.
        teacher_logits: `(batch, classes)`; no gradient flows into them.
        tikhonov: lambda, > 0.
        divide_by_classes: Whether G is divided by the number of classes.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count. The other rows are no part of D.

    Returns:
        Scalar >= 0, float32 or float64; 0 where all cosines are equal, with
        gradient 0, and for a single sample.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    difference = cosines(student) - cosines(teacher)
    count = tf.cast(tf.shape(difference)[0], difference.dtype)
    if weights is not None:
        counted = tf.cast(weights, difference.dtype)
        count = tf.reduce_sum(counted)
        both = counted[:, tf.newaxis] * counted
        difference = tf.where(both > 0, difference, 0)
    if divide_by_classes:
        difference /= student.shape[-1]
    centred = difference - tf.math.divide_no_nan(
        tf.reduce_sum(difference, axis=0, keepdims=True), count
    )
    if weights is not None:
        centred *= counted[:, tf.newaxis]
    covariance = tf.math.divide_no_nan(
        tf.matmul(centred, centred, transpose_a=True), count - 1
    )
    ridge = tikhonov * tf.eye(tf.shape(difference)[0], dtype=difference.dtype)
    factor = tf.linalg.cholesky(covariance + ridge)
    whitened = tf.linalg.triangular_solve(factor, tf.transpose(difference))
    _, lengths = direction_and_length(tf.transpose(whitened))
    return mean_over_rows(lengths, weights)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class SKD(LogitMethod):
    """Matches soft predictions, and the cosines of a batch's logits.

    loss = weight (instance + direction). `instance` is mean_b KL(p_T || p_S),
    with p = softmax(logits / T). `direction` is the distance of the cosines of
    all pairs of samples, whitened by the covariance of its own rows: see
    `whitened_gram_loss`. It takes time in proportion to the batch size cubed.

    The two arguments below switch between the paper and the authors' code,
    whose task weight is 0.1 beside `weight=0.9`. In the code, each term is
    also multiplied by the share of samples, or of classes, whose probability
    in the teacher is at most the median. This share is about a half. It is
    left out here.

    Args:
        temperature: T, > 0. The default is that of the authors' code. The
            paper gives none.
        tikhonov: lambda, which keeps the covariance invertible, > 0. The
            default is that of the authors' code. The paper gives none.
        scale_by_temperature: Whether `instance` has the factor T^2. The code
            has it, the paper has not.
        divide_by_classes: Whether the cosines are divided by the number of
            classes. The code does so, the paper does not. lambda then weighs
            more.
        standardize: Whether each sample's logits are standardized first
            (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        weight: Multiplier of both terms, >= 0.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used.

    Returns:
        `{"skd_instance": loss, "skd_direction": loss}`, two scalars.

    Raises:
        ValueError: If an argument is out of range, the classes differ, or
            the outputs have positions.

    Example:
        >>> method = keras_mhgd.methods.SKD(tikhonov=0.1)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        H.-J. Jeong, H.-J. Lee, S.-H. Choi, "Streamlined Knowledge
        Distillation", CVPR 2026.
    """

    terms = ("skd_instance", "skd_direction")
    needs = Needs(logits=True, tasks=(SINGLE_LABEL,))

    def __init__(
        self,
        temperature: float = 4.0,
        tikhonov: float = 0.1,
        scale_by_temperature: bool = False,
        divide_by_classes: bool = False,
        standardize: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        require_positive(tikhonov=tikhonov)
        self.tikhonov = tikhonov
        self.scale_by_temperature = scale_by_temperature
        self.divide_by_classes = divide_by_classes

    def build(self, student, teacher):
        super().build(student, teacher)
        if len(student.logits) > 2:
            raise ValueError(
                "SKD relates the samples of a batch: outputs must be `(batch, "
                "classes)`, without positions. Received: outputs "
                f"{tuple(student.logits)}. Choose another method, such as "
                "'soft_logits' or 'dist'."
            )

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        ours, theirs = student_and_target(rows.student, rows.teacher)
        if self.standardize:
            ours, theirs = standardized(ours), standardized(theirs)
        instance = soft_logits_loss(
            ours,
            theirs,
            temperature=self.temperature,
            scale_by_temperature=self.scale_by_temperature,
            weights=rows.weights,
        )
        direction = whitened_gram_loss(
            ours,
            theirs,
            tikhonov=self.tikhonov,
            divide_by_classes=self.divide_by_classes,
            weights=rows.weights,
        )
        return {
            "skd_instance": self.weight * instance,
            "skd_direction": self.weight * direction,
        }

    def get_config(self):
        return {
            **super().get_config(),
            "tikhonov": self.tikhonov,
            "scale_by_temperature": self.scale_by_temperature,
            "divide_by_classes": self.divide_by_classes,
        }
