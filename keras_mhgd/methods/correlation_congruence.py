"""Distills correlations within a batch (correlation congruence).

B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang, ICCV 2019,
arXiv:1904.01802.
"""

import math

import keras
import tensorflow as tf

from keras_mhgd.checks import (
    require_known,
    require_one_or_more,
    require_positive,
)
from keras_mhgd.linalg.directions import cosines
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.targets import student_and_target

_RELATIONS = ("kernel", "neighbours")


def kernel_correlation_loss(
    student: tf.Tensor,
    teacher: tf.Tensor,
    gamma: float = 0.4,
    order: int = 2,
) -> tf.Tensor:
    """Computes how far the correlations of a batch are from the teacher's.

    loss = mean_ij (K^S_ij - K^T_ij)^2. K is the Gaussian kernel
    exp(-gamma |x_i - x_j|^2) of embeddings scaled to unit length, as its Taylor
    series K_ij = exp(-2 gamma) sum_{p=0..order} (2 gamma)^p / p! (x_i . x_j)^p.

    Args:
        student: Embeddings `(batch, D)`, of any length.
        teacher: Embeddings `(batch, D')`, D' may differ from D; no gradient
            flows into them.
        gamma: Sharpness of the kernel, > 0.
        order: Last power of the series, >= 1.

    Returns:
        Scalar >= 0; 0 where all cosines are equal.
    """
    student, teacher = student_and_target(student, teacher)
    ours, theirs = (_kernel(each, gamma, order) for each in (student, teacher))
    return tf.reduce_mean((ours - theirs) ** 2)


def neighbour_correlation_loss(
    student: tf.Tensor, teacher: tf.Tensor
) -> tf.Tensor:
    """Computes the mean product of the errors of neighbouring samples.

    loss = 1 / (B - 1) sum_{b=1..B-1} sum_d delta_bd delta_(b+1)d, with
    delta = |student - teacher| and B the batch size; 0 for a single sample. The
    loss depends on the order of the samples.

    Args:
        student: Embeddings `(batch, D)`.
        teacher: Embeddings `(batch, D)`; no gradient flows into them.

    Returns:
        Scalar >= 0; 0 where the embeddings are equal.
    """
    student, teacher = student_and_target(student, teacher)
    delta = tf.abs(student - teacher)
    pairs = tf.cast(tf.shape(delta)[0] - 1, delta.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(delta[:-1] * delta[1:]), pairs)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class CorrelationCongruence(Method):
    """Matches the correlations among the embeddings of a batch.

    loss = kernel_correlation_loss (the paper) or neighbour_correlation_loss.

    Args:
        relation: `"kernel"` compares the matrices of a Gaussian kernel, as
            the paper does. The embeddings' widths may differ. `"neighbours"`
            is the short form in the published comparison of methods
            (RepDistiller): the product of the errors of consecutive samples.
            It needs equal widths and depends on the order of the samples.
        gamma: Sharpness of the kernel, > 0. Not used by `"neighbours"`.
        order: Last power of the kernel's Taylor series, >= 1. Not used by
            `"neighbours"`.
        weight: Multiplier of the loss, >= 0. RepDistiller takes 0.02 for
            `"neighbours"`.

    Call arguments:
        student: `Features` of the student; `embedding` is `(batch, D)`.
        teacher: `Features` of the teacher; D may differ for `"kernel"`.
        labels: Not used.

    Returns:
        `{"correlation_congruence": loss}`, a scalar.

    Raises:
        ValueError: If an argument is out of range, or if the widths differ
            with `"neighbours"`.

    Example:
        >>> method = keras_mhgd.methods.CorrelationCongruence(order=2)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang,
        "Correlation Congruence for Knowledge Distillation", ICCV 2019,
        arXiv:1904.01802.
    """

    terms = ("correlation_congruence",)
    needs = Needs(embedding=True)

    def __init__(
        self,
        relation: str = "kernel",
        gamma: float = 0.4,
        order: int = 2,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_known("relation", relation, _RELATIONS)
        require_positive(gamma=gamma)
        require_one_or_more(order=order)
        self.relation = relation
        self.gamma = gamma
        self.order = order

    def build(self, student, teacher):
        super().build(student, teacher)
        widths = [each.embedding[-1] for each in (student, teacher)]
        if self.relation == "neighbours" and widths[0] != widths[1]:
            raise ValueError(
                "`embedding` must be of the same width in student and teacher "
                f"for relation='neighbours'. Received: {widths[0]} and "
                f"{widths[1]}. Choose relation='kernel', or another student."
            )

    def call(self, student, teacher, labels):
        pair = student.embedding, teacher.embedding
        if self.relation == "kernel":
            loss = kernel_correlation_loss(
                *pair, gamma=self.gamma, order=self.order
            )
        else:
            loss = neighbour_correlation_loss(*pair)
        return {"correlation_congruence": self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "relation": self.relation,
            "gamma": self.gamma,
            "order": self.order,
        }


def _kernel(x: tf.Tensor, gamma: float, order: int) -> tf.Tensor:
    # Horner's scheme never takes a cosine, which may be 0, to the power 0.
    products = 2 * gamma * cosines(x)
    series = tf.ones_like(products)
    for power in range(order, 0, -1):
        series = 1 + products / power * series
    return math.exp(-2 * gamma) * series
