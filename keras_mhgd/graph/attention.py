"""Attention heads between the samples of a batch."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_mhgd")
class AttentionHeads(keras.Layer):
    """Computes the logits of each head's attention between samples.

    S_a[i, j] = theta_a(back_i) . phi_a(front_j), where theta and phi are
    one dense layer each, without bias, then batch normalisation.

    Args:
        num_heads: Number of heads.
        head_size: Width of theta's and phi's output for one head.
        scale_logits: Whether logits are divided by `sqrt(head_size)`.
        regularizer: Of kernels, scales and offsets.

    Call arguments:
        back: Back-end vectors `(batch, D_B)`.
        front: Front-end vectors `(batch, D_F)`.
        training: Whether to normalise by batch statistics.

    Returns:
        Logits `(num_heads, batch, batch)`.

    Reference:
        S. Lee, B. C. Song, BMVC 2019, arXiv:1907.02226, equation 5.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale_logits: bool = False,
        regularizer: keras.regularizers.Regularizer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale_logits = scale_logits
        self.regularizer = keras.regularizers.get(regularizer)

    def build(self, back_shape, front_shape):
        units = self.num_heads * self.head_size
        self.theta = dense(units, self.regularizer, False, "theta")
        self.theta_norm = norm(self.regularizer, "theta_norm")
        self.phi = dense(units, self.regularizer, False, "phi")
        self.phi_norm = norm(self.regularizer, "phi_norm")
        self.theta.build(back_shape)
        self.phi.build(front_shape)
        self.theta_norm.build((None, units))
        self.phi_norm.build((None, units))

    def call(self, back, front, training=False):
        theta = self.theta_norm(self.theta(back), training=training)
        phi = self.phi_norm(self.phi(front), training=training)
        # n, m: samples; c: width of a head; a: heads, running fastest.
        shape = (-1, self.head_size, self.num_heads)
        logits = tf.einsum(
            "nca,mca->anm", tf.reshape(theta, shape), tf.reshape(phi, shape)
        )
        if self.scale_logits:
            logits /= self.head_size**0.5
        return logits

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_size": self.head_size,
            "scale_logits": self.scale_logits,
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }


def dense(units, regularizer, use_bias, name) -> keras.layers.Dense:
    """Makes a dense layer with the published initialisation."""
    return keras.layers.Dense(
        units,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out"),
        kernel_regularizer=regularizer,
        bias_regularizer=regularizer,
        dtype="float32",
        name=name,
    )


def norm(regularizer, name) -> keras.layers.BatchNormalization:
    """Makes a batch normalisation with the published settings."""
    return keras.layers.BatchNormalization(
        momentum=0.9,
        # The published code asks for 1e-5; its fused kernel's floor is this.
        epsilon=1.001e-5,
        beta_regularizer=regularizer,
        gamma_regularizer=regularizer,
        dtype="float32",
        name=name,
    )
