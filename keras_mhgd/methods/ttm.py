"""Matches the teacher's predictions after a power transform (TTM, WTTM).

K. Zheng, E.-H. Yang, ICLR 2024, arXiv:2402.11148.
"""

import keras
import tensorflow as tf

from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.methods.pieces.divergence import mean_over_rows, standardized
from keras_mhgd.methods.pieces.targets import student_and_target


def transformed_teacher_loss(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 10.0,
    weighted: bool = False,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes how far the student is from the teacher's transformed classes.

    With p = softmax(logits), U = sum_c p_T[c]^(1 / T) and T the temperature,
    the power transform of the teacher is t[c] = p_T[c]^(1 / T) / U, and

    loss = mean_b KL(t || p_S), or mean_b U KL(t || p_S) if `weighted`.

    t is the softmax of the teacher's logits / T. The student has no
    temperature, unlike in `soft_logits_loss`.

    Args:
        student_logits: `(batch, classes)`.
        teacher_logits: `(batch, classes)`; no gradient flows into them.
        temperature: T, > 0. 1 / T is the exponent gamma of the paper.
        weighted: Whether each sample is weighted by U. Above T = 1, U is 1
            where the teacher is sure, and the larger, the less sure it is.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.

    Returns:
        Scalar >= 0; 0 where the student predicts t.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    log_student = tf.nn.log_softmax(student)
    powers = tf.nn.log_softmax(teacher) / temperature  # their logarithms
    log_target = tf.nn.log_softmax(powers)
    difference = tf.exp(log_target) * (log_target - log_student)
    divergence = tf.reduce_sum(difference, axis=-1)
    if weighted:
        divergence *= tf.exp(tf.reduce_logsumexp(powers, axis=-1))
    return mean_over_rows(divergence, weights)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class TTM(LogitMethod):
    """Matches the teacher's power-transformed predictions.

    loss = mean_b KL(t || p_S), with p_S = softmax(student's logits) and
    t = softmax(teacher's logits / T). Only the teacher has a temperature: see
    `transformed_teacher_loss`. The student learns t itself, which acts as a
    regularizer: it keeps the student less sure than soft logits do.

    For independent labels, p_S and t are the distributions of no and yes of
    each label.

    Args:
        temperature: T, > 0, of the teacher alone. 1 / T is the exponent gamma
            of the paper, so the default is gamma = 0.1.
        standardize: Whether each sample's logits are standardized first
            (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        weight: Multiplier of the loss, >= 0, beside a task weight of 1. The
            paper has a weight and a temperature for each pair of networks. The
            defaults are those of the published code's example, vgg13 to vgg8
            on CIFAR-100.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used.

    Returns:
        `{"ttm": loss}`, a scalar.

    Raises:
        ValueError: If an argument is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.TTM(temperature=10.0, weight=45.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        K. Zheng, E.-H. Yang, "Knowledge Distillation Based on Transformed
        Teacher Matching", ICLR 2024, arXiv:2402.11148.
    """

    terms = ("ttm",)
    row_terms = terms
    spans = "sample"
    weighted = False

    def __init__(
        self,
        temperature: float = 10.0,
        standardize: bool = False,
        weight: float = 45.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        loss = transformed_teacher_loss(
            rows.student,
            rows.teacher,
            temperature=self.temperature,
            weighted=self.weighted,
            standardize=self.standardize,
            weights=rows.weights,
        )
        return {self.terms[0]: self.weight * loss}


@keras.saving.register_keras_serializable(package="keras_mhgd")
class WTTM(TTM):
    """Matches power-transformed predictions, most where the teacher is unsure.

    loss = mean_b U KL(t || p_S), with U = sum_c p_T[c]^(1 / T). See `TTM`, and
    `transformed_teacher_loss` with `weighted`.

    Args:
        temperature: T, > 0, of the teacher alone. 1 / T is the exponent gamma
            of the paper, so the default is gamma = 0.2.
        standardize: As in `TTM`.
        weight: Multiplier of the loss, >= 0, beside a task weight of 1. The
            paper has a weight and a temperature for each pair of networks. The
            defaults are those of the published code's example, which trains
            CRD too, vgg13 to vgg8 on CIFAR-100.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used.

    Returns:
        `{"wttm": loss}`, a scalar.

    Raises:
        ValueError: If an argument is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.WTTM(temperature=5.0, weight=4.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        K. Zheng, E.-H. Yang, "Knowledge Distillation Based on Transformed
        Teacher Matching", ICLR 2024, arXiv:2402.11148.
    """

    terms = ("wttm",)
    row_terms = terms
    weighted = True

    def __init__(
        self,
        temperature: float = 5.0,
        standardize: bool = False,
        weight: float = 4.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
