"""Distills feature maps directly, as hints (FitNets).

A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, ICLR
2015, arXiv:1412.6550.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import require_known
from keras_mhgd.methods.base.initializing import InitializingMethod
from keras_mhgd.methods.base.method import Needs
from keras_mhgd.methods.pieces.maps import (
    common_size,
    joint_masks,
    masked_maps,
    mean_of_positions,
    to_one_size,
    with_masks,
)
from keras_mhgd.methods.pieces.projection import projected, projections

_SIDES = ("student", "teacher")


def hint_loss(
    student_maps: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes the mean squared difference of maps.

    loss = sum over points of mean (s - t)^2, over samples, positions and
    channels.

    The gradient flows into both arguments, because a trained projection may
    be applied to either. Pass the teacher's maps through `tf.stop_gradient`
    first.

    Args:
        student_maps: One for each point: maps, sequences or vectors, any
            float dtype.
        teacher_maps: Like `student_maps`, with the student's channels; the
            larger of two sizes is average-pooled to the smaller.
        masks: `(batch, length)` for each point with padded sequences, false
            at padded positions, which count neither in the sum nor in the
            mean. `None` for other points, or for all.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    losses = []
    for (student, mask), teacher in zip(
        with_masks(student_maps, masks), teacher_maps, strict=True
    ):
        student, teacher = to_one_size(student, teacher)
        squares = tf.math.squared_difference(student, teacher)
        losses.append(mean_of_positions(squares, mask))
    return tf.add_n(losses)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class FitNet(InitializingMethod):
    """Matches maps directly, through a trained projection if widths differ.

    loss = weight sum over points of mean (r(s) - t)^2. r is a `Projection` to
    the teacher's channels that trains with the student. Where the channels
    are equal, r is the identity. See `hint_loss`.

    The paper first trains the student by one hint alone, then by the task:
    set `preparation_epochs` to 1 or more, with one sensing point in the middle
    of the networks. By default the student trains by hints at all sensing
    points and the task together.

    Args:
        project: The network whose maps are projected: `"student"` (paper) or
            `"teacher"`. A projection of the teacher's maps can shrink the
            target.
        preparation_epochs: Epochs of training by the hints alone, before the
            task; 0 trains by the hints and the task together.
        preparation_learning_rate: Learning rate of that training's SGD
            (Nesterov momentum 0.9), > 0.
        weight: Multiplier of the loss, >= 0. The paper trains by the hint
            alone, without a weight.

    Call arguments:
        student: `Features`; all its maps are read: `(batch, height, width,
            D)`, `(batch, length, D)` or `(batch, D)`.
        teacher: Like `student`; size and channels may differ.
        labels: Not used.

    Returns:
        `{"fitnet": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if two maps cannot be
            brought to one size. Two sequences must have one length if one of
            them is padded.

    Example:
        >>> method = keras_mhgd.methods.FitNet()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio,
        "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
    """

    terms = ("fitnet",)
    needs = Needs(maps=True)
    spans = "sample"

    def __init__(self, project: str = "student", **kwargs):
        super().__init__(**kwargs)
        require_known("project", project, _SIDES)
        self.project = project

    def build(self, student, teacher):
        super().build(student, teacher)
        sources, targets = student.maps, teacher.maps
        if self.project == "teacher":
            sources, targets = targets, sources
        for source, target in zip(sources, targets, strict=True):
            common_size(source, target)
        self.projections = projections(sources, targets)

    def call(self, student, teacher, labels):
        masks = joint_masks(
            masked_maps(student), masked_maps(teacher), type(self).__name__
        )
        student_maps = student.maps
        teacher_maps = [tf.stop_gradient(each) for each in teacher.maps]
        if self.project == "student":
            student_maps = projected(self.projections, student_maps)
        else:
            teacher_maps = projected(self.projections, teacher_maps)
        loss = hint_loss(student_maps, teacher_maps, masks)
        return {"fitnet": self.weight * loss}

    def get_config(self):
        return {**super().get_config(), "project": self.project}
