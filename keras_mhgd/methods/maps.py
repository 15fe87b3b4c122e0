"""Feature maps brought to one size and flattened.

A vector `(batch, D)` counts as a map of one position; a sequence `(batch,
length, D)` has one axis of positions, a map `(batch, height, width, D)` two.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_mhgd.precision import as_float

_AXES = "xyz"


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

    Adaptive pooling: with H positions that become h, cell i covers positions
    floor(i H/h) to ceil((i + 1) H/h) - 1. Axes of equal size stay as they
    are, and so do axes whose size neither map knows. Of equal largest entries
    in a window, the first one, row by row, gets the gradient.

    Args:
        a: Maps, sequences or vectors; a vector counts as a map of one
            position, whatever the other is.
        b: The same, for the same batch; its channels may differ.
        pooling: `"average"` or `"max"`.

    Returns:
        Both, of one rank, one size and one dtype, float32 or float64.

    Raises:
        ValueError: If one is a map and the other a sequence, or if only one
            of two sizes is known.
    """
    a, b = as_float(a, b), as_float(b, a)
    sizes = common_size(a.shape, b.shape)
    return _pool(a, sizes, pooling), _pool(b, sizes, pooling)


def common_size(
    a: Sequence[int | None], b: Sequence[int | None]
) -> tuple[int | None, ...]:
    """Finds the sizes of the axes of positions that `to_one_size` gives.

    Args:
        a: Shape with batch and channels, sizes may be `None`.
        b: The same.

    Returns:
        The smaller size of each axis of positions; none for two vectors.

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
        # One position is the smaller one, whatever the other.
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


def require_positions(
    student: Sequence[Sequence[int | None]],
    teacher: Sequence[Sequence[int | None]],
    method: str,
) -> None:
    """Raises if a pair of maps has one position in common.

    Args:
        student: Shapes of the student's maps.
        teacher: Shapes of the teacher's.
        method: The method's name, for the message.

    Raises:
        ValueError: If so, or if the two cannot be brought to one size.
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
    # Columns before rows: of equal entries in a window the first, row by row,
    # has the gradient of a maximum.
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
    before = "b" + _AXES[: axis - 1]
    equation = f"oi,{before}i...->{before}o..."
    return tf.einsum(equation, tf.constant(weights, x.dtype), x)


def _max_axis(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    if x.shape[axis] is None:
        return tf.reduce_max(x, axis, keepdims=True)
    windows = _windows(x.shape[axis], size)
    largest = tf.gather(x, [start for start, _ in windows], axis=axis)
    for offset in range(1, max(stop - start for start, stop in windows)):
        # Windows that are shorter repeat their last position.
        members = [min(start + offset, stop - 1) for start, stop in windows]
        other = tf.gather(x, members, axis=axis)
        # Not tf.maximum: of equal entries the first has the gradient.
        keep = (largest >= other) | tf.math.is_nan(largest)
        largest = tf.where(keep, largest, other)
    return largest


def _windows(length: int, size: int) -> list[tuple[int, int]]:
    return [
        (i * length // size, -(-(i + 1) * length // size)) for i in range(size)
    ]
