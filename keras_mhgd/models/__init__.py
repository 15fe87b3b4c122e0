"""Builds the networks of the published experiments, and small ones, by name.

All networks are functional models that end in logits. The outputs of their
stages are named `stage1`, `stage2`, ... and serve as sensing points.
"""

import functools
import re

import keras

from keras_mhgd.checks import require_known, require_not_negative, unknown
from keras_mhgd.models.char_cnn import char_cnn
from keras_mhgd.models.char_transformer import char_transformer
from keras_mhgd.models.mobilenet import mobilenet
from keras_mhgd.models.normalization import (
    fuse_batch_normalization,
    synchronize_batch_normalization,
)
from keras_mhgd.models.resnet import resnet
from keras_mhgd.models.vgg import vgg
from keras_mhgd.models.wide_resnet import wide_resnet

__all__ = [
    "char_cnn",
    "char_transformer",
    "fuse_batch_normalization",
    "get",
    "mobilenet",
    "names",
    "resnet",
    "synchronize_batch_normalization",
    "vgg",
    "wide_resnet",
]

_VGG = {
    "stackwise_num_filters": (64, 128, 256, 512),
    "dense_units": (1024, 1024),
}
_RESNET = {"stem_filters": 32, "stackwise_num_filters": (64, 128, 256)}
_SMALL = (16, 32, 64)

_NETWORKS = {
    "vgg16": functools.partial(vgg, stackwise_num_convs=(2, 2, 3, 3), **_VGG),
    "vgg7": functools.partial(vgg, stackwise_num_convs=(1, 1, 1, 1), **_VGG),
    "wrn_22_4": functools.partial(wide_resnet, depth=22, width=4),
    "wrn_10_4": functools.partial(wide_resnet, depth=10, width=4),
    "resnet32": functools.partial(resnet, num_blocks=5, **_RESNET),
    "resnet8": functools.partial(resnet, num_blocks=1, **_RESNET),
    "mobilenet": mobilenet,
    "vgg_small": functools.partial(
        vgg,
        stackwise_num_filters=_SMALL,
        stackwise_num_convs=(3, 3, 3),
        batch_normalization=True,
    ),
    "vgg_thin": functools.partial(
        vgg,
        stackwise_num_filters=_SMALL,
        stackwise_num_convs=(1, 1, 1),
        batch_normalization=True,
    ),
    "resnet_small": functools.partial(
        resnet, stem_filters=16, stackwise_num_filters=_SMALL, num_blocks=1
    ),
    "mobilenet_small": functools.partial(
        mobilenet, stem_filters=16, stackwise_num_filters=_SMALL
    ),
}
# These take sequences of tokens.
_OF_TOKENS = {
    "char_transformer": functools.partial(
        char_transformer, width=96, num_blocks=3, num_heads=4
    ),
    "char_transformer_small": functools.partial(
        char_transformer, width=32, num_blocks=2, num_heads=2
    ),
    "char_cnn": functools.partial(
        char_cnn, embedding_units=16, stackwise_num_filters=(32, 32, 32)
    ),
}
# These published networks pool once more before the first stage when images
# are at least 64 x 64 (Tiny-ImageNet).
_POOLED_STEM = {"vgg16", "vgg7", "wide_resnet"}


def names(inputs: str | None = None) -> list[str]:
    """Lists the names for `get`, which also takes `wrn_<depth>_<width>`.

    Args:
        inputs: `"images"` or `"tokens"` for the networks that take these.
            Defaults to `None`: all.
    """
    kinds = {"images": _NETWORKS, "tokens": _OF_TOKENS}
    if inputs is None:
        return [*_NETWORKS, *_OF_TOKENS]
    require_known("inputs", inputs, kinds)
    return list(kinds[inputs])


