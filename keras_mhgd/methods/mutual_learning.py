"""Trains two networks by each other's predictions (mutual learning).

Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, CVPR 2018, arXiv:1706.00384.
"""

import keras
import tensorflow as tf

from keras_mhgd.linalg.precision import as_float
from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.methods.pieces.divergence import (
    softened_divergence,
    standardized,
)


def mutual_losses(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 1.0,
    standardize: bool = False,
    symmetric: bool = False,
    weights: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes what each of two networks learns from the other.

    student = T^2 mean_b KL(p_T || p_S), teacher = T^2 mean_b KL(p_S || p_T),
    with p = softmax(logits / T) and T the temperature. In each loss the first
    distribution is a constant. With `symmetric`, both networks learn from half
    of the sum of the two losses, and no gradient is stopped.

    Args:
        student_logits: `(batch, classes)`.
        teacher_logits: `(batch, classes)`.
        temperature: T, > 0.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        symmetric: Whether both learn from both divergences.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.

    Returns:
        Two scalars >= 0, the student's loss and the teacher's. With
        `symmetric`, the first is half of the sum, and its gradient reaches
        both networks. The second is then 0.
    """
    student = as_float(student_logits, teacher_logits)
    teacher = as_float(teacher_logits, student_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)

    def divergence(learner, target):
        if not symmetric:
            target = tf.stop_gradient(target)
        return temperature**2 * softened_divergence(
            learner, target, temperature, weights
        )

    of_student, of_teacher = (
        divergence(student, teacher),
        divergence(teacher, student),
    )
    if symmetric:
        return (of_student + of_teacher) / 2, tf.zeros_like(of_student)
    return of_student, of_teacher


@keras.saving.register_keras_serializable(package="keras_mhgd")
class MutualLearning(LogitMethod):
    """Trains student and teacher together, each by the other's predictions.

    The student's loss is its task loss plus KL(p_T || p_S), the teacher's its
    task loss plus KL(p_S || p_T): see `mutual_losses`. The teacher may have
    been trained before or not. It runs in training mode, and its weights
    change.

    Both networks are updated at once, from the same predictions. The paper
    updates one after the other.

    Args:
        temperature: Divides the logits, > 0. Its square multiplies the
            losses. The paper has no temperature, which is a value of 1.
        standardize: Whether each sample's logits are standardized first
            (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        symmetric: Whether both networks learn from half the sum of both
            divergences (the code of MHGD's authors), instead of each from one
            divergence (the paper).
        weight: Multiplier of the terms, >= 0. The paper's is 1.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used; the distiller computes both task losses.

    Returns:
        `{"mutual_learning": loss, "mutual_learning_of_teacher": loss}`, two
        scalars.

    Raises:
        ValueError: If an argument is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.MutualLearning()
        >>> peer = keras_mhgd.models.get("vgg_small", (28, 28, 1), 10)
        >>> distiller = keras_mhgd.Distiller(student, peer, method)

    Reference:
        Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning",
        CVPR 2018, arXiv:1706.00384.
    """

    terms = ("mutual_learning", "mutual_learning_of_teacher")
    trains_teacher = True
    spans = "sample"

    def __init__(
        self,
        temperature: float = 1.0,
        standardize: bool = False,
        symmetric: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        self.symmetric = symmetric

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        losses = mutual_losses(
            rows.student,
            rows.teacher,
            temperature=self.temperature,
            standardize=self.standardize,
            symmetric=self.symmetric,
            weights=rows.weights,
        )
        return {
            term: self.weight * loss
            for term, loss in zip(self.terms, losses, strict=True)
        }

    def get_config(self):
        return {**super().get_config(), "symmetric": self.symmetric}
