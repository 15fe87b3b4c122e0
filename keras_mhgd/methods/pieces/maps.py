"""Brings feature maps to one size, flattens them and excludes padding.

A vector `(batch, D)` counts as a map of one position; a sequence `(batch,
length, D)` has one axis of positions, a map `(batch, height, width, D)` two.

A sequence may have a mask `(batch, length)`, false at padded positions. The
values at padded positions are already zero: see `Features.without_padding`.
Zeros are enough for sums of products over the positions of one network. A loss
that compares two maps position by position reads the positions that are padded
in neither map (`joint_masks`). It takes its means over these positions
(`mean_of_positions`).
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_mhgd.features import Features, without_padding
from keras_mhgd.linalg.precision import as_float

Masked = tuple[tf.Tensor, tf.Tensor | None]
"""A map and its mask."""


def flatten_positions(x: tf.Tensor) -> tf.Tensor:
    """Flattens maps, row by row, to `(batch, positions, channels)`.

    Args:
        x: Maps `(batch, height, width, D)`, sequences `(batch, length, D)` or
            vectors `(batch, D)`, any float dtype.

    Returns:
        The same values, float32 or float64. Vectors have one position.
    """
    x = as_float(x)
    if x.shape.rank == 2:
        return x[:, tf.newaxis]
    sizes = x.shape[1:-1]
    positions = -1 if None in sizes else math.prod(sizes)
    return tf.reshape(x, (tf.shape(x)[0], positions, x.shape[-1]))


def to_one_size(
    a: tf.Tensor, b: tf.Tensor, pooling: str = "average"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pools two maps, axis by axis, to the smaller of their sizes.

    The pooling is adaptive: if H positions become h, cell i covers positions
    floor(i H/h) to ceil((i + 1) H/h) - 1. An axis is left unchanged if its
    size is equal in both maps, or unknown in both. If several entries of a
    window are the largest, the first one, row by row, gets the gradient.

    Args:
        a: Maps, sequences or vectors. A vector counts as a map of one
            position, whatever the rank of `b`.
        b: Like `a`, for the same batch; its channels may differ.
        pooling: `"average"` or `"max"`.

    Returns:
        Both tensors, with equal rank, size and dtype, float32 or float64.

    Raises:
        ValueError: If one is a map and the other a sequence, or if only one
            of two sizes is known.
    """
    a, b = as_float(a, b), as_float(b, a)
    sizes = common_size(a.shape, b.shape)
    return _pool(a, sizes, pooling), _pool(b, sizes, pooling)


def to_grid(x: tf.Tensor, size: int) -> tf.Tensor:
    """Average-pools maps adaptively, as `to_one_size` does, to a square grid.

    If the map is smaller than the grid, neighbouring cells cover the same
    positions.

    Args:
        x: Maps `(batch, height, width, D)` of a known size, any float dtype.
        size: Cells along each axis, >= 1.

    Returns:
        `(batch, size, size, D)`, float32 or float64.
    """
    return _pool(as_float(x), (size, size), "average")


def common_size(
    a: Sequence[int | None], b: Sequence[int | None]
) -> tuple[int | None, ...]:
    """Finds the sizes of the position axes after `to_one_size`.

    Args:
        a: Shape with batch and channels; sizes may be `None`.
        b: Like `a`, for the other map.

    Returns:
        The smaller size of each axis of positions; `()` for two vectors.

    Raises:
        ValueError: If one is a map and the other a sequence, or if only one
            of two sizes is known.
    """
    sizes_a, sizes_b = tuple(a)[1:-1], tuple(b)[1:-1]
    rank = max(len(sizes_a), len(sizes_b))
    sizes_a, sizes_b = sizes_a or (1,) * rank, sizes_b or (1,) * rank
    if len(sizes_a) != len(sizes_b):
        raise ValueError(
            "Sensing points that are compared must both be `maps (batch, "
            "height, width, D)` or both `sequences (batch, length, D)`; "
            f"vectors go with either. Received: shapes {tuple(a)} and "
            f"{tuple(b)}. Choose other `sensing_points`."
        )
    for size_a, size_b in zip(sizes_a, sizes_b, strict=True):
        # A size of 1 is the smaller one, even if the other is unknown.
        if (size_a is None) != (size_b is None) and 1 not in (size_a, size_b):
            raise ValueError(
                "Sensing points that are compared must have `heights and "
                "widths` that are known, or equal and unknown. Received: "
                f"shapes {tuple(a)} and {tuple(b)}. Give the networks inputs "
                "of a fixed size."
            )
    return tuple(
        None if None in pair and 1 not in pair else min(filter(None, pair))
        for pair in zip(sizes_a, sizes_b, strict=True)
    )


def with_masks(
    maps: Sequence[tf.Tensor], masks: Sequence[tf.Tensor | None] | None
) -> list[Masked]:
    """Pairs each map with its mask.

    Args:
        maps: One for each point.
        masks: A mask or `None` for each map; `None` if no map has a mask.

    Returns:
        (map, mask) pairs.
    """
    if masks is None:
        masks = [None] * len(maps)
    return list(zip(maps, masks, strict=True))


