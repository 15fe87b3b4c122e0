"""Distills the patterns of channels (neuron selectivity transfer).

Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron
Selectivity Transfer", 2017, arXiv:1707.01219.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.features import without_padding
from keras_mhgd.linalg.directions import unit
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.maps import (
    flatten_positions,
    joint_masks,
    masked_maps,
    require_positions,
    to_one_size,
    with_masks,
)


def neuron_selectivity_loss(
    student_maps: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes how far the distributions of channels' patterns differ.

    The loss is the squared maximum mean discrepancy with the kernel
    k(a, b) = (a . b)^2: loss = sum over points of mean over samples of
    mean_tt' k(t, t') + mean_ss' k(s, s') - 2 mean_st k(s, t),
    where s and t run over the channels of student and teacher; each is the
    unit vector of a channel's values over positions.

    Args:
        student_maps: One for each point: `(batch, height, width, D)` or
            `(batch, length, D)`, any float dtype.
        teacher_maps: Like `student_maps`; channels may differ, and the larger
            of two sizes is average-pooled to the smaller. No gradient flows
            into them.
        masks: `(batch, length)` for each point with padded sequences, false
            at padded positions, where patterns are zero. `None` for other
            points, or for all.

    Returns:
        Scalar, float32 or float64: >= 0 except for round-off.
    """
    losses = []
    for (student, mask), teacher in zip(
        with_masks(student_maps, masks), teacher_maps, strict=True
    ):
        student, teacher = (
            unit(flatten_positions(without_padding(each, mask)), axis=1)
            for each in to_one_size(student, tf.stop_gradient(teacher))
        )
        losses.append(
            _mean_kernel(teacher, teacher)
            + _mean_kernel(student, student)
            - 2 * _mean_kernel(student, teacher)
        )
    return tf.add_n(losses)


def _mean_kernel(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(tf.matmul(a, b, transpose_a=True)))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class NST(Method):
    """Matches the distribution of the patterns that channels select.

    loss = weight MMD^2 at the last sensing point, with the polynomial kernel
    (a . b)^2 between the channels' unit vectors over positions. See
    `neuron_selectivity_loss`.

    Args:
        weight: Multiplier of the loss, >= 0. 50 is in wide use for this kernel.

    Call arguments:
        student: `Features`; the last of its maps is read:
            `(batch, height, width, D)` or `(batch, length, D)`.
        teacher: Like `student`; size and channels may differ.
        labels: Not used.

    Returns:
        `{"nst": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if the point has one
            position only: its kernel would always be 1. Two sequences must
            have one length if one of them is padded.

    Example:
        >>> method = keras_mhgd.methods.NST()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron
        Selectivity Transfer", 2017, arXiv:1707.01219.
    """

    terms = ("nst",)
    needs = Needs(maps=True)
    spans = "sample"

    def __init__(self, weight: float = 50.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def build(self, student, teacher):
        super().build(student, teacher)
        require_positions(
            student.maps[-1:], teacher.maps[-1:], type(self).__name__
        )

    def call(self, student, teacher, labels):
        masks = joint_masks(
            masked_maps(student)[-1:],
            masked_maps(teacher)[-1:],
            type(self).__name__,
        )
        loss = neuron_selectivity_loss(
            student.maps[-1:], teacher.maps[-1:], masks
        )
        return {"nst": self.weight * loss}
