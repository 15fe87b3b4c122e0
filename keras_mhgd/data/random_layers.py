"""Makes views of images by Keras layers, each view from a seed of its own.

Random layers of Keras draw from generators that count. Here they draw from the
view's seed instead. So a view depends on its image and its seed alone: not on
the batch, the device, or the views before.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.checks import require_positive

NAMES = ("none", "crop", "standard", "strong")


class Mixing(NamedTuple):
    """Says how images are mixed with others of the set.

    An image is mixed with probability `rate`: by MixUp, which adds both images
    with shares `s` and `1 - s`, or by CutMix, which replaces a rectangle of the
    area `1 - s` by the other's. Each is chosen as often. The share `s` is drawn
    from Beta(alpha, alpha). The label is mixed by the same shares.

    Attributes:
        rate: Fraction of the images that are mixed, 0 to 1.
        mixup_alpha: MixUp's `alpha`, > 0; `None` to leave it out.
        cutmix_alpha: CutMix's `alpha`, > 0; `None` to leave it out.

    Reference:
        H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
        S. Yun et al., "CutMix: Regularization Strategy to Train Strong
        Classifiers with Localizable Features", ICCV 2019.
    """

    rate: float = 1.0
    mixup_alpha: float | None = 0.2
    cutmix_alpha: float | None = 1.0


@keras.saving.register_keras_serializable("keras_mhgd")
class RandomResizedCrop(keras.layers.Layer):
    """Crops a random part of each image and resizes it.

    Args:
        height: Height of the result, pixels.
        width: Width of the result, pixels.
        scale: Smallest and largest part of the image's area.
        ratio: Smallest and largest width of the part, relative to its height.
        seed: Integer seed, or `None` for a random one.

    Call arguments:
        images: `(batch, height, width, channels)` or one image `(height, width,
            channels)`, of any number type.
        training: Whether to crop. Otherwise whole images are resized.

    Returns:
        Images of the new size, with the other axes unchanged.

    Example:
        >>> crop = keras_mhgd.data.RandomResizedCrop(24, 24)
        >>> photos = tf.zeros((64, 32, 32, 3))
        >>> crop(photos, training=True).shape
        TensorShape([64, 24, 24, 3])

    Reference:
        C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """

    def __init__(
        self,
        height: int,
        width: int,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_positive(height=height, width=width)
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            most = 1 if name == "scale" else math.inf
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"`{name}` must be two rising numbers above 0"
                    f"{', at most 1' if most == 1 else ''}. Received: {name}="
                    f"{(low, high)}."
                )
        self.height, self.width = height, width
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=True):
        """Crops or resizes images: see the call arguments."""
        images = tf.convert_to_tensor(images)
        if images.shape.rank == 3:
            return self._of_batch(images[tf.newaxis], training)[0]
        return self._of_batch(images, training)

    def _of_batch(self, images, training):
        size = (self.height, self.width)
        if not training:
            return tf.image.resize(images, size, antialias=True)
        drawn = keras.random.uniform(
            (tf.shape(images)[0], 4), seed=self.generator
        )
        return tf.map_fn(
            self._of_one,
            (images, drawn),
            fn_output_signature=tf.TensorSpec(
                (*size, images.shape[-1]), tf.float32
            ),
        )

    def _of_one(self, image_and_drawn):
        image, drawn = image_and_drawn
        height, width = tf.unstack(
            tf.cast(tf.shape(image)[:2], tf.float32), num=2
        )
        low, high = self.scale
        area = height * width * (low + drawn[0] * (high - low))
        low, high = (math.log(each) for each in self.ratio)
        ratio = tf.exp(low + drawn[1] * (high - low))
        rows = _rounded(tf.sqrt(area / ratio), height)
        columns = _rounded(tf.sqrt(area * ratio), width)
        top = tf.cast(drawn[2] * (height - rows + 1), tf.int32)
        left = tf.cast(drawn[3] * (width - columns + 1), tf.int32)
        rows, columns = tf.cast(rows, tf.int32), tf.cast(columns, tf.int32)
        part = image[top : top + rows, left : left + columns]
        return tf.image.resize(part, (self.height, self.width), antialias=True)

    def compute_output_shape(self, input_shape):
        return (
            *input_shape[:-3],
            self.height,
            self.width,
            input_shape[-1],
        )

    def get_config(self):
        return super().get_config() | {
            "height": self.height,
            "width": self.width,
            "scale": self.scale,
            "ratio": self.ratio,
            "seed": self.seed,
        }


def _rounded(length: tf.Tensor, most: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(tf.round(length), 1.0, most)


def named(
    name: str, size: tuple[int, int], channels: int, flip: bool
) -> keras.Sequential:
    """Makes the layers of `"standard"` or `"strong"`, for images in 0..255.

    Args:
        name: `"standard"`: crops of 25 to 100 % of the area, mirroring, and
            random brightness, contrast, saturation and hue. `"strong"`: the
            same crops, mirroring, RandAugment with two operations, and erasing
            of a rectangle in a quarter of the images. Grey images get random
            brightness and contrast instead of colours and RandAugment.
        size: Height and width of the views, pixels.
        channels: Channels of the images.
        flip: Whether a mirrored image keeps its label.
    """
    layers = keras.layers
    found = [RandomResizedCrop(*size)]
    if flip:
        found.append(layers.RandomFlip("horizontal"))
    if channels != 3:
        found += [layers.RandomBrightness(0.2), layers.RandomContrast(0.4)]
    elif name == "standard":
        found.append(
            layers.RandomColorJitter(
                value_range=(0, 255),
                brightness_factor=0.2,
                contrast_factor=0.4,
                saturation_factor=(0.3, 0.7),
                hue_factor=0.05,
            )
        )
    else:
        found.append(layers.RandAugment(num_ops=2, factor=0.3))
    if name == "strong":
        found.append(layers.RandomErasing(0.5))
    return keras.Sequential(found)


def seeds(seed: tf.Tensor, size: int, number: int) -> tf.Tensor:
    """Draws seeds for each image of a set.

    Args:
        seed: Integer tensor `(2,)`. The same arguments give the same seeds.
        size: Number of images.
        number: Number of seeds for each image.

    Returns:
        int32 `(size, number, 2)`.
    """
    return tf.random.stateless_uniform(
        (size, number, 2), seed, None, None, tf.int32, alg="philox"
    )


def _next_seed(seed: tf.Tensor, number: int) -> tf.Tensor:
    """Gives another seed for each number.

    The generators scramble their seeds, so neighbours give unrelated numbers.
    `tf.random.fold_in` would take as long as the crop of an image.
    """
    return seed + tf.constant([0, number + 1], seed.dtype)


def view(layers: keras.Layer, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Computes a view of an image.

    Args:
        layers: A layer or `keras.Sequential` for training.
        image: `(height, width, channels)`, 0..255.
        seed: Integer tensor `(2,)`. The view depends on it and the image alone.

    Returns:
        float32 `(height, width, channels)`, 0..255.
    """
    with _drawing_from(seed, layers):
        found = layers(tf.cast(image, tf.float32)[tf.newaxis], training=True)
    # In one pass; `tf.clip_by_value` takes two.
    return tf.raw_ops.ClipByValue(
        t=tf.cast(found, tf.float32)[0], clip_value_min=0, clip_value_max=255
    )


