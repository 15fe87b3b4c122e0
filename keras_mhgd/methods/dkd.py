"""Distills the target class and the other classes separately (DKD).

B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, CVPR 2022, arXiv:2203.08679.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative
from keras_mhgd.methods.base.labelled_logit_method import LabelledLogitMethod
from keras_mhgd.methods.pieces.classes import (
    is_target,
    left_out,
    one_or_other,
)
from keras_mhgd.methods.pieces.divergence import (
    softened_divergence,
    standardized,
)
from keras_mhgd.methods.pieces.targets import student_and_target


def decoupled_losses(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    labels: tf.Tensor,
    temperature: float = 4.0,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the divergences of the target class and of the other classes.

    With T the temperature, p = softmax(logits / T) and y the label,

    target = T^2 mean_b KL(b_T || b_S), b = (p_y, 1 - p_y),
    non_target = T^2 mean_b KL(q_T || q_S), q = softmax of logits / T over the
    classes other than y.

    Args:
        student_logits: `(batch, classes)`, two classes or more.
        teacher_logits: Like `student_logits`; no gradient flows into them.
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`, where the largest entry counts.
        temperature: T, > 0.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.

    Returns:
        Two scalars >= 0: `target` and `non_target`. Both are 0 where the
        softened predictions are equal.

    Raises:
        ValueError: If the labels have another shape.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    target = is_target(labels, student.shape[-1])
    student, teacher = student / temperature, teacher / temperature
    of_target, of_others = (
        temperature**2
        * softened_divergence(
            part(student, target), part(teacher, target), weights=weights
        )
        for part in (one_or_other, left_out)
    )
    return of_target, of_others


@keras.saving.register_keras_serializable(package="keras_mhgd")
class DKD(LabelledLogitMethod):
    """Matches soft predictions of the target and the other classes apart.

    loss = alpha TCKD + beta NCKD. TCKD is the divergence of "target or not",
    NCKD the divergence among the other classes. Plain soft logits weight NCKD
    by how unsure the teacher is. See `decoupled_losses`.

    Each position of dense outputs has a label and a prediction of its own.
    Each of several independent labels counts as a choice between no and yes.
    Rows without a label are left out.

    Args:
        alpha: Multiplier of the target class's term, >= 0.
        beta: Multiplier of the other classes' term, >= 0. Published
            settings go from 0.5 (ImageNet) to 8 (CIFAR-100). The surer the
            teacher, the larger `beta` should be.
        temperature: Divides the logits, > 0. Its square multiplies the loss.
        standardize: Whether each sample's logits are standardized first
            (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        weight: Multiplier of both terms, >= 0. The published code raises it
            from 0 to 1 over the first 20 epochs.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`.

    Returns:
        `{"dkd_target": loss, "dkd_non_target": loss}`, two scalars.

    Raises:
        ValueError: If an argument is out of range, the classes differ, or
            the labels have another shape.

    Example:
        >>> method = keras_mhgd.methods.DKD(alpha=1.0, beta=8.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge
        Distillation", CVPR 2022, arXiv:2203.08679.
    """

    terms = ("dkd_target", "dkd_non_target")
    row_terms = terms

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        standardize: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        require_not_negative(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        target, non_target = decoupled_losses(
            rows.student,
            rows.teacher,
            rows.labels,
            temperature=self.temperature,
            standardize=self.standardize,
            weights=rows.weights,
        )
        return {
            "dkd_target": self.weight * (self.alpha * target),
            "dkd_non_target": self.weight * (self.beta * non_target),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
        }
