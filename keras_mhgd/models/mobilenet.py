"""Builds MobileNets (Howard et al., 2017, arXiv:1704.04861)."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mhgd.models.blocks import Builder


def mobilenet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    stem_filters: int = 32,
    stackwise_num_filters: Sequence[int] = (64, 128, 256, 512),
    weight_decay: float = 5e-4,
    name: str = "mobilenet",
) -> keras.Model:
    """Builds a MobileNet of one depthwise-separable convolution per stage.

    Every stage but the first halves the resolution. The output of stage `i`
    is named `stage<i>`.

    Args:
        input_shape: Height, width (pixels) and channels of an image.
        num_classes: Number of logits.
        stem_filters: Width of the first 3x3 convolution.
        stackwise_num_filters: Width of each stage.
        weight_decay: See `keras_mhgd.models.get`.
        name: Name of the model.

    Returns:
        A functional model that ends in logits `(batch, num_classes)`.
    """
    build = Builder(weight_decay)
    inputs = keras.Input(input_shape, name="image")
    x = build.conv(stem_filters, name="stem")(inputs)
    x = build.norm(name="stem_norm")(x)
    x = layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(stackwise_num_filters, start=1):
        strides = 1 if stage == 1 else 2
        x = build.depthwise(strides=strides, name=f"stage{stage}_depthwise")(x)
        x = build.norm(name=f"stage{stage}_norm1")(x)
        x = layers.ReLU(name=f"stage{stage}_relu")(x)
        x = build.conv(filters, 1, name=f"stage{stage}_pointwise")(x)
        x = build.norm(name=f"stage{stage}_norm2")(x)
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, build.logits(num_classes)(x), name=name)
