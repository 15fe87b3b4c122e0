"""Distills spatial attention maps (attention transfer).

S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving
the Performance of Convolutional Neural Networks via Attention Transfer",
ICLR 2017, arXiv:1612.03928.
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
    mean_of_positions,
    require_positions,
    to_one_size,
    with_masks,
)


def attention_transfer_loss(
    student_maps: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    power: int = 2,
    masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes how far spatial attention maps differ.

    loss = sum over points of mean over samples and positions of
    (Q^S - Q^T)^2, where Q is the unit vector, over positions, of
    sum over channels of |F|^power.

    Args:
        student_maps: One for each point: `(batch, height, width, D)` or
            `(batch, length, D)`, any float dtype.
        teacher_maps: Like `student_maps`; channels may differ, and the larger
            of two sizes is average-pooled to the smaller. No gradient flows
            into them.
        power: Exponent of the activations, >= 1.
        masks: `(batch, length)` for each point with padded sequences, false
            at padded positions. Attention is zero at these, and the mean is
            over the other positions. `None` for other points, or for all.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    losses = []
    for (student, mask), teacher in zip(
        with_masks(student_maps, masks), teacher_maps, strict=True
    ):
        student, teacher = (
            _attention(without_padding(each, mask), power)
            for each in to_one_size(student, tf.stop_gradient(teacher))
        )
        losses.append(mean_of_positions(tf.square(student - teacher), mask))
    return tf.add_n(losses)


def _attention(feature: tf.Tensor, power: int) -> tf.Tensor:
    feature = flatten_positions(feature)
    # Repeated products have a finite gradient at zero; tf.pow has none.
    size = feature if power % 2 == 0 else tf.abs(feature)
    powers = size
    for _ in range(power - 1):
        powers = powers * size
    return unit(tf.reduce_mean(powers, axis=-1))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class AttentionTransfer(Method):
    """Matches where in space the channels of a map are active.

    loss = weight sum over points of mean (Q^S - Q^T)^2, where Q is the unit
    vector, over positions, of the sum over channels of |F|^power. See
    `attention_transfer_loss`.

    Args:
        power: Exponent of the activations, an integer >= 1. The paper's is 2.
        weight: Multiplier of the loss, >= 0. The paper's is beta / 2 with
            beta = 1000, divided by the numbers of samples and positions. The
            mean in the loss includes this division.

    Call arguments:
        student: `Features`; all its maps are read: `(batch, height, width,
            D)` or `(batch, length, D)`.
        teacher: Like `student`; size and channels may differ.
        labels: Not used.

    Returns:
        `{"attention_transfer": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if a point has one
            position only: its attention would always be 1. Two sequences
            must have one length if one of them is padded.

    Example:
        >>> method = keras_mhgd.methods.AttentionTransfer()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention:
        Improving the Performance of Convolutional Neural Networks via
        Attention Transfer", ICLR 2017, arXiv:1612.03928.
    """

    terms = ("attention_transfer",)
    needs = Needs(maps=True)
    spans = "sample"

    def __init__(self, power: int = 2, weight: float = 500.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if power != int(power) or power < 1:
            raise ValueError(
                "`power` must be an integer, 1 or more. "
                f"Received: power={power}. The paper's is 2."
            )
        self.power = int(power)

    def build(self, student, teacher):
        super().build(student, teacher)
        require_positions(student.maps, teacher.maps, type(self).__name__)

    def call(self, student, teacher, labels):
        masks = joint_masks(
            masked_maps(student), masked_maps(teacher), type(self).__name__
        )
        loss = attention_transfer_loss(
            student.maps, teacher.maps, self.power, masks
        )
        return {"attention_transfer": self.weight * loss}

    def get_config(self):
        return {**super().get_config(), "power": self.power}
