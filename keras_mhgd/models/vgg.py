"""Builds VGG networks (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556)."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mhgd.models.blocks import Builder


def vgg(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    stackwise_num_filters: Sequence[int],
    stackwise_num_convs: Sequence[int],
    dense_units: Sequence[int] = (),
    dropout: float = 0.5,
    batch_normalization: bool = False,
    stem_pooling: bool = False,
    weight_decay: float = 5e-4,
    name: str = "vgg",
) -> keras.Model:
    """Builds a VGG network of 3x3 convolutions, max-pooled after each stage.

    A stage is a row of convolutions, followed by a 2x2 max-pool.

    The output of the last activation of stage `i`, before its max-pool, is
    named `stage<i>`.

    Args:
        input_shape: Height, width (pixels) and channels of an image.
        num_classes: Number of logits.
        stackwise_num_filters: Width of each stage.
        stackwise_num_convs: Convolutions in each stage.
        dense_units: Widths of the hidden dense layers of the head.
        dropout: Fraction dropped after each hidden dense layer.
        batch_normalization: Whether convolutions are followed by batch
            normalisation (and have no bias).
        stem_pooling: Whether a 2x2 max-pool comes before the first stage.
        weight_decay: See `keras_mhgd.models.get`.
        name: Name of the model.

    Returns:
        A functional model that ends in logits `(batch, num_classes)`.
    """
    build = Builder(weight_decay)
    inputs = x = keras.Input(input_shape, name="image")
    if stem_pooling:
        x = layers.MaxPooling2D(name="stem_pool")(x)
    stacks = zip(stackwise_num_filters, stackwise_num_convs, strict=True)
    for stage, (filters, num_convs) in enumerate(stacks, start=1):
        for conv in range(1, num_convs + 1):
            prefix = f"stage{stage}_conv{conv}"
            x = build.conv(
                filters, use_bias=not batch_normalization, name=prefix
            )(x)
            if batch_normalization:
                x = build.norm(name=f"{prefix}_norm")(x)
            last = conv == num_convs
            x = layers.ReLU(name=f"stage{stage}" if last else f"{prefix}_relu")(
                x
            )
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for index, units in enumerate(dense_units, start=1):
        x = build.dense(units, activation="relu", name=f"dense{index}")(x)
        x = layers.Dropout(dropout, name=f"dropout{index}")(x)
    return keras.Model(inputs, build.logits(num_classes)(x), name=name)
