"""Distills maps by variational information (VID).

S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, CVPR 2019,
arXiv:1904.05835.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.maps import (
    common_size,
    flatten_positions,
    joint_masks,
    masked_maps,
    mean_of_positions,
    to_one_size,
    with_masks,
)
from keras_mhgd.methods.pieces.targets import student_and_target

_INITIAL_VARIANCE = 5.0


def variational_information_loss(
    means: Sequence[tf.Tensor],
    teacher_maps: Sequence[tf.Tensor],
    variances: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor | None] | None = None,
) -> tf.Tensor:
    """Computes how improbable the teacher's maps are given the student's.

    loss = sum over points of mean of 1/2 (log v + (t - m)^2 / v), over
    samples, positions and channels. Up to a constant, this is the negative
    logarithm of a Gaussian density.

    Args:
        means: The teacher's map as predicted from the student's, `(..., D)`
            for each point, any float dtype.
        teacher_maps: Maps of the shapes of `means`. No gradient flows into
            them.
        variances: `(D,)` for each point, > 0.
        masks: `(batch, length)` for each point with padded sequences, false
            at padded positions; the mean is over the other positions. `None`
            for other points, or for all.

    Returns:
        Scalar, float32 or float64; below 0 where small variances are right.
    """
    losses = []
    for (mean, mask), teacher, variance in zip(
        with_masks(means, masks), teacher_maps, variances, strict=True
    ):
        mean, teacher = student_and_target(mean, teacher)
        variance = tf.cast(variance, mean.dtype)
        errors = tf.math.squared_difference(teacher, mean) / variance
        errors += tf.math.log(variance)
        losses.append(mean_of_positions(errors, mask) / 2)
    return tf.add_n(losses)


class _Regressor(keras.Layer):
    """Predicts the teacher's map from the student's: means and variances.

    The means come from three dense layers without bias, with ReLU between
    them. On maps these layers are 1 x 1 convolutions. Each of the teacher's
    channels has one variance.
    """

    def __init__(
        self,
        units: int,
        hidden_units: int,
        normalize: bool,
        min_variance: float,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.min_variance = min_variance
        self.dense, self.norms = [], []
        for width in (hidden_units, hidden_units, units):
            self.dense.append(
                keras.layers.Dense(width, use_bias=False, dtype="float32")
            )
            if normalize:
                self.norms.append(
                    keras.layers.BatchNormalization(
                        momentum=0.9, epsilon=1e-5, dtype="float32"
                    )
                )

    def build(self, input_shape):
        for layer in self.dense:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], layer.units)
        for layer, norm in zip(self.dense, self.norms, strict=False):
            norm.build((None, None, layer.units))
        self.alpha = self.add_weight(
            name="alpha",
            shape=input_shape[-1:],
            # The inverse of softplus: variances begin at 5 + min_variance.
            initializer=keras.initializers.Constant(
                float(np.log(np.expm1(_INITIAL_VARIANCE)))
            ),
        )

    def call(self, inputs, mask=None):
        x = inputs
        for index, layer in enumerate(self.dense):
            x = layer(tf.nn.relu(x) if index else x)
            if self.norms:
                x = self.norms[index](x, training=True, mask=mask)
        return x, tf.nn.softplus(self.alpha) + self.min_variance


@keras.saving.register_keras_serializable(package="keras_mhgd")
class VID(Method):
    """Raises a lower bound on the mutual information of both networks' maps.

    loss = weight sum over points of mean of 1/2 (log v + (t - r(s))^2 / v).
    r is a small network that predicts the teacher's map from the student's.
    v = softplus(alpha) + min_variance is the variance of each of the teacher's
    channels. Channels that can't be predicted get a large variance and count
    less. r and alpha train with the student. See
    `variational_information_loss`.

    Args:
        expansion: Width of r's two hidden layers divided by the teacher's
            number of channels, > 0.
        normalize: Whether batch normalisation, by batch statistics, follows
            each layer of r, including the last.
        min_variance: Added to each variance, > 0.
        weight: Multiplier of the loss, >= 0. 1 is in use with this mean.

    The defaults are those of the authors' code in RepDistiller. The other form
    in use is `VID(expansion=2, normalize=True, min_variance=1)`.

    Call arguments:
        student: `Features`; all its maps are read: `(batch, height, width,
            D)`, `(batch, length, D)` or `(batch, D)`.
        teacher: Like `student`; size and channels may differ. The larger of
            two sizes is average-pooled to the smaller before r is applied.
        labels: Not used.

    Returns:
        `{"vid": loss}`, a scalar, float32, which may be negative.

    Raises:
        ValueError: If an argument is out of range, or if two maps cannot be
            brought to one size. Two sequences must have one length if one of
            them is padded.

    Example:
        >>> method = keras_mhgd.methods.VID()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational
        Information Distillation for Knowledge Transfer", CVPR 2019,
        arXiv:1904.05835.
    """

    terms = ("vid",)
    needs = Needs(maps=True)

    def __init__(
        self,
        expansion: float = 1.0,
        normalize: bool = False,
        min_variance: float = 1e-5,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_positive(expansion=expansion, min_variance=min_variance)
        self.expansion = expansion
        self.normalize = normalize
        self.min_variance = min_variance

    def build(self, student, teacher):
        super().build(student, teacher)
        self.regressors = []
        for index, (source, target) in enumerate(
            zip(student.maps, teacher.maps, strict=True)
        ):
            common_size(source, target)
            regressor = _Regressor(
                target[-1],
                max(1, round(self.expansion * target[-1])),
                self.normalize,
                self.min_variance,
                name=f"regressor{index}",
                dtype="float32",
            )
            regressor.build((None, None, source[-1]))
            self.regressors.append(regressor)

    def call(self, student, teacher, labels):
        masks = joint_masks(
            masked_maps(student), masked_maps(teacher), type(self).__name__
        )
        pairs = [
            map(flatten_positions, to_one_size(*pair))
            for pair in zip(student.maps, teacher.maps, strict=True)
        ]
        sources, targets = zip(*pairs, strict=True)
        predicted = [
            regressor(source, mask=mask)
            for regressor, (source, mask) in zip(
                self.regressors, with_masks(sources, masks), strict=True
            )
        ]
        means, variances = zip(*predicted, strict=True)
        loss = variational_information_loss(means, targets, variances, masks)
        return {"vid": self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "expansion": self.expansion,
            "normalize": self.normalize,
            "min_variance": self.min_variance,
        }
