"""Predicts back-end vectors through attention graphs."""

import keras
import tensorflow as tf

from keras_mhgd.graph.attention import Edge, attend, dense, norm


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Estimator(keras.Layer):
    """Predicts back-end vectors from front-end vectors along a graph.

    f1 = ReLU(BN(dense(front))), always with batch statistics. Each head `a`
    gives `G_a f1`, with zeros in the rows that drop the head. The heads'
    results are concatenated, a dense layer maps them to `back_size`, and the
    vectors are scaled to unit length. Only used while MHAN trains.

    Args:
        hidden_size: Width of f1.
        back_size: Length of the back-end vectors.
        regularizer: Regularizer of kernels, biases, scales and offsets.

    Call arguments:
        front: Front-end vectors `(batch, D_F)`.
        edge: The graphs' factors.
        kept: 1 where a row keeps a head, else 0, `(num_heads, batch)`.

    Returns:
        Unit vectors `(batch, back_size)`.

    Reference:
        S. Lee, B. C. Song, BMVC 2019, arXiv:1907.02226, section 3.2.
    """

    def __init__(
        self,
        hidden_size: int,
        back_size: int,
        regularizer: keras.regularizers.Regularizer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.back_size = back_size
        self.regularizer = keras.regularizers.get(regularizer)

    def build(self, front_shape, num_heads):
        """Makes the weights.

        Args:
            front_shape: `(None, D_F)`.
            num_heads: Number of heads of the graphs.
        """
        self.hidden = dense(self.hidden_size, self.regularizer, False, "hidden")
        self.hidden_norm = norm(self.regularizer, "hidden_norm")
        self.project = dense(self.back_size, self.regularizer, True, "project")
        self.hidden.build(front_shape)
        self.hidden_norm.build((None, self.hidden_size))
        self.project.build((None, num_heads * self.hidden_size))

    def call(self, front, edge: Edge, kept):
        """Predicts the back-end vectors: see the call arguments."""
        hidden = self.hidden_norm(self.hidden(front), training=True)
        num_heads = edge.queries.shape[0]
        values = tf.repeat(tf.nn.relu(hidden)[tf.newaxis], num_heads, axis=0)
        moved = attend(edge, values, kept[:, :, tf.newaxis])
        moved = tf.transpose(moved, (1, 0, 2))
        width = num_heads * self.hidden_size
        estimate = self.project(tf.reshape(moved, (-1, width)))
        return tf.math.l2_normalize(estimate, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "back_size": self.back_size,
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }
