"""Builds wide residual networks (Zagoruyko and Komodakis, BMVC 2016).

Reference: arXiv:1605.07146.
"""

import keras
from keras import layers

from keras_mhgd.models.blocks import Builder


def wide_resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: int,
    width: int,
    stem_pooling: bool = False,
    weight_decay: float = 5e-4,
    name: str = "wide_resnet",
) -> keras.Model:
    """Builds a pre-activation wide ResNet with three stages.

    Each stage has `(depth - 4) / 6` blocks. The stages have 16, 32 and 64
    times `width` filters. The second and the third stage halve the resolution.
    The normalised and activated output of stage `i` is named `stage<i>`.

    Args:
        input_shape: Height, width (pixels) and channels of an image.
        num_classes: Number of logits.
        depth: `6 n + 4` with n >= 1 blocks a stage.
        width: Multiplier of the stages' widths, >= 1.
        stem_pooling: Whether a 2x2 max-pool comes before the stem.
        weight_decay: See `keras_mhgd.models.get`.
        name: Name of the model.

    Returns:
        A functional model that ends in logits `(batch, num_classes)`.

    Raises:
        ValueError: If `depth` is not `6 n + 4` or `width` is not positive.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(
            "`depth` of a wide ResNet must be 6 n + 4 with n >= 1 blocks a "
            f"stage. Received: depth={depth}. Take 10, 16, 22, 28 or 40."
        )
    if width < 1:
        raise ValueError(
            "`width` of a wide ResNet must be a positive integer. "
            f"Received: width={width}."
        )
    num_blocks = (depth - 4) // 6
    build = Builder(weight_decay)
    inputs = x = keras.Input(input_shape, name="image")
    if stem_pooling:
        x = layers.MaxPooling2D(name="stem_pool")(x)
    x = build.conv(16, name="stem")(x)
    for stage in (1, 2, 3):
        filters = 16 * width * 2 ** (stage - 1)
        for block in range(1, num_blocks + 1):
            prefix = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            # The first activation in a stage is the output of the stage before.
            ends_stage = stage > 1 and block == 1
            h = build.norm(name=f"{prefix}_norm1")(x)
            h = layers.ReLU(
                name=f"stage{stage - 1}" if ends_stage else f"{prefix}_relu1"
            )(h)
            shortcut = x
            if block == 1:
                shortcut = build.conv(
                    filters, 1, strides, name=f"{prefix}_shortcut"
                )(h)
            h = build.conv(filters, strides=strides, name=f"{prefix}_conv1")(h)
            h = build.norm(name=f"{prefix}_norm2")(h)
            h = layers.ReLU(name=f"{prefix}_relu2")(h)
            h = build.conv(filters, name=f"{prefix}_conv2")(h)
            x = layers.Add(name=f"{prefix}_add")([h, shortcut])
    x = build.norm(name="final_norm")(x)
    x = layers.ReLU(name="stage3")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, build.logits(num_classes)(x), name=name)
