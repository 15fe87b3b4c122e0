"""Distills logits that labels refine (RLD).

W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang, ICCV 2025, arXiv:2408.07703.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative, require_positive
from keras_mhgd.methods.base.labelled_logit_method import LabelledLogitMethod
from keras_mhgd.methods.pieces.classes import (
    is_largest,
    is_target,
    left_out,
    of_marked,
    one_or_other,
)
from keras_mhgd.methods.pieces.divergence import (
    softened_divergence,
    standardized,
)
from keras_mhgd.methods.pieces.targets import student_and_target


def refined_losses(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    labels: tf.Tensor,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the divergences of the confidence and of the other classes.

    With y the label, z the logits, T the temperature and T_c the temperature
    of the confidence,

    confidence = T_c^2 mean_b KL(b_T || b_S), b = (m, 1 - m), with
    m_T = max_c softmax(z_T / T_c)[c] and m_S = softmax(z_S / T_c)[y],
    correlation = T^2 mean_b KL(q_T || q_S), q = softmax of z / T over the
    classes c with z_T[c] < z_T[y].

    So the student becomes as sure of the label as the teacher is of its own
    choice, and learns only of classes that the teacher ranks below the label.
    The correlation is 0 for samples with fewer than two such classes.

    Args:
        student_logits: `(batch, classes)`, two classes or more.
        teacher_logits: Like `student_logits`; no gradient flows into them.
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`, where the largest entry counts.
        temperature: T, > 0.
        confidence_temperature: T_c, > 0.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.

    Returns:
        Two scalars >= 0: `confidence` and `correlation`. Both are 0 where the
        predictions are equal and the teacher chooses the label.

    Raises:
        ValueError: If the labels have another shape.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    target = is_target(labels, student.shape[-1])
    confidence = softened_divergence(
        one_or_other(student / confidence_temperature, target),
        one_or_other(teacher / confidence_temperature, is_largest(teacher)),
        weights=weights,
    )
    of_label = of_marked(teacher, target)[:, tf.newaxis]
    ours, theirs = (
        left_out(logits / temperature, teacher >= of_label)
        for logits in (student, teacher)
    )
    correlation = softened_divergence(ours, theirs, weights=weights)
    return confidence_temperature**2 * confidence, temperature**2 * correlation


@keras.saving.register_keras_serializable(package="keras_mhgd")
class RLD(LabelledLogitMethod):
    """Matches refined logits: what the teacher is right about.

    loss = alpha confidence + beta correlation. `confidence` compares the
    student's probability of the label with the teacher's largest probability.
    `correlation` compares the classes that the teacher ranks below the label;
    the others are masked. See `refined_losses`.

    Each position of dense outputs has a label and a prediction of its own.
    Each of several independent labels counts as a choice between no and yes.
    Then at most one class is below the label, and `correlation` is 0. Rows
    without a label are left out.

    Args:
        alpha: Multiplier of the confidence's term, >= 0.
        beta: Multiplier of the correlation's term, >= 0. The default is the
            published code's for CIFAR-100. For ImageNet it has 0.5, at a
            temperature of 1.
        temperature: Divides the logits of the correlation's term, > 0. Its
            square multiplies that term.
        confidence_temperature: The same for the confidence's term.
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
        `{"rld_confidence": loss, "rld_correlation": loss}`, two scalars.

    Raises:
        ValueError: If an argument is out of range, the classes differ, or
            the labels are missing or have another shape.

    Example:
        >>> method = keras_mhgd.methods.RLD(alpha=1.0, beta=8.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang, "Knowledge
        Distillation with Refined Logits", ICCV 2025, arXiv:2408.07703.
    """

    terms = ("rld_confidence", "rld_correlation")
    row_terms = terms

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        confidence_temperature: float = 1.0,
        standardize: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        require_not_negative(alpha=alpha, beta=beta)
        require_positive(confidence_temperature=confidence_temperature)
        self.alpha = alpha
        self.beta = beta
        self.confidence_temperature = confidence_temperature

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        confidence, correlation = refined_losses(
            rows.student,
            rows.teacher,
            rows.labels,
            temperature=self.temperature,
            confidence_temperature=self.confidence_temperature,
            standardize=self.standardize,
            weights=rows.weights,
        )
        return {
            "rld_confidence": self.weight * (self.alpha * confidence),
            "rld_correlation": self.weight * (self.beta * correlation),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
            "confidence_temperature": self.confidence_temperature,
        }
