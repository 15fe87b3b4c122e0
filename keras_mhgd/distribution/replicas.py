"""Exchanges tensors between the replicas of a `tf.distribute` strategy.

Each replica has a part of the batch and computes its share of the losses. The
shares add up to the loss of the whole batch. Their gradients add up too, since
optimizers sum the replicas' gradients. On one device, the functions of this
module change nothing.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# `all_gather` doesn't support the dtypes on the left. The dtypes on the right
# hold all of their values.
_GATHERED_AS = {
    tf.bool: tf.int32,
    tf.int8: tf.int32,
    tf.uint8: tf.int32,
    tf.int16: tf.int32,
    tf.uint16: tf.int32,
    tf.uint32: tf.int64,
    tf.bfloat16: tf.float32,
}


TOO_FEW = (
    "A batch must have a sample for each device. Choose another batch size, or "
    "leave out a last batch that is smaller (`drop_remainder=True`)."
)
"""The error message for a batch with fewer samples than devices."""


def number() -> int:
    """Gives the number of replicas that train in sync."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def joined(structure: Any) -> Any:
    """Joins the replicas' parts of a batch, in the order of the replicas.

    Gradients flow from all replicas back to the replica that has the part.

    Args:
        structure: Tensors whose first axis is the batch, in any nesting;
            `None` stays `None`.

    Returns:
        The structure with the whole batch, on each replica. The other axes
        keep their static sizes.

    Raises:
        tf.errors.InvalidArgumentError: If a replica has no sample.
    """
    if number() == 1:
        return structure
    context = tf.distribute.get_replica_context()

    def join(x):
        if x is None:
            return None
        # Tensors from a data set are on no device, but gathering needs one.
        part = tf.identity(with_samples(x))
        dtype = _GATHERED_AS.get(x.dtype, x.dtype)
        whole = context.all_gather(tf.cast(part, dtype), axis=0)
        # Gathering loses all static sizes.
        shape = tf.TensorShape([None]).concatenate(x.shape[1:])
        return tf.ensure_shape(tf.cast(whole, x.dtype), shape)

    return tf.nest.map_structure(join, structure)


def summed(structure: Any) -> Any:
    """Adds up the replicas' tensors; no gradient is defined.

    Args:
        structure: Tensors in any nesting; `None` stays `None`.

    Returns:
        The structure with sums, on each replica.
    """
    if number() == 1:
        return structure
    tensors = [x for x in tf.nest.flatten(structure) if x is not None]
    context = tf.distribute.get_replica_context()
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))
    return tf.nest.map_structure(
        lambda x: None if x is None else next(sums), structure
    )


def everywhere(condition: tf.Tensor) -> tf.Tensor:
    """Computes whether a condition holds on all replicas.

    Args:
        condition: Scalar boolean.

    Returns:
        Scalar boolean, equal on all replicas.
    """
    return summed(tf.cast(condition, tf.float32)) == number()


def once(x: tf.Tensor) -> tf.Tensor:
    """Keeps the first replica's `x` and makes the others' 0.

    Metrics add up the replicas' values. With this function, a value that all
    replicas have counts only once.
    """
    context = tf.distribute.get_replica_context()
    is_first = context.replica_id_in_sync_group == 0
    return tf.where(is_first, x, tf.zeros_like(x))


def assign_unless(
    condition: tf.Tensor,
    variables: Sequence[keras.Variable],
    values: Sequence[tf.Tensor],
) -> None:
    """Assigns each replica's values to its copies of variables.

    Args:
        condition: Scalar boolean, equal on all replicas. If it is true, nothing
            is assigned.
        variables: Variables of any kind, including those of metrics.
        values: One for each variable.
    """

    def merged(strategy, condition, variables, values):
        def assign():
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(
                    variable,
                    lambda variable, value: variable.assign(value),
                    args=(value,),
                    group=False,
                )

        # Inside a replica, a strategy doesn't support updates in a `tf.cond`.
        condition = strategy.experimental_local_results(condition)[0]
        tf.cond(condition, lambda: None, assign)

    tf.__internal__.distribute.interim.maybe_merge_call(
        merged,
        tf.distribute.get_strategy(),
        condition,
        [variable.value for variable in variables],
        list(values),
    )


