"""Defines the network that factor transfer learns from a teacher alone.

J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.gradients import apply
from keras_mhgd.methods.pieces.reductions import DISTANCES


class _Convolutions(keras.Layer):
    """Applies three 3 x 3 convolutions with biases and leaky ReLUs.

    Args:
        convolution: `keras.layers.Conv2D` or its transpose.
        widths: Output channels of each convolution.
        pyramid: Whether the second convolution has stride 2, and the slope of
            the leaky ReLUs is 0.2 instead of 0.1.
        activate_last: Whether a leaky ReLU follows the third convolution too.
    """

    def __init__(
        self,
        convolution: type[keras.Layer],
        widths: Sequence[int],
        pyramid: bool,
        activate_last: bool,
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32", **kwargs})
        strides = (1, 2, 1) if pyramid else (1, 1, 1)
        self.convolutions = [
            convolution(width, 3, stride, padding="same", dtype="float32")
            for width, stride in zip(widths, strides, strict=True)
        ]
        self.slope = 0.2 if pyramid else 0.1
        self.activate_last = activate_last

    def build(self, input_shape):
        for layer in self.convolutions:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], layer.filters)

    def call(self, inputs):
        x = self.convolutions[0](inputs)
        for layer in self.convolutions[1:]:
            x = layer(tf.nn.leaky_relu(x, self.slope))
        return tf.nn.leaky_relu(x, self.slope) if self.activate_last else x


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Paraphraser(keras.Model):
    """Encodes a teacher's maps to factors, and decodes factors to maps.

    It is trained on the teacher alone, see `ParaphraserTrainer`. The encoder
    has three 3 x 3 convolutions to D, kD and kD channels, the decoder three
    transposed ones to kD, D and D channels. A leaky ReLU of slope 0.1 follows
    each convolution.

    With `pyramid`, the encoder's channels are kD, k^2 D and k^3 D, the
    decoder's k^2 D, kD and D. The second convolution of both has stride 2,
    and the slope is 0.2. The factor is then the output of the encoder's third
    convolution, before a leaky ReLU.

    Computes in float32 whatever the dtype policy.

    Args:
        channels: The teacher's channels D.
        rate: Paraphrase rate k, > 0.
        pyramid: Whether factors are smaller than the maps, as above.
        name: Name of the network.

    Call arguments:
        inputs: Maps `(batch, height, width, channels)`.

    Returns:
        Factors `(batch, height, width, kD)`, or `(batch, height / 2, width /
        2, k^3 D)`.

    Example:
        >>> paraphraser = keras_mhgd.methods.Paraphraser(channels=64)
        >>> paraphraser(tf.zeros((2, 7, 7, 64))).shape
        TensorShape([2, 7, 7, 32])

    Reference:
        J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
    """

    def __init__(
        self,
        channels: int,
        rate: float = 0.5,
        pyramid: bool = False,
        name: str = "paraphraser",
        **kwargs,
    ):
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        require_positive(channels=channels, rate=rate)
        self.channels = channels
        self.rate = rate
        self.pyramid = pyramid
        self.encoder = self.make_encoder(channels)
        self.decoder = _Convolutions(
            keras.layers.Conv2DTranspose,
            [*reversed(self._widths(channels)[:2]), channels],
            pyramid,
            activate_last=True,
            name="decoder",
        )
        self.decoder.build((None, None, None, self._widths(channels)[-1]))
        self.built = True

    def make_encoder(self, channels: int, name: str = "encoder") -> keras.Layer:
        """Makes an encoder for the maps of any network.

        Its factors have as many channels as the paraphraser's factors.

        Args:
            channels: Channels of the maps.
            name: Name of the layer.

        Returns:
            A built layer, with weights of its own.
        """
        layer = _Convolutions(
            keras.layers.Conv2D,
            self._widths(channels),
            self.pyramid,
            activate_last=not self.pyramid,
            name=name,
        )
        layer.build((None, None, None, channels))
        return layer

    def _widths(self, channels: int) -> list[int]:
        exponents = (1, 2, 3) if self.pyramid else (1, 1)
        widths = [
            max(1, round(self.channels * self.rate**exponent))
            for exponent in exponents
        ]
        return widths if self.pyramid else [channels, *widths]

    def call(self, inputs):
        return self.encoder(inputs)

    def reconstruct(self, inputs: tf.Tensor) -> tf.Tensor:
        """Encodes maps and decodes the factors.

        Args:
            inputs: As in the call.

        Returns:
            Maps of the same shape, float32.
        """
        factors = self(inputs)
        if not self.encoder.activate_last:
            factors = tf.nn.leaky_relu(factors, self.encoder.slope)
        # Halving and doubling makes an odd size one larger.
        height, width = tf.unstack(tf.shape(inputs)[1:3])
        return self.decoder(factors)[:, :height, :width]

    def get_config(self):
        return {
            "channels": self.channels,
            "rate": self.rate,
            "pyramid": self.pyramid,
            "name": self.name,
        }


class ParaphraserTrainer(keras.Model):
    """Trains a paraphraser on the maps of a teacher's last sensing point.

    loss = mean over all entries of |x - P(x)| or of (x - P(x))^2.

    Labels in the data are ignored; the teacher is frozen.

    Args:
        paraphraser: The network to train.
        teacher: Extractor of the teacher's predictions and sensing points.
        reconstruction: `"absolute"` or `"squared"`.

    Reference:
        J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
    """

    def __init__(
        self,
        paraphraser: Paraphraser,
        teacher: FeatureExtractor,
        reconstruction: str = "absolute",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.paraphraser = paraphraser
        self._teacher = teacher
        self._distance = DISTANCES[reconstruction]
        self.built = True

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        taught = isinstance(x, Taught)
        features = x.features if taught else self._teacher(x)
        maps = tf.cast(features.maps[-1], tf.float32)
        variables = self.paraphraser.trainable_variables
        with tf.GradientTape() as tape:
            difference = self.paraphraser.reconstruct(maps) - maps
            loss = tf.reduce_mean(self._distance(difference))
            part = replicas.share_of_batch(maps)
            scaled = self.optimizer.scale_loss(part * loss)
        apply(self.optimizer, tape.gradient(scaled, variables), variables)
        self._loss_tracker.update_state(loss, tf.shape(maps)[0])
        return self.get_metrics_result()
