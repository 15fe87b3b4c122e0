"""Builds residual networks (He et al., CVPR 2016, arXiv:1512.03385)."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_mhgd.models.blocks import Builder


def resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    stem_filters: int,
    stackwise_num_filters: Sequence[int],
    num_blocks: int,
    weight_decay: float = 5e-4,
    name: str = "resnet",
) -> keras.Model:
    """Builds a residual network of basic blocks, activated after the sum.

    Every stage but the first halves the resolution. The output of stage `i`
    is named `stage<i>`.

    Args:
        input_shape: Height, width (pixels) and channels of an image.
        num_classes: Number of logits.
        stem_filters: Width of the first 3x3 convolution.
        stackwise_num_filters: Width of each stage.
        num_blocks: Blocks of two 3x3 convolutions in each stage.
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
        for block in range(1, num_blocks + 1):
            prefix = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            shortcut = x
            if strides > 1 or x.shape[-1] != filters:
                shortcut = build.conv(
                    filters, 1, strides, name=f"{prefix}_shortcut"
                )(x)
                shortcut = build.norm(name=f"{prefix}_shortcut_norm")(shortcut)
            x = build.conv(filters, strides=strides, name=f"{prefix}_conv1")(x)
            x = build.norm(name=f"{prefix}_norm1")(x)
            x = layers.ReLU(name=f"{prefix}_relu1")(x)
            x = build.conv(filters, name=f"{prefix}_conv2")(x)
            x = build.norm(name=f"{prefix}_norm2")(x)
            x = layers.Add(name=f"{prefix}_add")([x, shortcut])
            last = block == num_blocks
            x = layers.ReLU(name=f"stage{stage}" if last else f"{prefix}_relu")(
                x
            )
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, build.logits(num_classes)(x), name=name)