def masked_maps(features: Features, read: str = "maps") -> list[Masked]:
    """Pairs each map of a network with its mask.

    Args:
        features: The network's features.
        read: Name of the field that holds the maps.

    Returns:
        (map, mask) pairs.
    """
    return with_masks(getattr(features, read), features.masks)


def joint_masks(
    a: Sequence[Masked], b: Sequence[Masked], method: str
) -> list[tf.Tensor | None] | None:
    """Finds the positions that are padded in neither of two maps.

    Args:
        a: Maps with masks, see `masked_maps`.
        b: Maps with masks, to be compared with `a` position by position.
        method: The method's name, for the message.

    Returns:
        A mask for each pair, `None` where neither map has one; `None` if no
        pair has a mask.

    Raises:
        ValueError: If one map of a pair has a mask and the two maps have
            different lengths.
    """
    joint = []
    for point, ((map_a, mask_a), (map_b, mask_b)) in enumerate(
        zip(a, b, strict=True)
    ):
        masks = [mask for mask in (mask_a, mask_b) if mask is not None]
        if masks and map_a.shape[1:-1] != map_b.shape[1:-1]:
            raise ValueError(
                f"{method} compares positions: sensing points of which one is "
                "masked must have `one length`. Received: shapes "
                f"{tuple(map_a.shape)} and {tuple(map_b.shape)} at point "
                f"{point}. Choose other `sensing_points`, or a method that "
                "compares no positions, such as 'similarity_preserving'."
            )
        joint.append(functools.reduce(tf.logical_and, masks) if masks else None)
    return joint if any(mask is not None for mask in joint) else None


def mean_of_positions(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Computes the mean over samples, channels and unpadded positions.

    Args:
        x: `(batch, length, ...)` with a known number of channels; any shape
            without a mask.
        mask: `(batch, length)`, or `None` where nothing is padded.

    Returns:
        Scalar: the sum over the unpadded positions of the batch, divided by
        the number of these positions and the number of channels; 0 if all
        positions are padded.
    """
    if mask is None:
        return tf.reduce_mean(x)
    count = tf.math.count_nonzero(mask, dtype=x.dtype)
    return tf.math.divide_no_nan(
        tf.reduce_sum(without_padding(x, mask)),
        count * math.prod(x.shape[2:]),
    )


def require_positions(
    student: Sequence[Sequence[int | None]],
    teacher: Sequence[Sequence[int | None]],
    method: str,
) -> None:
    """Raises `ValueError` if a pair of maps has only one common position.

    Args:
        student: Shapes of the student's maps.
        teacher: Shapes of the teacher's.
        method: The method's name, for the message.

    Raises:
        ValueError: If a pair has only one common position, or cannot be
            brought to one size.
    """
    for index, (a, b) in enumerate(zip(student, teacher, strict=True)):
        if all(size == 1 for size in common_size(a, b)):
            raise ValueError(
                f"{method} compares positions: each pair of sensing points "
                "must have `more than one position` in common. Received: "
                f"shapes {tuple(a)} and {tuple(b)} at point {index}. Choose "
                "`sensing_points` before the pooling of the network."
            )


def _pool(x: tf.Tensor, sizes: Sequence[int | None], pooling: str) -> tf.Tensor:
    if x.shape.rank == 2 and sizes:
        ones = [1] * len(sizes)
        x = tf.reshape(x, [tf.shape(x)[0], *ones, x.shape[-1]])
    # Columns are pooled before rows. Among equal largest entries of a window,
    # the first one, row by row, then gets the gradient.
    for axis, size in reversed(list(enumerate(sizes, start=1))):
        if x.shape[axis] != size:
            pool = _average_axis if pooling == "average" else _max_axis
            x = pool(x, axis, size)
    return x


def _average_axis(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    if x.shape[axis] is None:
        return tf.reduce_mean(x, axis, keepdims=True)
    weights = np.zeros((size, x.shape[axis]))
    for cell, (start, stop) in enumerate(_windows(x.shape[axis], size)):
        weights[cell, start:stop] = 1 / (stop - start)
    # A product of matrices is enough. tf.einsum would transpose the maps.
    before, after = tf.shape(x)[:axis], tf.shape(x)[axis + 1 :]
    matrices = tf.reshape(x, (-1, x.shape[axis], tf.reduce_prod(after)))
    pooled = tf.matmul(tf.constant(weights, x.dtype), matrices)
    return tf.reshape(pooled, tf.concat([before, [size], after], 0))


def _max_axis(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    if x.shape[axis] is None:
        return tf.reduce_max(x, axis, keepdims=True)
    windows = _windows(x.shape[axis], size)
    largest = tf.gather(x, [start for start, _ in windows], axis=axis)
    for offset in range(1, max(stop - start for start, stop in windows)):
        # Shorter windows repeat their last position.
        members = [min(start + offset, stop - 1) for start, stop in windows]
        other = tf.gather(x, members, axis=axis)
        # Not tf.maximum: the first of equal entries must get the gradient.
        keep = (largest >= other) | tf.math.is_nan(largest)
        largest = tf.where(keep, largest, other)
    return largest


def _windows(length: int, size: int) -> list[tuple[int, int]]:
    return [
        (i * length // size, -(-(i + 1) * length // size)) for i in range(size)
    ]
