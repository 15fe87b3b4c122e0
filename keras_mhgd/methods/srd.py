"""Distills normalised embeddings through a linear projector (SRD).

R. Miles, K. Mikolajczyk, AAAI 2024, arXiv:2303.11098.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.targets import student_and_target

_SMALLEST_SUM = 1e-12


def log_sum_loss(
    student: tf.Tensor,
    teacher: tf.Tensor,
    exponent: float = 4.0,
    epsilon: float = 1e-4,
) -> tf.Tensor:
    """Computes the logarithm of how far normalised embeddings differ.

    loss = log sum_bd |N(s)_bd - N(t)_bd|^p, with p the exponent. N is batch
    normalisation without scale and offset: N(x) = (x - mean) / sqrt(variance
    + epsilon), with mean and biased variance over the batch. A sum below 1e-12
    counts as 1e-12, so that the loss of equal embeddings is finite.

    Args:
        student: Projected embeddings `(batch, D)`.
        teacher: Embeddings `(batch, D)`; no gradient flows into them.
        exponent: p, > 0.
        epsilon: Added to the variances, > 0.

    Returns:
        Scalar, float32 or float64; negative where the embeddings are similar.
    """
    student, teacher = student_and_target(student, teacher)
    ours, theirs = (_normalised(each, epsilon) for each in (student, teacher))
    total = tf.reduce_sum(_power(tf.abs(ours - theirs), exponent))
    return tf.math.log(tf.maximum(total, tf.cast(_SMALLEST_SUM, total.dtype)))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class SRD(Method):
    """Matches normalised embeddings, the student's after a linear projector.

    loss = weight log sum_bd |N(W s)_bd - N(t)_bd|^p, see `log_sum_loss`. The
    projector W maps the student's embedding to the teacher's width and trains
    with the student. It exists even if both widths are equal. It has no bias,
    since N would take it away.

    The publication adds the divergence of the soft predictions at temperature
    1. Pass `[SRD(), SoftLogits(temperature=1.0, weight=1.0)]` for both.

    Args:
        exponent: p, > 0. The larger it is, the more the largest differences
            count. The default is that of the published code.
        epsilon: Added to the variances of N, > 0. The default is that of the
            published code for ImageNet.
        weight: Multiplier of the loss, >= 0. The default is that of the
            published code, beside a task weight of 1.

    Call arguments:
        student: `Features` of the student; `embedding` is `(batch, D)`.
        teacher: `Features` of the teacher; D may differ.
        labels: Not used.

    Returns:
        `{"srd": loss}`, a scalar, float32, which may be negative.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> methods = [
        ...     keras_mhgd.methods.SRD(exponent=4.0),
        ...     keras_mhgd.methods.SoftLogits(temperature=1.0, weight=1.0),
        ... ]
        >>> distiller = keras_mhgd.Distiller(student, teacher, methods)

    Reference:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in
        Knowledge Distillation", AAAI 2024, arXiv:2303.11098.
    """

    terms = ("srd",)
    needs = Needs(embedding=True)

    def __init__(
        self,
        exponent: float = 4.0,
        epsilon: float = 1e-4,
        weight: float = 2.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_positive(exponent=exponent, epsilon=epsilon)
        self.exponent = exponent
        self.epsilon = epsilon

    def build(self, student, teacher):
        super().build(student, teacher)
        self.projector = keras.layers.Dense(
            teacher.embedding[-1],
            use_bias=False,
            # Uniform in +-1 / sqrt(D), as the published code's linear layer.
            kernel_initializer=keras.initializers.VarianceScaling(
                1 / 3, "fan_in", "uniform"
            ),
            dtype="float32",
            name="projector",
        )
        self.projector.build(student.embedding)

    def call(self, student, teacher, labels):
        loss = log_sum_loss(
            self.projector(student.embedding),
            teacher.embedding,
            exponent=self.exponent,
            epsilon=self.epsilon,
        )
        return {"srd": self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "exponent": self.exponent,
            "epsilon": self.epsilon,
        }


def _normalised(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [0])
    return tf.nn.batch_normalization(x, mean, variance, None, None, epsilon)


def _power(x: tf.Tensor, exponent: float) -> tf.Tensor:
    """Computes x^p of values >= 0; the gradient of 0 is 0 for every p."""
    positive = x > 0
    return tf.where(positive, tf.where(positive, x, 1) ** exponent, 0)
