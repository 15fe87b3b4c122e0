"""Distills the flow between feature maps (FSP matrices).

J. Yim, D. Joo, J. Bae, J. Kim, CVPR 2017.
"""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import require_known
from keras_mhgd.features import without_padding
from keras_mhgd.methods.base.initializing import InitializingMethod
from keras_mhgd.methods.base.method import Needs
from keras_mhgd.methods.pieces.maps import (
    common_size,
    flatten_positions,
    joint_masks,
    masked_maps,
    to_one_size,
    with_masks,
)
from keras_mhgd.methods.pieces.projection import projected, projections
from keras_mhgd.methods.pieces.reductions import REDUCTIONS
from keras_mhgd.methods.pieces.targets import student_and_target

_POOLINGS = ("max", "average")


def fsp_matrix(
    front: tf.Tensor,
    back: tf.Tensor,
    pooling: str = "max",
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the flow between two sensing points of one network.

    G_ij = mean over positions of front_i back_j.

    Args:
        front: Maps `(batch, height, width, D1)`, sequences or vectors.
        back: Maps `(batch, height, width, D2)`, sequences or vectors; the
            larger of two sizes is pooled to the smaller.
        pooling: `"max"` or `"average"`.
        mask: `(batch, length)` for padded sequences, false at padded
            positions. The mean of each sample is over the other positions.

    Returns:
        Matrices `(batch, D1, D2)`, float32 or float64.
    """
    front, back = to_one_size(front, back, pooling)
    front, back = (
        flatten_positions(without_padding(each, mask)) for each in (front, back)
    )
    products = tf.matmul(front, back, transpose_a=True)
    if mask is None:
        return products / tf.cast(tf.shape(front)[1], front.dtype)
    positions = tf.math.count_nonzero(mask, axis=1, dtype=front.dtype)
    return tf.math.divide_no_nan(products, positions[:, tf.newaxis, tf.newaxis])


def fsp_loss(
    student_maps: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    pooling: str = "max",
    reduction: str = "sum",
    student_masks: Sequence[tf.Tensor | None] | None = None,
    teacher_masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes how far the flows between neighbouring points differ.

    loss = sum over neighbours of mean over samples of ||G^S - G^T||_F^2,
    with G = `fsp_matrix`.

    Args:
        student_maps: Two or more, front end first: maps, sequences or
            vectors, any float dtype.
        teacher_maps: Like `student_maps`, with the student's channels; sizes
            may differ. No gradient flows into them.
        pooling: How the larger map of two neighbours is reduced to the size
            of the smaller: `"max"` (paper) or `"average"`.
        reduction: `"sum"` over the entries of a matrix (paper) or their
            `"mean"`.
        student_masks: `(batch, length)` for each pair of neighbours that are
            padded sequences, as in `fsp_matrix`; `None` for other pairs, or
            for all.
        teacher_masks: Like `student_masks`; lengths may differ.

    Returns:
        Scalar >= 0, float32 or float64.

    Raises:
        ValueError: If `pooling` or `reduction` is unknown.
    """
    require_known("pooling", pooling, _POOLINGS)
    require_known("reduction", reduction, REDUCTIONS)
    losses = []
    for (student, student_mask), (teacher, teacher_mask) in zip(
        with_masks([*itertools.pairwise(student_maps)], student_masks),
        with_masks([*itertools.pairwise(teacher_maps)], teacher_masks),
        strict=True,
    ):
        squares = tf.math.squared_difference(
            *student_and_target(
                fsp_matrix(*student, pooling, student_mask),
                fsp_matrix(*teacher, pooling, teacher_mask),
            )
        )
        entries = REDUCTIONS[reduction](squares, axis=(1, 2))
        losses.append(tf.reduce_mean(entries))
    return tf.add_n(losses)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class FSP(InitializingMethod):
    """Matches how channels of neighbouring sensing points occur together.

    loss = weight sum over neighbours of mean over samples of
    ||G^S - G^T||_F^2, where G_ij is the mean over positions of channel i of a
    point times channel j of the next point. See `fsp_loss`.

    Args:
        pooling: How the larger map of two neighbours is reduced to the size
            of the smaller: `"max"` (paper) or `"average"`.
        reduction: `"sum"` over the entries of a matrix (paper) or their
            `"mean"`.
        preparation_epochs: Epochs of training by this loss alone, before the
            task, as in the paper; 0 trains by this loss and the task together.
        preparation_learning_rate: Learning rate of that training's SGD
            (Nesterov momentum 0.9), > 0.
        weight: Multiplier of the loss, >= 0. The default is that of the code
            of MHGD's authors, beside a task. With `"mean"`, 50 is in use. The
            paper first trains by this loss alone, with weight 1 for all pairs.
            Beside a task, a weight of 1 can overflow at common learning rates.

    Call arguments:
        student: `Features` with two maps or more: `(batch, height, width,
            D)`, `(batch, length, D)` or `(batch, D)`.
        teacher: Like `student`; sizes may differ. Where channels differ, a
            trained `Projection` maps the student's to the teacher's.
        labels: Not used.

    Returns:
        `{"fsp": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if there is only one
            point. Neighbouring sequences of a network must have one length if
            one of them is padded.

    Example:
        >>> method = keras_mhgd.methods.FSP()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        J. Yim, D. Joo, J. Bae, J. Kim, "A Gift from Knowledge Distillation:
        Fast Optimization, Network Minimization and Transfer Learning", CVPR
        2017.
    """

    terms = ("fsp",)
    needs = Needs(maps=True, least_points=2)
    spans = "sample"

    def __init__(
        self,
        pooling: str = "max",
        reduction: str = "sum",
        weight: float = 5e-4,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_known("pooling", pooling, _POOLINGS)
        require_known("reduction", reduction, REDUCTIONS)
        self.pooling = pooling
        self.reduction = reduction

    def build(self, student, teacher):
        super().build(student, teacher)
        for maps in (student.maps, teacher.maps):
            for front, back in itertools.pairwise(maps):
                common_size(front, back)
        self.projections = projections(student.maps, teacher.maps)

    def call(self, student, teacher, labels):
        student_masks, teacher_masks = (
            joint_masks(each[:-1], each[1:], type(self).__name__)
            for each in map(masked_maps, (student, teacher))
        )
        loss = fsp_loss(
            projected(self.projections, student.maps),
            teacher.maps,
            pooling=self.pooling,
            reduction=self.reduction,
            student_masks=student_masks,
            teacher_masks=teacher_masks,
        )
        return {"fsp": self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "reduction": self.reduction,
        }
