"""Layers of the networks that read sequences of characters."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="keras_mhgd")
class PositionEmbedding(layers.Layer):
    """Adds a learned vector to each position of a sequence.

    Args:
        initializer: Initial vectors. Defaults to a normal distribution of
            deviation 0.02.
        regularizer: Penalty of the vectors. Defaults to `None`.

    Call arguments:
        inputs: `(batch, length, D)` of a known length.

    Returns:
        Tensor of the same shape.
    """

    def __init__(self, initializer=None, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(
            initializer or keras.initializers.RandomNormal(stddev=0.02)
        )
        self.regularizer = keras.regularizers.get(regularizer)
        self.supports_masking = True

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=input_shape[1:],
            initializer=self.initializer,
            regularizer=self.regularizer,
        )

    def call(self, inputs):
        return inputs + ops.cast(self.embeddings, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }


@keras.saving.register_keras_serializable(package="keras_mhgd")
class MaskedConv1D(layers.Conv1D):
    """Convolves sequences as if nothing followed their real positions.

    Keras's own layer reads padded positions and drops the mask.

    Args:
        filters: Width of the outputs.
        kernel_size: Number of positions that are read at once.
        **kwargs: Other arguments of `keras.layers.Conv1D`, but for `padding`
            and `strides`. All positions are kept.

    Call arguments:
        inputs: `(batch, length, D)`.
        mask: `(batch, length)`, false where padded, or `None`.

    Returns:
        `(batch, length, filters)`.
    """

    def __init__(self, filters: int, kernel_size: int, **kwargs):
        super().__init__(filters, kernel_size, **(kwargs | {"padding": "same"}))
        self.supports_masking = True

    def call(self, inputs, mask=None):
        if mask is not None:
            inputs = ops.where(mask[..., None], inputs, ops.zeros_like(inputs))
        return super().call(inputs)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class TransformerBlock(layers.Layer):
    """Applies attention and two dense layers, each after a normalisation.

    y = x + attention(norm(x)); the output is y + dense(gelu(dense(norm(y)))).
    Nothing attends to padded positions.

    Args:
        num_heads: Number of attention heads, which divides the width of the
            inputs.
        hidden_units: Width of the first dense layer.
        dropout: Fraction of both branches that is dropped in training.
            Defaults to 0.
        regularizer: Penalty of all weights. Defaults to `None`.

    Call arguments:
        inputs: `(batch, length, D)`.
        mask: `(batch, length)`, false where padded, or `None`.

    Returns:
        Tensor of the same shape.

    Reference:
        R. Xiong et al., "On Layer Normalization in the Transformer
        Architecture", ICML 2020, arXiv:2002.04745
    """

    def __init__(
        self,
        num_heads: int,
        hidden_units: int,
        dropout: float = 0.0,
        regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden_units = hidden_units
        self.dropout = dropout
        self.regularizer = keras.regularizers.get(regularizer)
        self.supports_masking = True

    def build(self, input_shape):
        width = input_shape[-1]
        both = {
            "kernel_regularizer": self.regularizer,
            "bias_regularizer": self.regularizer,
            "dtype": self.dtype_policy,
        }

        def norm(name):
            return layers.LayerNormalization(
                epsilon=1e-5,
                gamma_regularizer=self.regularizer,
                beta_regularizer=self.regularizer,
                dtype=self.dtype_policy,
                name=name,
            )

        self.attention_norm = norm("attention_norm")
        self.attention = layers.MultiHeadAttention(
            self.num_heads, width // self.num_heads, name="attention", **both
        )
        self.attention_dropout = layers.Dropout(
            self.dropout, dtype=self.dtype_policy
        )
        self.dense_norm = norm("dense_norm")
        self.hidden = layers.Dense(
            self.hidden_units, activation="gelu", name="hidden", **both
        )
        self.dense = layers.Dense(width, name="dense", **both)
        self.dense_dropout = layers.Dropout(
            self.dropout, dtype=self.dtype_policy
        )
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.dense_norm.build(input_shape)
        self.hidden.build(input_shape)
        self.dense.build((*input_shape[:-1], self.hidden_units))

    def call(self, inputs, mask=None, training=None):
        # Every position attends, padded ones as well: a row of which all is
        # masked would have no softmax.
        of_keys = None if mask is None else mask[:, None, :]
        x = self.attention_norm(inputs)
        x = self.attention(
            x,
            x,
            attention_mask=of_keys,
            use_causal_mask=False,
            training=training,
        )
        y = inputs + self.attention_dropout(x, training=training)
        x = self.dense(self.hidden(self.dense_norm(y)))
        return y + self.dense_dropout(x, training=training)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "hidden_units": self.hidden_units,
            "dropout": self.dropout,
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }
