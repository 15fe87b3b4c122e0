"""Distills activation boundaries: which hidden neurons are active.

B. Heo, M. Lee, S. Yun, J. Y. Choi, AAAI 2019, arXiv:1811.03233.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import require_known, require_positive
from keras_mhgd.features import without_padding
from keras_mhgd.methods.base.initializing import InitializingMethod
from keras_mhgd.methods.base.method import Needs
from keras_mhgd.methods.pieces.connector import connected, connectors
from keras_mhgd.methods.pieces.maps import (
    common_size,
    joint_masks,
    masked_maps,
    to_one_size,
    with_masks,
)

_POINTS = ("first", "last")


def activation_boundary_loss(
    student_maps: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    margin: float = 1.0,
    unit_point: str = "last",
    masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes how far student neurons are from the teacher's side of zero.

    loss = sum over points of w mean over samples of the sum over positions
    and channels of relu(margin - s)^2 where t > 0, relu(margin + s)^2
    elsewhere.

    Args:
        student_maps: Maps, sequences or vectors before the activation, one
            for each point, front end first; any float dtype.
        teacher_maps: Like `student_maps`, with the student's channels; the
            larger of two sizes is average-pooled to the smaller. No
            gradient flows into them.
        margin: Distance from zero, on the teacher's side, from which on a
            neuron has no loss, > 0.
        unit_point: The point whose weight `w` is 1, `"last"` (the authors'
            code) or `"first"`. Each point has twice the weight of the
            point before.
        masks: `(batch, length)` for each point with padded sequences, false
            at padded positions, which don't count in the sum. `None` for
            other points, or for all.

    Returns:
        Scalar >= 0, float32 or float64.

    Raises:
        ValueError: If `unit_point` is unknown.
    """
    require_known("unit_point", unit_point, _POINTS)
    unit = 0 if unit_point == "first" else len(student_maps) - 1
    losses = []
    for point, ((student, mask), teacher) in enumerate(
        zip(with_masks(student_maps, masks), teacher_maps, strict=True)
    ):
        student, teacher = to_one_size(student, teacher)
        on_the_right_side = tf.where(teacher > 0, student, -student)
        missing = tf.nn.relu(margin - on_the_right_side)
        of_samples = tf.reduce_sum(
            without_padding(tf.square(missing), mask),
            axis=list(range(1, missing.shape.rank)),
        )
        losses.append(2.0 ** (point - unit) * tf.reduce_mean(of_samples))
    return tf.add_n(losses)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class ActivationBoundaries(InitializingMethod):
    """Matches which neurons are active, whatever their values.

    loss = weight sum over points of w mean over samples of the sum over
    positions and channels of relu(margin - r(s))^2 where t > 0 and
    relu(margin + r(s))^2 elsewhere; w doubles from point to point. `s` and
    `t` are read before the activation. r is a `Connector` to the teacher's
    channels that trains with the student. Where the channels are equal, r is
    the identity. See `activation_boundary_loss`.

    The paper first trains the student by this loss alone, then by the task:
    set `preparation_epochs` to 1 or more. By default the student trains by
    both together.

    Args:
        margin: Distance from zero, on the teacher's side, from which on a
            neuron has no loss, > 0. The paper's is 1.
        unit_point: The sensing point whose weight `w` is 1: `"last"`, as in
            the authors' code, which halves `w` from point to point towards
            the front end; or `"first"`, as in the code of MHGD's authors,
            which doubles `w` towards the back end.
        preparation_epochs: Epochs of training by this loss alone, before the
            task; 0 trains by this loss and the task together.
        preparation_learning_rate: Learning rate of that training's SGD
            (Nesterov momentum 0.9), > 0. The authors' is 0.1.
        weight: Multiplier of the loss, >= 0. The default is that of the
            published implementations.

    Call arguments:
        student: `Features`; all of `maps_before_activation` are read: `(batch,
            height, width, D)`, `(batch, length, D)` or `(batch, D)`. The
            output of a sensing point without an activation is read instead.
        teacher: Like `student`; size and channels may differ.
        labels: Not used.

    Returns:
        `{"activation_boundaries": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if two maps cannot be
            brought to one size. Two sequences must have one length if one of
            them is padded.

    Example:
        >>> method = keras_mhgd.methods.ActivationBoundaries()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        B. Heo, M. Lee, S. Yun, J. Y. Choi, "Knowledge Transfer via
        Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI
        2019, arXiv:1811.03233.
    """

    terms = ("activation_boundaries",)
    needs = Needs(maps_before_activation=True)

    def __init__(
        self,
        margin: float = 1.0,
        unit_point: str = "last",
        weight: float = 3e-3,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_positive(margin=margin)
        require_known("unit_point", unit_point, _POINTS)
        self.margin = margin
        self.unit_point = unit_point

    def build(self, student, teacher):
        super().build(student, teacher)
        pair = student.maps_before_activation, teacher.maps_before_activation
        for shapes in zip(*pair, strict=True):
            common_size(*shapes)
        self.connectors = connectors(*pair, keep_equal=True)

    def targets(self, teacher):
        return teacher._replace(maps=[])

    def call(self, student, teacher, labels):
        masks = joint_masks(
            *(
                masked_maps(each, "maps_before_activation")
                for each in (student, teacher)
            ),
            type(self).__name__,
        )
        loss = activation_boundary_loss(
            connected(self.connectors, student.maps_before_activation, masks),
            teacher.maps_before_activation,
            margin=self.margin,
            unit_point=self.unit_point,
            masks=masks,
        )
        return {"activation_boundaries": self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "margin": self.margin,
            "unit_point": self.unit_point,
        }
