"""What the replicas of a `tf.distribute` strategy tell each other.

Each replica has a part of the batch and computes its share of the losses: the
shares add up to the loss of the whole batch, as do their gradients, which
optimizers sum. On one device, all functions here give what they get.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Gathering doesn't take all types. These hold the same values.
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
"""What is said of a batch that can't be shared."""


def number() -> int:
    """The number of replicas that train in step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def joined(structure: Any) -> Any:
    """Joins the replicas' parts of a batch, in their order.

    Gradients flow back to the replica whose part it is, from all replicas.

    Args:
        structure: Tensors whose first axis is the batch, in any nesting;
            `None` stays.

    Returns:
        The same structure, of the whole batch, on each replica. Sizes of the
        other axes that are known stay known.

    Raises:
        tf.errors.InvalidArgumentError: If a replica has no sample.
    """
    if number() == 1:
        return structure
    context = tf.distribute.get_replica_context()

    def join(x):
        if x is None:
            return None
        # What comes from the data set is on no device, as gathering needs it.
        part = tf.identity(with_samples(x))
        dtype = _GATHERED_AS.get(x.dtype, x.dtype)
        whole = context.all_gather(tf.cast(part, dtype), axis=0)
        # All sizes are unknown now.
        shape = tf.TensorShape([None]).concatenate(x.shape[1:])
        return tf.ensure_shape(tf.cast(whole, x.dtype), shape)

    return tf.nest.map_structure(join, structure)


def summed(structure: Any) -> Any:
    """Adds up the replicas' tensors; no gradient is defined.

    Args:
        structure: Tensors in any nesting; `None` stays.

    Returns:
        The same structure of sums, on each replica.
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
    """Tells each replica whether a condition holds on all of them.

    Args:
        condition: Scalar boolean.

    Returns:
        The same.
    """
    return summed(tf.cast(condition, tf.float32)) == number()


def once(x: tf.Tensor) -> tf.Tensor:
    """Keeps the first replica's `x` and makes the others' 0.

    For what all replicas know and metrics, which add them up, must not count
    several times.
    """
    context = tf.distribute.get_replica_context()
    is_first = context.replica_id_in_sync_group == 0
    return tf.where(is_first, x, tf.zeros_like(x))


def assign_unless(
    condition: tf.Tensor,
    variables: Sequence[keras.Variable],
    values: Sequence[tf.Tensor],
) -> None:
    """Gives each replica's copies of variables its values.

    Args:
        condition: Scalar boolean, the same on all replicas: where it holds,
            nothing is done.
        variables: Of any kind, metrics' too.
        values: One a variable.
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

        # A strategy has no condition around an update within one replica.
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
    """Computes which part of the batch this replica has.

    Args:
        x: A tensor whose first axis is the batch.

    Returns:
        Scalar float32, above 0 to 1: what a mean over the replica's samples
        counts in the mean over all.

    Raises:
        tf.errors.InvalidArgumentError: If a replica has no sample.
    """
    return share_of(tf.shape(with_samples(x))[0])


def share_of(count: tf.Tensor) -> tf.Tensor:
    """Computes which part of all replicas' samples or rows this one has.

    Args:
        count: Scalar, their number on this replica.

    Returns:
        Scalar float32, 0 to 1: see `share_of_batch`.
    """
    if number() == 1:
        return tf.constant(1.0)
    count = tf.cast(count, tf.float32)
    return tf.math.divide_no_nan(count, summed(count))


def share(loss: tf.Tensor) -> tf.Tensor:
    """Takes a replica's share of a loss that each computes on the whole batch.

    Args:
        loss: The loss of the whole batch.

    Returns:
        The loss divided by the number of replicas.
    """
    return loss if number() == 1 else loss / number()


def keras_shares(loss: Any) -> bool:
    """Whether a loss is a replica's share already when Keras has computed it.

    Under a strategy, Keras's loss objects that take a mean divide it by the
    number of replicas; those that take a sum, and plain functions, don't.

    Args:
        loss: A `keras.losses.Loss`, or a function.
    """
    return isinstance(loss, keras.losses.Loss) and loss.reduction in (
        "sum_over_batch_size",
        "mean",
        "mean_with_sample_weight",
    )


def across_workers(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Whether the replicas are on several workers, each a process.

    Args:
        strategy: Defaults to `None`: that of the scope. So do the functions
            below, which all workers must call at the same point.
    """
    strategy = strategy or tf.distribute.get_strategy()
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief() -> bool:
    """Whether this process is the one that writes files."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    return not across_workers() or not resolver.task_id


def any_worker(flag: bool) -> bool:
    """Whether a worker's flag is set; waits for all."""
    return flag if not across_workers() else bool(_of_workers(int(flag)).any())


def wait_for_workers() -> None:
    """Returns once all workers are here."""
    any_worker(False)


def leave() -> None:
    """Returns once this worker can end: none waits for what it said before.

    An answer is on its way still when the worker that gave it goes on. Here
    all meet once more, and it doesn't matter who ends first.
    """
    with contextlib.suppress(RuntimeError):
        wait_for_workers()


def require_same(name: str, value: Any) -> None:
    """Raises `ValueError` on each worker if they have different values.

    Args:
        name: What the value is called.
        value: Whatever its text tells whether two are the same.
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
    """Tells plainly, in its context, that another worker was lost.

    Raises:
        RuntimeError: In the place of TensorFlow's errors.
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
    """Gives a replica's part of a batch once it is known not to be empty.

    TensorFlow has no gradients for an empty one: those of normalisation are
    NaN, those of depthwise convolution any numbers.
    """
    if x.shape.rank and x.shape[0]:
        return x
    check = tf.debugging.assert_positive(
        tf.shape(x)[0], f"{TOO_FEW} Received samples on a device:"
    )
    # Run eagerly, the check has raised already and gives no operation.
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(x)


def _of_workers(number: int) -> np.ndarray:
    """Gives the numbers of all replicas."""
    strategy = tf.distribute.get_strategy()
    with connected():
        own = strategy.run(lambda: tf.constant([number], tf.int64))
        return strategy.gather(own, axis=0).numpy()