def mixed(
    mixing: Mixing, image: tf.Tensor, other: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes an image with another one.

    Args:
        mixing: How to mix.
        image: float32 `(height, width, channels)`.
        other: An image of the same shape.
        seed: Integer tensor `(2,)`.

    Returns:
        The mixed image, and the share of `image` in it, a scalar, 0 to 1.
    """
    ways = [
        (alpha, way)
        for alpha, way in (
            (mixing.mixup_alpha, _mixup),
            (mixing.cutmix_alpha, _cutmix),
        )
        if alpha
    ]
    uniform = tf.random.stateless_uniform((4,), seed, alg="philox")
    found = []
    for number, (alpha, way) in enumerate(ways):
        gammas = tf.random.stateless_gamma(
            (2,), _next_seed(seed, number), alpha
        )
        share = tf.math.divide_no_nan(gammas[0], tf.reduce_sum(gammas))
        found.append(way(image, other, share, uniform[2:]))
    chosen = tf.cast(uniform[1] * len(ways), tf.int32)
    images, shares = (tf.stack(each) for each in zip(*found, strict=True))
    mixes = uniform[0] < mixing.rate
    return (
        tf.where(mixes, tf.gather(images, chosen), image),
        tf.where(mixes, tf.gather(shares, chosen), 1.0),
    )


def _mixup(image, other, share, place):
    return share * image + (1 - share) * other, share


def _cutmix(image, other, share, place):
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    sides = tf.round(tf.sqrt(1 - share) * size)
    first = tf.floor(place * (size - sides + 1))
    rows, columns = (
        (tf.range(size[axis]) >= first[axis])
        & (tf.range(size[axis]) < first[axis] + sides[axis])
        for axis in (0, 1)
    )
    inside = rows[:, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis]
    share = 1 - tf.reduce_prod(sides) / tf.reduce_prod(size)
    return tf.where(inside, other, image), share


def require_stateless(layers: keras.Layer, channels: int) -> None:
    """Checks that views depend on image and seed alone.

    Raises:
        ValueError: If a layer draws from elsewhere.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, channels)).astype("float32")
    given = tf.constant(rng.integers(0, 2**31, (8, 2)), tf.int32)

    def computed():
        # Traced anew: a layer may draw while it is traced.
        compute = tf.function(lambda seed: view(layers, image, seed))
        return [compute(seed).numpy() for seed in given]

    for one, other in zip(computed(), computed(), strict=True):
        if not np.array_equal(one, other):
            raise ValueError(
                "`augmentation` must draw all random numbers from the "
                "generators of its layers. Received: layers whose views of one "
                f"image and one seed differ: {_names(layers)}. Leave out "
                "AugMix, MixUp and CutMix; `mixing` mixes images."
            )


def _names(layers: keras.Layer) -> list[str]:
    parts: Sequence = getattr(layers, "layers", [layers])
    return [type(each).__name__ for each in parts]


@contextlib.contextmanager
def _drawing_from(seed: tf.Tensor, layers: keras.Layer) -> Iterator[None]:
    """Makes the layers' generators give numbers that depend on `seed` alone."""
    count = itertools.count()
    generators = _generators(layers)
    for each in generators:
        each.next = lambda ordered=True: _next_seed(seed, next(count))
    try:
        yield
    finally:
        for each in generators:
            del each.next


def _generators(layers: keras.Layer) -> list[keras.random.SeedGenerator]:
    """Finds the generators of a layer and of the layers inside it."""
    found = {}

    def visit(value):
        if id(value) in found:
            return
        if isinstance(value, keras.random.SeedGenerator):
            found[id(value)] = value
        elif isinstance(value, keras.Layer):
            found[id(value)] = value
            for each in vars(value).values():
                visit(each)
        elif isinstance(value, list | tuple):
            for each in value:
                visit(each)

    visit(layers)
    return [
        each
        for each in found.values()
        if isinstance(each, keras.random.SeedGenerator)
    ]
