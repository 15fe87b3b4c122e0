"""Makes the layers that the networks share, initialised as published."""

import keras
from keras import layers

from keras_mhgd.models.char_layers import MaskedConv1D


class Builder:
    """Makes a network's layers with one initialisation and one weight decay.

    Kernels come from variance scaling by fan-out (factor 2, truncated
    normal). As published, weight decay covers kernels, biases, and the scales
    and offsets of batch normalisation.

    Args:
        weight_decay: Coefficient `w` of the penalty `w / 2 * sum v^2`,
            float >= 0.
    """

    def __init__(self, weight_decay: float):
        self.regularizer = (
            keras.regularizers.L2(weight_decay / 2) if weight_decay else None
        )

    def _initializer(self) -> keras.initializers.Initializer:
        return keras.initializers.VarianceScaling(2.0, "fan_out")

    def conv(self, filters, size=3, strides=1, use_bias=False, **kwargs):
        return layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=use_bias,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self.regularizer,
            bias_regularizer=self.regularizer,
            **kwargs,
        )

    def depthwise(self, size=3, strides=1, **kwargs):
        return layers.DepthwiseConv2D(
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            depthwise_initializer=self._initializer(),
            depthwise_regularizer=self.regularizer,
            **kwargs,
        )

    def norm(self, **kwargs):
        return layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            beta_regularizer=self.regularizer,
            gamma_regularizer=self.regularizer,
            **kwargs,
        )

    def conv1d(self, filters, size=3, **kwargs):
        return MaskedConv1D(
            filters,
            size,
            use_bias=False,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self.regularizer,
            **kwargs,
        )

    def embedding(self, num_tokens, width):
        # Token 0 is padding, which the mask marks.
        return layers.Embedding(
            num_tokens,
            width,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1),
            embeddings_regularizer=self.regularizer,
            mask_zero=True,
            name="embedding",
        )

    def layer_norm(self, **kwargs):
        return layers.LayerNormalization(
            epsilon=1e-5,
            beta_regularizer=self.regularizer,
            gamma_regularizer=self.regularizer,
            **kwargs,
        )

    def dense(self, units, **kwargs):
        return layers.Dense(
            units,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self.regularizer,
            bias_regularizer=self.regularizer,
            **kwargs,
        )

    def logits(self, num_classes):
        # Softmax and cross-entropy need float32 under every dtype policy.
        return self.dense(num_classes, name="logits", dtype="float32")
