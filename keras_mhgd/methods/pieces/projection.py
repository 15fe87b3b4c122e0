"""Maps channels linearly from one network's width to the other's."""

from collections.abc import Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Projection(keras.Layer):
    """Maps channels linearly, position by position, to a given width.

    y = x W without bias. On maps this is a 1 x 1 convolution. If the input
    already has the given width, y = x and the layer has no weight.

    Args:
        units: Channels of the output, >= 1.
        kernel_initializer: Initializer of `W`, shape `(channels, units)`.

    Call arguments:
        inputs: `(batch, height, width, channels)`, `(batch, length,
            channels)` or `(batch, channels)`.

    Returns:
        The shape of `inputs`, with `units` channels.

    Raises:
        ValueError: If `units` is not positive, or the channels are unknown.

    Example:
        >>> Projection(8)(tf.zeros((2, 4, 4, 6))).shape
        TensorShape([2, 4, 4, 8])
    """

    def __init__(
        self,
        units: int,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if units is None or units < 1:
            raise ValueError(
                f"`units` must be 1 or more. Received: units={units}. Pass "
                "the channels that the output shall have."
            )
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel = None

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(
                "`inputs` must have a known number of channels. Received: "
                f"shape {tuple(input_shape)}. Fix it in the network."
            )
        if channels != self.units:
            self.kernel = self.add_weight(
                name="kernel",
                shape=(channels, self.units),
                initializer=self.kernel_initializer,
            )
        self.built = True

    def call(self, inputs):
        if self.kernel is None:
            return inputs
        kernel = tf.convert_to_tensor(self.kernel)
        # tf.einsum would treat the positions as a batch of matrix products.
        return tf.tensordot(inputs, kernel, 1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }


def projections(
    sources: Sequence[Sequence[int | None]],
    targets: Sequence[Sequence[int | None]],
) -> list[Projection]:
    """Makes a projection for each sensing point.

    A projection has no weight where both widths are equal.

    Args:
        sources: Shapes of the maps to project.
        targets: Shapes whose numbers of channels the maps will get.

    Returns:
        Built projections, float32.
    """
    made = []
    for index, (source, target) in enumerate(
        zip(sources, targets, strict=True)
    ):
        projection = Projection(
            target[-1], name=f"projection{index}", dtype="float32"
        )
        projection.build(source)
        made.append(projection)
    return made


def projected(
    layers: Sequence[Projection], maps: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Applies the projection of each sensing point to its map."""
    return [layer(each) for layer, each in zip(layers, maps, strict=True)]