def share_of_batch(x: tf.Tensor) -> tf.Tensor:
    """Computes which fraction of the batch this replica has.

    Args:
        x: A tensor whose first axis is the batch.

    Returns:
        Scalar float32, > 0 and <= 1: the weight of a mean over this replica's
        samples in the mean over all samples.

    Raises:
        tf.errors.InvalidArgumentError: If a replica has no sample.
    """
    return share_of(tf.shape(with_samples(x))[0])


def share_of(count: tf.Tensor) -> tf.Tensor:
    """Computes which fraction of all samples or rows this replica has.

    Args:
        count: Scalar, the number of samples or rows on this replica.

    Returns:
        Scalar float32, 0 to 1: see `share_of_batch`.
    """
    if number() == 1:
        return tf.constant(1.0)
    count = tf.cast(count, tf.float32)
    return tf.math.divide_no_nan(count, summed(count))


def share(loss: tf.Tensor) -> tf.Tensor:
    """Computes a replica's share of the loss of the whole batch.

    Args:
        loss: The loss of the whole batch, which each replica has computed.

    Returns:
        The loss divided by the number of replicas.
    """
    return loss if number() == 1 else loss / number()


def keras_shares(loss: Any) -> bool:
    """Checks whether Keras computes a loss as a replica's share.

    Under a strategy, Keras's loss objects that take a mean divide it by the
    number of replicas. Loss objects that take a sum, and plain functions, don't
    divide.

    Args:
        loss: A `keras.losses.Loss`, or a function.
    """
    return isinstance(loss, keras.losses.Loss) and loss.reduction in (
        "sum_over_batch_size",
        "mean",
        "mean_with_sample_weight",
    )


def across_workers(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Checks whether the replicas run on several workers, each a process.

    Args:
        strategy: Defaults to `None`: the strategy of the scope. The functions
            below always take that strategy. Those that wait for other workers
            must be called by all workers at the same point.
    """
    strategy = strategy or tf.distribute.get_strategy()
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief() -> bool:
    """Checks whether this process is the chief, which writes the files."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    return not across_workers() or not resolver.task_id


def any_worker(flag: bool) -> bool:
    """Computes whether any worker's flag is set; waits for all workers."""
    return flag if not across_workers() else bool(_of_workers(int(flag)).any())


def wait_for_workers() -> None:
    """Waits until all workers have called this function."""
    any_worker(False)


def leave() -> None:
    """Waits until this worker can exit without harm to the others.

    Data may still be in flight to other workers when a worker exits. All
    workers meet here once more, so the order of their exits is irrelevant.
    """
    with contextlib.suppress(RuntimeError):
        wait_for_workers()


def require_same(name: str, value: Any) -> None:
    """Raises `ValueError` on each worker if they have different values.

    Args:
        name: Name of the value, for the message.
        value: Any value. Two values are equal if their `repr` is equal.
    """
    if not across_workers():
        return
    digest = hashlib.sha256(repr(value).encode()).digest()
    numbers = _of_workers(int.from_bytes(digest[:7], "big"))
    if (numbers != numbers[0]).any():
        leave()
        raise ValueError(
            f"All workers must have the same {name}. Received here: {value!r}. "
            "Start the same command on each, on a folder that all share."
        )


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Raises a clear error if another worker is lost in this context.

    Raises:
        RuntimeError: Instead of TensorFlow's errors.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise RuntimeError(
            "All workers must stay connected. One has ended or can't be "
            "reached: see what it printed, then start the same command again "
            f"on all of them. Cause: {error.message}"
        ) from error


def with_samples(x: tf.Tensor) -> tf.Tensor:
    """Gives a replica's part of a batch, and raises if the part is empty.

    TensorFlow's gradients are wrong for an empty batch. For normalisation they
    are NaN, and for depthwise convolution they are arbitrary numbers.
    """
    if x.shape.rank and x.shape[0]:
        return x
    check = tf.debugging.assert_positive(
        tf.shape(x)[0], f"{TOO_FEW} Received samples on a device:"
    )
    # In eager mode, a failed check has raised already, and the check is `None`.
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(x)


def _of_workers(number: int) -> np.ndarray:
    """Gathers a number from each replica of all workers."""
    strategy = tf.distribute.get_strategy()
    with connected():
        own = strategy.run(lambda: tf.constant([number], tf.int64))
        return strategy.gather(own, axis=0).numpy()
