"""Draws random crops and mirrors for a whole epoch and applies them.

The draws are stateless: they depend only on a seed. A view is three numbers:
the top and the left of the crop in the padded image, and whether the crop is
mirrored. Nothing is padded in memory, because reflect padding is arithmetic on
row and column indices.
"""

import tensorflow as tf


def draw_views(
    seed: tf.Tensor, size: int, padding: int, flip: bool
) -> tf.Tensor:
    """Draws one view for each sample of an epoch.

    Args:
        seed: Integer tensor `(2,)`. The same arguments give the same views.
        size: Number of samples.
        padding: Largest shift to each side, pixels.
        flip: Whether a view is mirrored with probability 1/2.

    Returns:
        int32 `(size, 3)`: top and left in `[0, 2 * padding]`, mirrored 0 or 1.
    """
    # The algorithm that is chosen by default differs between devices.
    offset_seed, flip_seed = tf.unstack(
        tf.random.split(seed, 2, alg="philox"), num=2
    )
    offsets = tf.random.stateless_uniform(
        (size, 2), offset_seed, 0, 2 * padding + 1, tf.int32, alg="philox"
    )
    mirrored = tf.random.stateless_uniform(
        (size, 1), flip_seed, 0, 2 if flip else 1, tf.int32, alg="philox"
    )
    return tf.concat([offsets, mirrored], axis=1)


def apply_views(images: tf.Tensor, views: tf.Tensor, padding: int) -> tf.Tensor:
    """Crops each reflect-padded image by its view and mirrors the crop.

    Args:
        images: `(batch, height, width, channels)`, any dtype, static height
            and width, both greater than `padding`.
        views: int32 `(batch, 3)` from `draw_views` with the same `padding`.
        padding: Pixels added to each side before the crop.

    Returns:
        Tensor of the shape and dtype of `images`.
    """
    _, height, width, _ = images.shape
    top, left, mirrored = tf.split(views, 3, axis=1)
    column = tf.range(width)
    column = tf.where(mirrored == 1, width - 1 - column, column)
    rows = _reflect(top - padding + tf.range(height), height)
    columns = _reflect(left - padding + column, width)
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def apply_view(image: tf.Tensor, view: tf.Tensor, padding: int) -> tf.Tensor:
    """Crops and mirrors one image, as `apply_views` does a batch.

    It takes a part instead of gathering single pixels, which is faster for
    large images.

    Args:
        image: `(height, width, channels)`, any dtype.
        view: int32 `(3,)` from `draw_views` with the same `padding`.
        padding: Pixels added to each side before the crop.

    Returns:
        Tensor of the shape and dtype of `image`.
    """
    height, width, channels = image.shape
    top, left, mirrored = tf.unstack(view)
    if padding:
        sides = [[padding, padding], [padding, padding], [0, 0]]
        padded = tf.pad(image, sides, "REFLECT")
        image = padded[top : top + height, left : left + width]
        image = tf.ensure_shape(image, (height, width, channels))
    return tf.cond(
        mirrored == 1,
        lambda: tf.reverse(image, [1]),
        lambda: tf.identity(image),
    )


def _reflect(index: tf.Tensor, size: int) -> tf.Tensor:
    """Maps indices of a reflect-padded axis to indices in `[0, size)`.

    The reflection does not repeat the edge pixel.

    Args:
        index: Integer tensor of values in `(-size, 2 * size - 1)`.
        size: Length of the axis without padding, pixels.

    Returns:
        Tensor like `index`.
    """
    last = size - 1
    return last - tf.abs(last - tf.abs(index))
