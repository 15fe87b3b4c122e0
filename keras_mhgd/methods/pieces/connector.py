"""Maps channels to another width and normalises them over the batch."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.features import without_padding
from keras_mhgd.methods.pieces.maps import with_masks


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Connector(keras.Layer):
    """Maps channels linearly, position by position, and normalises them.

    y = gamma (z - mean) / sqrt(variance + epsilon) + beta with z = x W. On
    maps this is a 1 x 1 convolution without bias, followed by batch
    normalisation in training mode. The layer is never used for predictions,
    so it has no moving statistics. Padded positions don't count in mean and
    variance and stay zero.

    Args:
        units: Channels of the output, >= 1.
        epsilon: Added to the variances, > 0.

    Call arguments:
        inputs: `(batch, height, width, channels)`, `(batch, length,
            channels)` or `(batch, channels)`.
        mask: `(batch, length)` for padded sequences, false at padded
            positions.

    Returns:
        The shape of `inputs`, with `units` channels. Over the batch and all
        positions, a channel has mean `beta` and standard deviation `gamma`.

    Raises:
        ValueError: If `units` is not positive, or the channels are unknown.

    Example:
        >>> Connector(8)(tf.zeros((2, 4, 4, 6))).shape
        TensorShape([2, 4, 4, 8])
    """

    def __init__(self, units: int, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        if units is None or units < 1:
            raise ValueError(
                f"`units` must be 1 or more. Received: units={units}. Pass "
                "the channels that the output shall have."
            )
        self.units = units
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(
                "`inputs` must have a known number of channels. Received: "
                f"shape {tuple(input_shape)}. Fix it in the network."
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(channels, self.units),
            initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            ),
        )
        self.gamma = self.add_weight(
            name="gamma", shape=(self.units,), initializer="ones"
        )
        self.beta = self.add_weight(
            name="beta", shape=(self.units,), initializer="zeros"
        )
        self.built = True

    def call(self, inputs, mask=None):
        kernel = tf.convert_to_tensor(self.kernel)
        mapped = tf.tensordot(inputs, kernel, 1)
        axes = list(range(mapped.shape.rank - 1))
        if mask is None:
            mean, variance = tf.nn.moments(mapped, axes)
        else:
            count = tf.math.count_nonzero(mask, dtype=mapped.dtype)
            count = tf.maximum(count, 1)
            mean = tf.reduce_sum(without_padding(mapped, mask), axes) / count
            squares = tf.math.squared_difference(mapped, mean)
            squares = without_padding(squares, mask)
            variance = tf.reduce_sum(squares, axes) / count
        normalised = tf.nn.batch_normalization(
            mapped, mean, variance, self.beta, self.gamma, self.epsilon
        )
        return without_padding(normalised, mask)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "epsilon": self.epsilon,
        }


def connectors(
    sources: Sequence[Sequence[int | None]],
    targets: Sequence[Sequence[int | None]],
    keep_equal: bool = False,
) -> list[keras.Layer]:
    """Makes a connector for each sensing point.

    Args:
        sources: Shapes of the maps to connect.
        targets: Shapes whose numbers of channels the maps will get.
        keep_equal: Whether a map that already has the target's number of
            channels is left unchanged.

    Returns:
        Built layers, float32.
    """
    made = []
    for index, (source, target) in enumerate(
        zip(sources, targets, strict=True)
    ):
        arguments = {"name": f"connector{index}", "dtype": "float32"}
        if keep_equal and source[-1] == target[-1]:
            layer = keras.layers.Identity(**arguments)
        else:
            layer = Connector(target[-1], **arguments)
        layer.build(source)
        made.append(layer)
    return made


def connected(
    layers: Sequence[keras.Layer],
    maps: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor | None] | None = None,
) -> list[tf.Tensor]:
    """Applies the connector of each sensing point to its map."""
    return [
        layer(each, mask=mask) if isinstance(layer, Connector) else layer(each)
        for layer, (each, mask) in zip(
            layers, with_masks(maps, masks), strict=True
        )
    ]