def get(
    name: str,
    input_shape: tuple[int | None, int | None, int] | tuple[int],
    num_classes: int,
    weight_decay: float = 5e-4,
    num_tokens: int | None = None,
) -> keras.Model:
    """Builds a network by name.

    Args:
        name: One of `names()`, or `wrn_<depth>_<width>` with a depth of
            `6 n + 4`.
        input_shape: Height, width (pixels) and channels of an image, at
            least 16 x 16 pixels. A height and width of `None` take images of
            any size, which networks that end in a flattened map can't; a stem
            that pools from 64 pixels on then pools. Networks of tokens take
            a tuple of the length of a sequence instead.
        num_classes: Number of logits, >= 2.
        weight_decay: Coefficient `w` of the penalty `w / 2 * sum v^2` over
            all weights, >= 0. It is part of the model's `losses`.
        num_tokens: Number of tokens, of which number 0 is padding. Networks
            of tokens need it, and no others take it. Defaults to `None`.

    Returns:
        A functional `keras.Model` from images `(batch, height, width,
        channels)`, or token numbers `(batch, length)`, to logits `(batch,
        num_classes)`, float32.

    Raises:
        ValueError: If the name is unknown or an argument out of range.

    Example:
        >>> student = keras_mhgd.models.get("resnet_small", (28, 28, 1), 10)
        >>> student.get_layer("stage3").output.shape
        (None, 7, 7, 64)
    """
    wide = re.fullmatch(r"wrn_(\d+)_(\d+)", str(name))
    if wide:
        depth, width = map(int, wide.groups())
        build = functools.partial(wide_resnet, depth=depth, width=width)
    elif name in names():
        build = (_NETWORKS | _OF_TOKENS)[name]
    else:
        raise unknown("model", name, [*names(), "wrn_<depth>_<width>"])
    input_shape = tuple(input_shape)
    _require_inputs(name, input_shape, num_tokens)
    if num_classes < 2:
        raise ValueError(
            "`num_classes` must be 2 or more. "
            f"Received: num_classes={num_classes}."
        )
    require_not_negative(weight_decay=weight_decay)
    options = {"num_tokens": num_tokens} if name in _OF_TOKENS else {}
    sizes = [each for each in input_shape[:2] if each is not None]
    if ("wide_resnet" if wide else name) in _POOLED_STEM:
        options["stem_pooling"] = min(sizes, default=64) >= 64
    return build(
        input_shape,
        num_classes,
        weight_decay=weight_decay,
        name=name,
        **options,
    )


def _require_inputs(
    name: str, input_shape: tuple[int | None, ...], num_tokens: int | None
) -> None:
    """Raises unless a network takes inputs of a shape."""
    if name not in _OF_TOKENS:
        _require_images(name, input_shape, num_tokens)
        return
    if num_tokens is None:
        raise ValueError(
            f"{name} takes sequences of tokens, so `num_tokens` must be their "
            f"number. Received: num_tokens=None, input_shape={input_shape}. "
            f"Networks of images: {', '.join(names('images'))}."
        )
    if len(input_shape) != 1 or not input_shape[0] or num_tokens < 2:
        raise ValueError(
            "`input_shape` must be a tuple of the length of a sequence, and "
            "`num_tokens` must be 2 or more. "
            f"Received: input_shape={input_shape}, num_tokens={num_tokens}."
        )


def _require_images(
    name: str, input_shape: tuple[int | None, ...], num_tokens: int | None
) -> None:
    """Raises unless a network takes images of a shape."""
    if num_tokens is not None:
        raise ValueError(
            f"{name} takes images, so `num_tokens` must be None. "
            f"Received: num_tokens={num_tokens}, input_shape={input_shape}. "
            f"Networks of tokens: {', '.join(names('tokens'))}."
        )
    sizes = [each for each in input_shape[:2] if each is not None]
    known = len(input_shape) == 3 and input_shape[2]
    if not known or min(sizes, default=16) < 16:
        raise ValueError(
            "`input_shape` must be (height, width, channels) of at least "
            f"16 x 16 pixels. Received: input_shape={input_shape}."
        )
    if len(sizes) < 2 and name.startswith("vgg"):
        raise ValueError(
            "`input_shape` must have a height and a width for a network that "
            f"flattens its last map, such as {name}. Received: input_shape="
            f"{input_shape}."
        )
