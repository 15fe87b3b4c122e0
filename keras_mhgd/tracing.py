"""Keeps graphs small where they repeat operations."""

import functools
from collections.abc import Callable

import tensorflow as tf


def traced_once(function: Callable[..., object]) -> Callable[..., object]:
    """Traces a function of tensors once for all their sizes, on each device.

    A training step compresses many maps and measures many gradients. If each
    call added its operations to the graph of the step, the first step would
    take longer by a quarter. Instead, each call adds a single operation.

    Args:
        function: Takes tensors and gives tensors. It must not depend on
            anything else, nor on a static size.

    Returns:
        The same function. It runs on the device of each call. Static sizes of
        its results are unknown.
    """

    @functools.lru_cache(maxsize=32)
    def traced(*specs):
        return tf.function(
            function,
            specs,
            autograph=False,
            experimental_attributes={"_noinline": True},
        )

    @functools.wraps(function)
    def call(*tensors):
        return traced(*map(_of_any_size, tensors))(*tensors)

    return call


def _of_any_size(x: tf.Tensor) -> tf.TensorSpec:
    rank = x.shape.rank
    return tf.TensorSpec(None if rank is None else [None] * rank, x.dtype)
