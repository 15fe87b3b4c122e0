"""Builds transformers of characters (Vaswani et al., NIPS 2017)."""

import keras
from keras import layers

from keras_mhgd.models.blocks import Builder
from keras_mhgd.models.char_layers import PositionEmbedding, TransformerBlock


def char_transformer(
    input_shape: tuple[int],
    num_classes: int,
    *,
    num_tokens: int,
    width: int,
    num_blocks: int,
    num_heads: int,
    dropout: float = 0.1,
    weight_decay: float = 5e-4,
    name: str = "char_transformer",
) -> keras.Model:
    """Builds a transformer whose blocks normalise first.

    The last block's outputs are normalised, and their mean over the positions
    that are no padding is classified. Block `i` is named `stage<i>`.

    Args:
        input_shape: Length of a sequence, tokens.
        num_classes: Number of logits.
        num_tokens: Number of tokens, of which number 0 is padding.
        width: Width of the vectors of positions.
        num_blocks: Number of blocks.
        num_heads: Attention heads of each block.
        dropout: Fraction of each branch that is dropped in training.
        weight_decay: See `keras_mhgd.models.get`.
        name: Name of the model.

    Returns:
        A functional model that ends in logits `(batch, num_classes)`.
    """
    build = Builder(weight_decay)
    inputs = keras.Input(input_shape, name="tokens", dtype="int32")
    x = build.embedding(num_tokens, width)(inputs)
    x = PositionEmbedding(regularizer=build.regularizer, name="positions")(x)
    for block in range(1, num_blocks + 1):
        x = TransformerBlock(
            num_heads,
            4 * width,
            dropout,
            build.regularizer,
            name=f"stage{block}",
        )(x)
    x = build.layer_norm(name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="average")(x)
    return keras.Model(inputs, build.logits(num_classes)(x), name=name)
