"""Builds convolutional networks of characters (Kim, EMNLP 2014)."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mhgd.models.blocks import Builder


def char_cnn(
    input_shape: tuple[int],
    num_classes: int,
    *,
    num_tokens: int,
    embedding_units: int,
    stackwise_num_filters: Sequence[int],
    weight_decay: float = 5e-4,
    name: str = "char_cnn",
) -> keras.Model:
    """Builds a row of normalised convolutions over three characters.

    The mean of the last map over the positions that are no padding is
    classified. The output of the `i`-th activation is named `stage<i>`.

    Args:
        input_shape: Length of a sequence, tokens.
        num_classes: Number of logits.
        num_tokens: Number of tokens, of which number 0 is padding.
        embedding_units: Width of the vectors of characters.
        stackwise_num_filters: Width of each convolution.
        weight_decay: See `keras_mhgd.models.get`.
        name: Name of the model.

    Returns:
        A functional model that ends in logits `(batch, num_classes)`.
    """
    build = Builder(weight_decay)
    inputs = keras.Input(input_shape, name="tokens", dtype="int32")
    x = build.embedding(num_tokens, embedding_units)(inputs)
    for stage, filters in enumerate(stackwise_num_filters, start=1):
        x = build.conv1d(filters, name=f"stage{stage}_conv")(x)
        x = build.norm(name=f"stage{stage}_norm")(x)
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.GlobalAveragePooling1D(name="average")(x)
    return keras.Model(inputs, build.logits(num_classes)(x), name=name)
