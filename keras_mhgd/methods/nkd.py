"""Distills the target class and the normalized other classes (NKD).

Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, ICCV 2023, arXiv:2303.13005.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative
from keras_mhgd.methods.base.labelled_logit_method import LabelledLogitMethod
from keras_mhgd.methods.pieces.classes import is_target, left_out, of_marked
from keras_mhgd.methods.pieces.divergence import mean_over_rows, standardized
from keras_mhgd.methods.pieces.targets import student_and_target


def normalized_losses(
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    labels: tf.Tensor,
    temperature: float = 1.0,
    standardize: bool = False,
    weights: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the cross-entropies of the target and of the other classes.

    With T the temperature, p = softmax(logits) without a temperature and y the
    label,

    target = -mean_b p_T[y] log p_S[y],
    non_target = -T^2 mean_b sum_c q_T[c] log q_S[c], q = softmax of logits / T
    over the classes c other than y.

    Args:
        student_logits: `(batch, classes)`, two classes or more.
        teacher_logits: Like `student_logits`; no gradient flows into them.
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`, where the largest entry counts.
        temperature: T, > 0, of the other classes alone.
        standardize: Whether each sample's logits are brought to mean 0 and
            standard deviation 1 first, in both networks.
        weights: 1 for rows that count and 0 for others, `(batch,)`; `None` if
            all count.

    Returns:
        Two scalars >= 0: `target` and `non_target`. The first is 0 where the
        student is sure of the label. The second is smallest, but not 0, where
        the other classes have equal shares in both networks.

    Raises:
        ValueError: If the labels have another shape.
    """
    student, teacher = student_and_target(student_logits, teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    target = is_target(labels, student.shape[-1])
    of_target = of_marked(tf.nn.softmax(teacher), target) * of_marked(
        tf.nn.log_softmax(student), target
    )
    # The softmax over the other classes alone is their probabilities divided
    # by their sum: the normalization of the paper.
    ours, theirs = (
        left_out(logits / temperature, target) for logits in (student, teacher)
    )
    of_others = tf.reduce_sum(
        tf.nn.softmax(theirs) * tf.nn.log_softmax(ours), axis=-1
    )
    return (
        -mean_over_rows(of_target, weights),
        -(temperature**2) * mean_over_rows(of_others, weights),
    )


@keras.saving.register_keras_serializable(package="keras_mhgd")
class NKD(LabelledLogitMethod):
    """Matches the target class, and the other classes by their shares.

    loss = target + gamma non_target. The first term is the cross-entropy of
    the label, weighted by the teacher's probability of it. The second term is
    the cross-entropy of the other classes, whose probabilities add up to 1 in
    both networks. See `normalized_losses`.

    Each position of dense outputs has a label and a prediction of its own.
    Each of several independent labels counts as a choice between no and yes.
    Then there is one other class, and `non_target` is 0. Rows without a label
    are left out.

    Args:
        gamma: Multiplier of the other classes' term, >= 0. The default is that
            of the published code, used for ImageNet. Its setting for CIFAR-100
            is 3.5 at a temperature of 3.
        temperature: Divides the logits of the other classes, > 0. Its square
            multiplies their term.
        standardize: Whether each sample's logits are standardized first
            (S. Sun et al., CVPR 2024, arXiv:2403.01427).
        weight: Multiplier of both terms, >= 0.

    Call arguments:
        student: `Features` of the student; `logits` are `(batch, classes)`.
        teacher: `Features` of the teacher, with the student's classes.
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`.

    Returns:
        `{"nkd_target": loss, "nkd_non_target": loss}`, two scalars.

    Raises:
        ValueError: If an argument is out of range, the classes differ, or
            the labels are missing or have another shape.

    Example:
        >>> method = keras_mhgd.methods.NKD(gamma=1.5, temperature=1.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge
        Distillation to Self-Knowledge Distillation: A Unified Approach with
        Normalized Loss and Customized Soft Labels", ICCV 2023,
        arXiv:2303.13005.
    """

    terms = ("nkd_target", "nkd_non_target")
    row_terms = terms

    def __init__(
        self,
        gamma: float = 1.5,
        temperature: float = 1.0,
        standardize: bool = False,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(temperature, standardize, weight, **kwargs)
        require_not_negative(gamma=gamma)
        self.gamma = gamma

    def call(self, student, teacher, labels):
        rows = self.rows(student, teacher, labels)
        target, non_target = normalized_losses(
            rows.student,
            rows.teacher,
            rows.labels,
            temperature=self.temperature,
            standardize=self.standardize,
            weights=rows.weights,
        )
        return {
            "nkd_target": self.weight * target,
            "nkd_non_target": self.weight * (self.gamma * non_target),
        }

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}
