"""Weights samples by the entropies of both networks (EA-KD).

C.-P. Su, C.-H. Tseng, B. Pu, L. Zhao, J. Yang, Z. Chen, S.-J. Lee, ICCV 2025,
arXiv:2311.13621.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.methods.base.logit_method import LogitMethod, inner_method
from keras_mhgd.methods.pieces.divergence import mean_over_rows
from keras_mhgd.methods.pieces.targets import student_and_target
from keras_mhgd.methods.soft_logits import SoftLogits
from keras_mhgd.tasks import MULTI_LABEL, SINGLE_LABEL


def learning_values(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 3.0,
) -> tf.Tensor:
    """Computes how much there is to learn from each sample.

    value = (H_T + H_T H_S / log C) / 2, with H = -sum_c p_c log p_c the
    entropy of p = softmax(logits / temperature), and C classes. log C is the
    largest entropy. (The published code divides by 100 instead in its KD and
    DKD for CIFAR-100, and by log C elsewhere.)

    Args:
        student_logits: `(batch, classes)`, two classes or more.
        teacher_logits: `(batch, classes)`.
        temperature: > 0.

    Returns:
        `(batch,)`, from 0, where the teacher is sure, to log C, where neither
        network prefers any class. No gradient flows into either network.
    """
    of_student, of_teacher = (
        _entropy(tf.stop_gradient(each) / temperature)
        for each in student_and_target(student_logits, teacher_logits)
    )
    largest = np.log(student_logits.shape[-1])
    return of_teacher * (1 + of_student / largest) / 2


@keras.saving.register_keras_serializable(package="keras_mhgd")
class EAKD(LogitMethod):
    """Gives samples of high entropy more weight in another method on logits.

    loss = mean_b value_b loss_b, with loss_b the other method's loss of one
    sample and value_b its value for learning: see `learning_values`. Terms
    that are no means over samples, such as the batch and class levels of
    `MLKD`, stay as they are.

    Each position of dense outputs has a value of its own. So has each of
    several independent labels, as a choice between no and yes.

    Args:
        method: The method whose samples are weighted: `SoftLogits`, `DKD`,
            `NKD`, `TTM`, `WTTM`, `RLD` or `MLKD`. `SoftLogits` with its
            defaults if `None`.
        temperature: Divides the logits of which the entropies are taken, > 0.
            The other method has a temperature of its own.
        weight: Multiplier of all terms, >= 0, beside the other method's own.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: As the other method needs them.

    Returns:
        The other method's terms, with `ea_` before their names.

    Raises:
        TypeError: If `method` is no method on logits.
        ValueError: If no term of `method` is a mean over samples, an argument
            is out of range, or the classes differ.

    Example:
        >>> method = keras_mhgd.methods.EAKD(keras_mhgd.methods.DKD())
        >>> method.terms
        ('ea_dkd_target', 'ea_dkd_non_target')
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        C.-P. Su, C.-H. Tseng, B. Pu, L. Zhao, J. Yang, Z. Chen, S.-J. Lee,
        "EA-KD: Entropy-based Adaptive Knowledge Distillation", ICCV 2025,
        arXiv:2311.13621.
    """

    def __init__(
        self,
        method: LogitMethod | dict[str, Any] | None = None,
        temperature: float = 3.0,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, False, weight, **kwargs)
        if method is None:
            method = SoftLogits(name="soft_logits")
        self.method = inner_method(method, "a method on logits")
        self.terms = tuple(f"ea_{term}" for term in self.method.terms)
        self.spans = self.method.spans
        # Values and embeddings have no entropy.
        tasks = [
            each
            for each in self.method.needs.tasks
            if each in (SINGLE_LABEL, MULTI_LABEL)
        ]
        self.needs = self.method.needs._replace(tasks=tuple(tasks))

    def build(self, student, teacher):
        super().build(student, teacher)
        self.method.build(student, teacher)

    def call(self, student, teacher, labels):
        # An independent label is a row of two classes from here on, which is a
        # single-label task to the other method.
        rows = self.rows(student, teacher, labels)
        student = student._replace(logits=rows.student, weights=rows.weights)
        teacher = teacher._replace(logits=rows.teacher)
        values = learning_values(rows.student, rows.teacher, self.temperature)
        counted = self.method.row_weights(student, rows.labels)
        # The other method divides by the sum of the weights.
        mean = mean_over_rows(values, counted)
        # Where it only tells 0 from the rest, a row of value 0 still counts.
        values = tf.maximum(values, values.dtype.as_numpy_dtype(1e-30))
        if counted is not None:
            values *= tf.cast(counted, values.dtype)
        found = self.method.call(
            student._replace(weights=values), teacher, rows.labels
        )
        return {
            f"ea_{term}": self.weight
            * (mean * loss if term in self.method.row_terms else loss)
            for term, loss in found.items()
        }

    def get_config(self):
        config = super().get_config()
        del config["standardize"]
        method = keras.saving.serialize_keras_object(self.method)
        return {**config, "method": method}


def _entropy(logits: tf.Tensor) -> tf.Tensor:
    log = tf.nn.log_softmax(logits)
    # A probability of 0 has a finite logarithm here, so the product is 0.
    return -tf.reduce_sum(tf.exp(log) * log, axis=-1)
