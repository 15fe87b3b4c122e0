"""Computes attention between the samples of a batch, by several heads."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

# Rows of a block. The graph of a smaller batch is one block.
_ROWS = 128


class Edge(NamedTuple):
    """Holds the factors of an edge's graphs: `logits = queries keys^T`.

    Attributes:
        queries: Vectors of the back-end samples, which are a graph's rows,
            `(num_heads, batch, width)`.
        keys: Vectors of the front-end samples, which are a graph's columns,
            `(num_heads, batch, width)`.
    """

    queries: tf.Tensor
    keys: tf.Tensor

    @property
    def logits(self) -> tf.Tensor:
        """The graphs before the softmax, `(num_heads, batch, batch)`."""
        return tf.matmul(self.queries, self.keys, transpose_b=True)


def over_rows(
    function: Callable[..., tuple[tf.Tensor, Sequence[tf.Tensor]]],
    rows: Sequence[tf.Tensor],
    width: int,
    totals: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Applies a function to blocks of rows, one after the other.

    Each block reuses the memory of the one before. This function is for use
    within a custom gradient, on constants: a tape would keep all blocks.

    Args:
        function: Takes a block `(heads, size, width)` of each tensor in
            `rows`. Returns new rows `(heads, size, width)` and summands. The
            last block is padded with rows of zeros, whose summands must be
            zero.
        rows: Tensors `(heads, batch, width)`.
        width: Width of the new rows.
        totals: Zeros of the summands' shapes.

    Returns:
        The new rows `(heads, batch, width)` and the sums over all blocks.
    """
    heads = rows[0].shape[0]
    count = tf.shape(rows[0])[1]
    size = tf.minimum(count, _ROWS)
    number = -(-count // size)

    def split(x):
        x = tf.pad(x, [[0, 0], [0, number * size - count], [0, 0]])
        x = tf.reshape(x, (heads, number, size, x.shape[2]))
        return tf.transpose(x, (1, 0, 2, 3))

    blocks = [split(each) for each in rows]

    def step(index, made, *totals):
        new, summands = function(*(each[index] for each in blocks))
        made = tf.tensor_scatter_nd_update(made, [[index]], new[tf.newaxis])
        sums = [a + b for a, b in zip(totals, summands, strict=True)]
        return index + 1, made, *sums

    made = tf.zeros((number, heads, size, width), rows[0].dtype)
    _, made, *totals = tf.while_loop(
        lambda index, *_: index < number,
        step,
        (0, made, *totals),
        parallel_iterations=1,
        maximum_iterations=number,
    )
    made = tf.transpose(made, (1, 0, 2, 3))
    made = tf.reshape(made, (heads, number * size, width))
    return made[:, :count], totals


def attend(edge: Edge, values: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Moves values along the graphs: `kept * softmax(logits) values`.

    Memory grows linearly with the batch, because the graphs are computed in
    blocks of rows. The gradient computes them again.

    Args:
        edge: The graphs' factors.
        values: Values of the front-end samples, `(num_heads, batch, width)`.
        kept: Multiplier of each row, `(num_heads, batch, 1)`, a constant.

    Returns:
        Values of the back-end samples, `(num_heads, batch, width)`.
    """

    @tf.custom_gradient
    def moved(queries, keys, values):
        queries, keys, values = map(tf.stop_gradient, (queries, keys, values))

        def forward(queries, kept):
            graph = tf.nn.softmax(Edge(queries, keys).logits)
            return kept * tf.matmul(graph, values), []

        def gradient(upstream):
            def backward(queries, upstream):
                graph = tf.nn.softmax(Edge(queries, keys).logits)
                of_graph = tf.matmul(upstream, values, transpose_b=True)
                of_graph *= graph
                total = tf.reduce_sum(of_graph, -1, keepdims=True)
                of_logits = of_graph - graph * total
                return tf.matmul(of_logits, keys), [
                    tf.matmul(of_logits, queries, transpose_a=True),
                    tf.matmul(graph, upstream, transpose_a=True),
                ]

            of_queries, totals = over_rows(
                backward,
                [queries, kept * upstream],
                queries.shape[-1],
                [tf.zeros_like(keys), tf.zeros_like(values)],
            )
            return of_queries, *totals

        rows, _ = over_rows(forward, [queries, kept], values.shape[-1], [])
        return rows, gradient

    return moved(*edge, values)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class AttentionHeads(keras.Layer):
    """Computes each head's graph of attention between samples.

    Logits S_a[i, j] = theta_a(back_i) . phi_a(front_j). Theta and phi are each
    a dense layer without bias, followed by batch normalisation.

    Args:
        num_heads: Number of heads.
        head_size: Width of theta's and phi's output for one head.
        scale_logits: Whether logits are divided by `sqrt(head_size)`.
        regularizer: Regularizer of kernels, scales and offsets.

    Call arguments:
        back: Back-end vectors `(batch, D_B)`.
        front: Front-end vectors `(batch, D_F)`.
        training: Whether to normalise by batch statistics.
        batch_statistics: Whether to normalise by batch statistics without an
            update of the moving averages.

    Returns:
        The `Edge`, with theta's output as queries and phi's output as keys.

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
        """Makes the weights.

        Args:
            back_shape: `(None, D_B)`.
            front_shape: `(None, D_F)`.
        """
        units = self.num_heads * self.head_size
        self.theta = dense(units, self.regularizer, False, "theta")
        self.theta_norm = norm(self.regularizer, "theta_norm")
        self.phi = dense(units, self.regularizer, False, "phi")
        self.phi_norm = norm(self.regularizer, "phi_norm")
        self.theta.build(back_shape)
        self.phi.build(front_shape)
        self.theta_norm.build((None, units))
        self.phi_norm.build((None, units))

    def call(self, back, front, training=False, batch_statistics=False):
        """Computes the factors of the graphs: see the call arguments."""

        def normalised(x, norm):
            if batch_statistics:
                return _by_batch_statistics(x, norm)
            return norm(x, training=training)

        theta = normalised(self.theta(back), self.theta_norm)
        phi = normalised(self.phi(front), self.phi_norm)
        if self.scale_logits:
            theta /= self.head_size**0.5
        return Edge(self._by_head(theta), self._by_head(phi))

    def _by_head(self, x):
        # The head is the innermost axis, as in the published code.
        x = tf.reshape(x, (-1, self.head_size, self.num_heads))
        return tf.transpose(x, (2, 0, 1))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_size": self.head_size,
            "scale_logits": self.scale_logits,
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }


def _by_batch_statistics(x, norm):
    mean, variance = tf.nn.moments(x, 0)
    return tf.nn.batch_normalization(
        x, mean, variance, norm.beta, norm.gamma, norm.epsilon
    )


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
        # The published code sets 1e-5, but its fused kernel uses this minimum.
        epsilon=1.001e-5,
        beta_regularizer=regularizer,
        gamma_regularizer=regularizer,
        dtype="float32",
        name=name,
    )
