"""Checks that losses and gradients are finite."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas

_MESSAGE = "Losses and gradients must be finite. Received NaN or infinity in"


def check(
    values: Mapping[str, tf.Tensor | tf.IndexedSlices],
) -> tf.Operation | None:
    """Makes a graph operation that raises if a value is not finite.

    Args:
        values: Losses or gradients, by their names in the error.
    """
    finite = _are_finite(values.values())
    lost = tf.boolean_mask(tf.constant(list(values)), ~finite)
    message = tf.strings.join(
        [
            f"{_MESSAGE}: ",
            tf.strings.reduce_join(lost[:3], separator=", "),
            ". Lower the learning rate or the method's weight, and look for "
            "images that are not finite.",
        ]
    )
    return tf.raw_ops.Assert(condition=tf.reduce_all(finite), data=[message])


def raised(error: Exception) -> bool:
    """Tells whether an operation of `check` raised an error."""
    return _MESSAGE in str(error)


def after(checks: Sequence[tf.Operation | None], structure: Any) -> Any:
    """Makes tensors wait until checks have passed.

    Args:
        checks: Operations that raise. In eager mode a failed check has raised
            already, and a check that passed is `None`.
        structure: Tensors in any nesting; `None` stays `None`.
    """
    checks = [check for check in checks if check is not None]
    # One operation stands for all checks: an edge from each check to each
    # tensor would make the optimization of a large graph slow.
    passed = [tf.group(*checks)] if checks else []
    leaves = tf.nest.flatten(structure, expand_composites=True)
    tensors = [each for each in leaves if each is not None]
    with tf.control_dependencies(passed):
        waiting = iter(tf.identity_n(tensors) if tensors else [])
    return tf.nest.pack_sequence_as(
        structure,
        [None if each is None else next(waiting) for each in leaves],
        expand_composites=True,
    )


def all_finite(values: Iterable[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
    """Tells if all values are finite on all replicas: scalar boolean."""
    return replicas.everywhere(tf.reduce_all(_are_finite(values)))


def _are_finite(
    values: Iterable[tf.Tensor | tf.IndexedSlices],
) -> tf.Tensor:
    """Computes whether each of some tensors is finite: a boolean vector."""
    values = [
        # The gradient of an embedding holds only the rows that were read.
        each.values if isinstance(each, tf.IndexedSlices) else each
        for each in values
    ]
    # The first step takes less time if tensors share the list of their axes.
    ranks = {each.shape.rank for each in values}
    axes = {rank: None if rank is None else tf.range(rank) for rank in ranks}
    sums = [tf.reduce_sum(each, axes[each.shape.rank]) for each in values]
    dtypes = {each.dtype for each in sums}
    dtype = tf.float64 if tf.float64 in dtypes else tf.float32
    return tf.math.is_finite(tf.stack([tf.cast(each, dtype) for each in sums]))


def spoilt_unless(
    finite: tf.Tensor, gradients: Sequence[tf.Tensor | tf.IndexedSlices]
) -> list[tf.Tensor | tf.IndexedSlices]:
    """Makes one gradient NaN unless all values of the step are finite.

    The NaN makes a `LossScaleOptimizer` lower its scale. That optimizer checks
    only the gradients of its own replica, and no losses.
    """
    first, *others = gradients
    if isinstance(first, tf.IndexedSlices):
        values = tf.where(finite, first.values, float("nan"))
        spoilt = tf.IndexedSlices(values, first.indices, first.dense_shape)
    else:
        spoilt = tf.where(finite, first, float("nan"))
    return [spoilt, *others]


def raising(
    run: Callable[[Any], Any], lost: keras.metrics.Metric
) -> Callable[[Any], Any]:
    """Makes a function of Keras's loops raise where its graph can't.

    Args:
        run: Runs one or more steps on an iterator's batches.
        lost: Counts steps with values that are not finite.

    Returns:
        A function that runs `run` and raises `FloatingPointError` if a step was
        counted.
    """

    def checked(iterator):
        logs = run(iterator)
        if lost.result() > 0:
            raise FloatingPointError(
                f"{_MESSAGE} a step that XLA compiled. "
                "compile(jit_compile=False) names the loss or the layer. Lower "
                "the learning rate or the method's weight, and look for images "
                "that are not finite."
            )
        return logs

    return checked


class RequireFiniteStep(keras.callbacks.Callback):
    """Raises `FloatingPointError` if all steps of an epoch were skipped."""

    def on_epoch_begin(self, epoch, logs=None):
        self._steps = self.model.optimizer.iterations.numpy()

    def on_epoch_end(self, epoch, logs=None):
        if self.model.optimizer.iterations.numpy() == self._steps:
            raise FloatingPointError(
                "Losses and gradients must be finite in some step of an epoch. "
                f"Received NaN or infinity in all steps of epoch {epoch + 1}: "
                "they were skipped, and the weights are those of before. Lower "
                "the learning rate or the method's weight, and look for images "
                "that are not finite. nonfinite='raise' names the loss or the "
                "layer."
            )


class RequireFinite(keras.callbacks.Callback):
    """Raises `FloatingPointError` if a loss is not finite.

    The losses are checked after each step and after the test of each epoch.
    This callback must come first: then no other callback saves the bad state.

    Args:
        rate: Name of the learning rate in the message.
    """

    def __init__(self, rate: str = "the learning rate"):
        super().__init__()
        self._rate = rate

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.on_epoch_end(self._epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        lost = [name for name in logs if not math.isfinite(logs[name])]
        if lost:
            raise FloatingPointError(
                "The losses must be finite. Received NaN or infinity in epoch "
                f"{epoch + 1}: {', '.join(lost)}. Lower {self._rate} or the "
                "method's weight. What was saved is of before."
            )
