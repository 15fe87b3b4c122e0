"""Distills predictions of samples, batches and classes (MLKD).

Y. Jin, J. Wang, D. Lin, CVPR 2023.
"""

from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.methods.pieces.divergence import (
    softened_divergence,
    standardized,
)
from keras_mhgd.methods.pieces.targets import student_and_target

_TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def multi_level_losses(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperatures: Sequence[float] = _TEMPERATURES,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes how predictions, and their relations, differ at three levels.

    With P = softmax(logits / T), a matrix of B samples and C classes,

    instance = sum_T T^2 mean_b KL(P_T[b] || P_S[b]),
    batch = sum_T 1/B |P_T P_T' - P_S P_S'|^2,
    class = sum_T 1/C |P_T' P_T - P_S' P_S|^2.

    The sums are over the temperatures T, the indices of P stand for teacher
    and student, ' transposes, and |.|^2 is the sum of the squared entries.

    Args:
        student_logits: `(batch, classes)`.
        teacher_logits: `(batch, classes)`; no gradient flows into them.
        temperatures: The temperatures T, > 0.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks and for `instance`
            alone.
        weights: 0 for rows that don't count, `(batch,)`; `None` if all count.
            Other weights than 0 and 1 weight the mean of `instance`.

    Returns:
        Three scalars >= 0: `instance`, `batch` and `class`. All are 0 where
        the predictions are equal.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    pair = student, teacher
    if standardize:
        pair = standardized(student), standardized(teacher)
    counted = None if weights is None else weights > 0
    levels = []
    for temperature in temperatures:
        divergence = softened_divergence(*pair, temperature, weights)
        of_batch, of_classes = _relations(
            tf.nn.softmax(student / temperature),
            tf.nn.softmax(teacher / temperature),
            counted,
        )
        levels.append((temperature**2 * divergence, of_batch, of_classes))
    instance, batch, classes = (
        tf.add_n(each) for each in zip(*levels, strict=True)
    )
    return instance, batch, classes


@keras.saving.register_keras_serializable(package="keras_mhgd")
class MLKD(LogitMethod):
    """Matches predictions at the levels of samples, the batch and classes.

    loss = instance + batch + class. `instance` is the divergence of the soft
    predictions, `batch` the difference of the samples' similarities by their
    predictions, `class` that of the classes' similarities. Each is a sum over
    several temperatures: see `multi_level_losses`.

    This is the loss of one view of each image. The published training has a
    weakly and a strongly augmented view, and adds the losses of both. For the
    weak view, its code multiplies each term by the share of samples or classes
    of which the teacher is no surer than of the median, about 1/2.

    Each position of dense outputs is a row of the batch. Each of several
    independent labels is one too, as a choice between no and yes.

    Args:
        temperatures: The temperatures, > 0.
        standardize: Whether each sample's logits are standardized first, for
            `instance` alone (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        weight: Multiplier of the terms, >= 0. The default is that of the
            published code, beside a task weight of 0.1.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Not used.

    Returns:
        `{"mlkd_instance": loss, "mlkd_batch": loss, "mlkd_class": loss}`,
        three scalars.

    Raises:
        TypeError: If `temperatures` is not a sequence of numbers.
        ValueError: If an argument is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.MLKD(temperatures=(2.0, 4.0, 6.0))
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        Y. Jin, J. Wang, D. Lin, "Multi-Level Logit Distillation", CVPR 2023,
        pp. 24276-24285.
    """

    terms = ("mlkd_instance", "mlkd_batch", "mlkd_class")
    row_terms = ("mlkd_instance",)

    def __init__(
        self,
        temperatures: Sequence[float] = _TEMPERATURES,
        standardize: bool = False,
        weight: float = 0.9,
        **kwargs,
    ):
        # There is no temperature beside `temperatures`.
        super().__init__(1.0, standardize, weight, **kwargs)
        self.temperatures = _checked(temperatures)

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        losses = multi_level_losses(
            rows.student,
            rows.teacher,
            temperatures=self.temperatures,
            standardize=self.standardize,
            weights=rows.weights,
        )
        return {
            term: self.weight * loss
            for term, loss in zip(self.terms, losses, strict=True)
        }

    def get_config(self):
        config = super().get_config()
        del config["temperature"]
        return {**config, "temperatures": list(self.temperatures)}


def _checked(temperatures: Sequence[float]) -> tuple[float, ...]:
    if isinstance(temperatures, str) or not isinstance(temperatures, Iterable):
        raise TypeError(
            "`temperatures` must be a sequence of numbers. Received: "
            f"temperatures={temperatures!r} of type "
            f"{type(temperatures).__name__}. Pass a list, such as [2.0, 4.0]."
        )
    temperatures = tuple(temperatures)
    if not temperatures:
        raise ValueError(
            "`temperatures` must be one number or more. Received: "
            "temperatures=(). Pass a list, such as [2.0, 4.0]."
        )
    for each in temperatures:
        require_positive(temperatures=each)
    return temperatures


def _relations(
    student: tf.Tensor, teacher: tf.Tensor, counted: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes `batch` and `class` of predictions at one temperature."""
    classes = tf.cast(tf.shape(student)[1], student.dtype)
    rows = tf.cast(tf.shape(student)[0], student.dtype)
    if counted is not None:
        rows = tf.reduce_sum(tf.cast(counted, student.dtype))
        student, teacher = (
            tf.where(counted[:, tf.newaxis], each, 0)
            for each in (student, teacher)
        )
    # With D = P_T - P_S and A = P_T + P_S, the difference of samples is
    # (D A' + A D') / 2 and that of classes (D' A + A' D) / 2. The squares of
    # both follow from matrices of classes alone. A matrix of all rows would
    # not fit into memory where each pixel is a row. Nothing large cancels
    # where the predictions are close.
    difference, total = teacher - student, teacher + student
    cross = tf.matmul(total, difference, transpose_a=True)
    transposed = tf.transpose(cross)
    squares = tf.matmul(difference, difference, transpose_a=True) * tf.matmul(
        total, total, transpose_a=True
    )
    of_batch = tf.reduce_sum(squares + cross * transposed) / 2
    of_classes = tf.reduce_sum(((cross + transposed) / 2) ** 2)
    return tf.math.divide_no_nan(of_batch, rows), of_classes / classes
