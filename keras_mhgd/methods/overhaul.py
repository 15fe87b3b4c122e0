"""Distills maps before the activation, with a margin (overhaul).

B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi, ICCV 2019,
arXiv:1904.01866.
"""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Taught, without_padding
from keras_mhgd.linalg.precision import as_float
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.base.preparation import Preparation
from keras_mhgd.methods.pieces.connector import connected, connectors
from keras_mhgd.methods.pieces.maps import (
    common_size,
    joint_masks,
    masked_maps,
    to_one_size,
    with_masks,
)


def overhaul_loss(
    student_maps: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    margins: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes the partial L2 distance to the teacher's margin ReLU.

    loss = sum over points of w mean over samples of the sum over positions
    and channels of (s - t')^2, with t' = max(t, margin). Entries with
    s <= t' <= 0 count as 0. The last point's w is 1, and every other point's w
    is half of the next point's.

    Args:
        student_maps: Maps, sequences or vectors before the activation, one
            for each point, front end first; any float dtype.
        teacher_maps: Like `student_maps`, with the student's channels; the
            larger of two sizes is average-pooled to the smaller. No
            gradient flows into them.
        margins: `(channels,)` <= 0 for each point, for example from
            `margins_from_batch_norm`. No gradient flows into them.
        masks: `(batch, length)` for each point with padded sequences, false
            at padded positions, which don't count in the sum. `None` for
            other points, or for all.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    last = len(student_maps) - 1
    losses = []
    for point, ((student, mask), teacher, margin) in enumerate(
        zip(
            with_masks(student_maps, masks),
            teacher_maps,
            margins,
            strict=True,
        )
    ):
        student, teacher = to_one_size(student, teacher)
        margin = tf.cast(margin, teacher.dtype)
        target = tf.stop_gradient(tf.maximum(teacher, margin))
        # Where both neurons are inactive, their difference doesn't matter.
        skipped = (student <= target) & (target <= 0)
        difference = tf.where(~skipped, student - target, 0)
        of_samples = tf.reduce_sum(
            without_padding(tf.square(difference), mask),
            axis=list(range(1, difference.shape.rank)),
        )
        losses.append(2.0 ** (point - last) * tf.reduce_mean(of_samples))
    return tf.add_n(losses)


def margins_from_batch_norm(gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
    """Computes margins from the batch normalisation before an activation.

    margin = E[x | x < 0], where x is normal with mean beta and standard
    deviation |gamma|; -3 |gamma| where x is negative with probability 0.001
    or less.

    `Overhaul` measures its margins on the training data instead. To use these
    margins, assign them: `method.margins[0].assign(...)`.

    Args:
        gamma: Scales `(channels,)`, any float dtype.
        beta: Offsets `(channels,)`.

    Returns:
        `(channels,)` <= 0, float32 or float64.
    """
    deviation, mean = tf.abs(as_float(gamma, beta)), as_float(beta, gamma)
    # A deviation of 0 would divide 0 by 0 where the mean is 0.
    ratio = mean / tf.maximum(deviation, 1e-30)
    negative = tf.math.erfc(ratio / math.sqrt(2)) / 2
    density = tf.exp(-tf.square(ratio) / 2) / math.sqrt(2 * math.pi)
    often = negative > 0.001
    expected = mean - deviation * density / tf.where(often, negative, 1)
    return tf.where(often, expected, -3 * deviation)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Overhaul(Method):
    """Matches maps before the activation, except where both are inactive.

    loss = weight sum over points of w mean over samples of the sum over
    positions and channels of (r(s) - t')^2, with t' = max(t, margin) and r a
    trained `Connector` to the teacher's channels. Entries with
    r(s) <= t' <= 0 count as 0. w is 1 at the last point and halves from point
    to point towards the front end. See `overhaul_loss`.

    The margin of a channel is the mean of the teacher's negative responses,
    0 if there are none. It is measured on the training data before the
    student trains, in one epoch, and saved with the weights.

    Args:
        weight: Multiplier of the loss, >= 0. The default is that of the
            authors' code for CIFAR-100. For ImageNet their weight is a tenth
            of that.

    Call arguments:
        student: `Features`; all of `maps_before_activation` are read: `(batch,
            height, width, D)`, `(batch, length, D)` or `(batch, D)`. The
            output of a sensing point without an activation is read instead.
        teacher: Like `student`; size and channels may differ. The larger of
            two sizes is average-pooled to the smaller.
        labels: Not used.

    Returns:
        `{"overhaul": loss}`, a scalar, float32.

    Raises:
        ValueError: If `weight` is negative, or if two maps cannot be brought
            to one size. Two sequences must have one length if one of them is
            padded.

    Example:
        >>> method = keras_mhgd.methods.Overhaul()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi, "A Comprehensive
        Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866.
    """

    terms = ("overhaul",)
    needs = Needs(maps_before_activation=True)

    def __init__(self, weight: float = 1e-3, **kwargs):
        super().__init__(weight=weight, **kwargs)
        # The learning rate is not used: nothing is trained.
        self.preparation = Preparation(epochs=1, learning_rate=1.0)

    def build(self, student, teacher):
        super().build(student, teacher)
        pair = student.maps_before_activation, teacher.maps_before_activation
        for shapes in zip(*pair, strict=True):
            common_size(*shapes)
        self.connectors = connectors(*pair)
        self.margins = [
            self.add_weight(
                name=f"margin{index}",
                shape=shape[-1:],
                initializer="zeros",
                trainable=False,
            )
            for index, shape in enumerate(teacher.maps_before_activation)
        ]
        self.preparation.build(
            self, lambda teacher, *_: _NegativeMeans(self.margins, teacher)
        )

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
        loss = overhaul_loss(
            connected(self.connectors, student.maps_before_activation, masks),
            teacher.maps_before_activation,
            self.margins,
            masks,
        )
        return {"overhaul": self.weight * loss}


class _NegativeMeans(keras.Model):
    """Measures the mean negative response of each channel by `fit`."""

    def __init__(
        self, means: Sequence[keras.Variable], teacher: FeatureExtractor
    ):
        super().__init__()
        self._means = means
        self._teacher = teacher
        # float64, because small numbers are summed over all positions of all
        # images.
        self._sums, self._counts = (
            [
                self.add_weight(
                    shape=mean.shape,
                    initializer="zeros",
                    dtype="float64",
                    trainable=False,
                )
                for mean in means
            ]
            for _ in range(2)
        )
        self.built = True

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, Taught):
            teacher = x.features
        else:
            teacher = self._teacher(x).without_padding()
        for map_, mean, total, count in zip(
            teacher.maps_before_activation,
            self._means,
            self._sums,
            self._counts,
            strict=True,
        ):
            negative = tf.minimum(tf.cast(map_, tf.float64), 0)
            axes = list(range(map_.shape.rank - 1))
            sums = (
                tf.reduce_sum(negative, axes),
                tf.math.count_nonzero(negative, axes, dtype=tf.float64),
            )
            for kept, added in zip(
                (total, count), replicas.summed(sums), strict=True
            ):
                kept.assign_add(added)
            found = tf.math.divide_no_nan(
                tf.convert_to_tensor(total), tf.convert_to_tensor(count)
            )
            mean.assign(tf.cast(found, mean.dtype))
        # Keras needs an entry. No loss is computed, so the entry shows 0.
        return self.get_metrics_result()
