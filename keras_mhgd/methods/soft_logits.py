"""Distills softened predictions (Hinton's knowledge distillation).

G. Hinton, O. Vinyals, J. Dean, NIPS workshop 2014, arXiv:1503.02531.
"""

import keras
import tensorflow as tf

from keras_mhgd import tasks
from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.methods.base.method import Needs
from keras_mhgd.methods.pieces.divergence import (
    softened_divergence,
    standardized,
)
from keras_mhgd.methods.pieces.targets import student_and_target


def soft_logits_loss(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 4.0,
    scale_by_temperature: bool = True,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes how far the student's soft predictions are from the teacher's.

    loss = T^2 mean_b KL(p_T || p_S), with p = softmax(logits / T) and T the
    temperature.

    Args:
        student_logits: `(batch, classes)`.
        teacher_logits: `(batch, classes)`; no gradient flows into them.
        temperature: T, > 0.
        scale_by_temperature: Whether the loss has the factor T^2 (the paper),
            which keeps the gradient's size as T changes. The code of MHGD's
            authors has no such factor.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.

    Returns:
        Scalar >= 0; 0 where the soft predictions are equal.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    loss = softened_divergence(student, teacher, temperature, weights)
    return temperature**2 * loss if scale_by_temperature else loss


@keras.saving.register_keras_serializable(package="keras_mhgd")
class SoftLogits(LogitMethod):
    """Matches the teacher's predictions, softened by a temperature.

    loss = T^2 mean_b KL(p_T || p_S), with p = softmax(logits / T). The mean
    is over samples, or over the positions of dense outputs.

    For independent labels, the loss is the mean over labels of
    T^2 KL(p_T || p_S) with p the distribution of yes and no. For values it is
    the mean squared difference, for embeddings the mean of one less their
    cosine. Values and embeddings have no temperature.

    Args:
        temperature: T, > 0. The paper tries 1 to 20. 4 is the value in
            published code.
        scale_by_temperature: Whether the loss has the factor T^2 (the paper).
            The code of MHGD's authors trains without this factor.
        standardize: Whether each sample's logits are standardized first
            (Sun et al.). The student then learns how the teacher's logits
            relate, not how large they are. Sun et al. use a temperature of 2
            and a weight of 9 beside a task weight of 1.
        weight: Multiplier of the loss, >= 0. The default is that of common
            published code, beside a task weight of 0.1. The paper gives no
            weight.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used.

    Returns:
        `{"soft_logits": loss}`, a scalar.

    Raises:
        ValueError: If an argument is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.SoftLogits(temperature=4.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural
        Network", NIPS workshop 2014, arXiv:1503.02531.
        S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in
        Knowledge Distillation", CVPR 2024, arXiv:2403.01427.
    """

    terms = ("soft_logits",)
    row_terms = terms
    needs = Needs(logits=True, tasks=tasks.KINDS)
    spans = "sample"

    def __init__(
        self,
        temperature: float = 4.0,
        scale_by_temperature: bool = True,
        standardize: bool = False,
        weight: float = 0.9,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        self.scale_by_temperature = scale_by_temperature

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        if self.compares_values:
            loss = self.difference(rows)
        else:
            loss = soft_logits_loss(
                rows.student,
                rows.teacher,
                temperature=self.temperature,
                scale_by_temperature=self.scale_by_temperature,
                standardize=self.standardize,
                weights=rows.weights,
            )
        return {"soft_logits": self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "scale_by_temperature": self.scale_by_temperature,
        }
