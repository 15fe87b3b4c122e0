"""Distills predictions by their correlation with the teacher's (DIST).

T. Huang, S. You, F. Wang, C. Qian, C. Xu, NeurIPS 2022, arXiv:2205.10536.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative
from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.methods.base.method import Needs
from keras_mhgd.methods.pieces.divergence import mean_over_rows, standardized
from keras_mhgd.methods.pieces.targets import student_and_target
from keras_mhgd.tasks import KINDS, MULTI_LABEL, Rows


def correlation_losses(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 1.0,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
    activation: Callable[[tf.Tensor], tf.Tensor] = tf.nn.softmax,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes how little the predictions correlate with the teacher's.

    With T the temperature, Y = softmax(logits / T), rho Pearson's correlation,
    B samples and C classes,

    inter = T^2 (1 - 1/B sum_b rho(Y^S[b, :], Y^T[b, :])),
    intra = T^2 (1 - 1/C sum_c rho(Y^S[:, c], Y^T[:, c])).

    Where a row or column of either network is constant, rho and its gradient
    are 0. So `intra` is T^2 for a single sample.

    Args:
        student_logits: `(batch, classes)`.
        teacher_logits: `(batch, classes)`; no gradient flows into them.
        temperature: T, > 0.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.
        activation: Function that is applied instead of the softmax.

    Returns:
        Two scalars from 0 to 2 T^2: `inter` and `intra`. Both are 0 where the
        predictions are equal and nowhere constant.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    student = activation(student / temperature)
    teacher = activation(teacher / temperature)

    counted = None if weights is None else weights[:, tf.newaxis]

    def distance(axis):
        products = standardized(student, axis, counted) * standardized(
            teacher, axis, counted
        )
        # The mean of products over one axis is rho. The mean over both axes
        # is the mean of rho.
        if weights is not None:
            products = tf.reduce_mean(products, axis=-1)
        return temperature**2 * (1 - mean_over_rows(products, weights))

    return distance(1), distance(0)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class DIST(LogitMethod):
    """Correlates predictions with the teacher's, by sample and by class.

    loss = beta inter + gamma intra. `inter` is Pearson's distance of the
    predictions of each sample over the classes, `intra` the distance of each
    class over the batch. See `correlation_losses`. Dense outputs have a
    prediction at each position.

    For two or more independent labels a sigmoid replaces the softmax. Values
    and embeddings are correlated without an activation.

    Args:
        beta: Multiplier of `inter`, >= 0.
        gamma: Multiplier of `intra`, >= 0.
        temperature: Divides the logits, > 0. Its square multiplies the loss,
            as in the published code. The paper's formula has no such factor;
            at the default both are equal. 4 is common for CIFAR-100.
        standardize: Whether each sample's logits are standardized first
            (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        weight: Multiplier of both terms, >= 0.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used.

    Returns:
        `{"dist_inter": loss, "dist_intra": loss}`, two scalars.

    Raises:
        ValueError: If an argument is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.DIST(beta=2.0, gamma=2.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation
        from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.
    """

    terms = ("dist_inter", "dist_intra")
    needs = Needs(logits=True, tasks=KINDS)

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        standardize: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        require_not_negative(beta=beta, gamma=gamma)
        self.beta = beta
        self.gamma = gamma

    def call(self, student, teacher, labels):
        several = student.logits.shape[-1] > 1
        independent = self.task.kind == MULTI_LABEL and several
        if independent or self.compares_values:
            rows = Rows(student.logits, teacher.logits, student.weights, None)
            activation = tf.sigmoid if independent else tf.identity
        else:
            rows = self.rows(student, teacher, labels)
            activation = tf.nn.softmax
        inter, intra = correlation_losses(
            rows.student,
            rows.teacher,
            temperature=self.temperature,
            standardize=self.standardize,
            weights=rows.weights,
            activation=activation,
        )
        return {
            "dist_inter": self.weight * (self.beta * inter),
            "dist_intra": self.weight * (self.gamma * intra),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "beta": self.beta,
            "gamma": self.gamma,
        }
