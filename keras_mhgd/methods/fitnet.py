"""FitNets: hints for thin deep nets.

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

    A trained projection may stand on either side, so the gradient flows into
    both: pass the teacher's maps through `tf.stop_gradient` before.

    Args:
        student_maps: One for each point: maps, sequences or vectors, any
            float dtype.
        teacher_maps: The same, with the student's channels; the larger of two
            sizes is average-pooled to the smaller.
        masks: `(batch, length)` for each point whose sequences are padded,
            false there: these positions count neither in the sum nor in the
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

    loss = weight sum over points of mean (r(s) - t)^2, with r a `Projection`
    to the teacher's channels, trained with the student, or the identity where
    the channels are equal. See `hint_loss`.

    The paper trains one hint first and the task after: that is
    `preparation_epochs` of 1 or more, with one sensing point in the middle of
    the networks. By default hints at all sensing points and the task train
    together.

    Args:
        project: Whose maps the projection changes: the `"student"`'s (paper)
            or the `"teacher"`'s, which lets it shrink the target.
        preparation_epochs: Epochs of the hints alone, before the task; 0 to
            train by both together.
        preparation_learning_rate: Rate of that training's SGD (Nesterov
            momentum 0.9), > 0.
        weight: Multiplier of the loss, >= 0. The paper's hint stands alone
            and has none.

    Call arguments:
        student: `Features`; all its maps are read: `(batch, height, width,
            D)`, `(batch, length, D)` or `(batch, D)`.
        teacher: The same; size and channels may differ.
        labels: Not used.

    Returns:
        `{"fitnet": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if two maps cannot be
            brought to one size. Sequences of two lengths cannot if one of
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
