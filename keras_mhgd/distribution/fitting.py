"""Runs `fit` and `evaluate` under every strategy, also with several workers.

Keras's own `fit` and `evaluate` fail under
`tf.distribute.MultiWorkerMirroredStrategy`: they build the model from a batch
and average logs in ways that need one process. Under that strategy, each worker
is a process that runs the same program. All workers must call the functions of
this module with equal data. Under other strategies, these functions call
Keras's own.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas

# Callbacks that only the chief runs: processes must not write the same files.
_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


class Shared:
    """Batches of samples of which each worker reads only its own.

    A `tf.data.Dataset` of batches is read by each worker, which then takes its
    rows. Here, the workers share the places of samples, such as their numbers,
    and read the samples afterwards.

    Args:
        make: A function of `share` that makes a `tf.data.Dataset` of batches in
            the same order on each worker: `share(places)` gives those of the
            batches of places that this worker reads. `share` is `None` for all.

    Example:
        >>> batches = keras_mhgd.distribution.Shared(
        ...     lambda share: dataset.train(batch_size=64, share=share)
        ... )
    """

    def __init__(
        self,
        make: Callable[
            [Callable[[tf.data.Dataset], tf.data.Dataset] | None],
            tf.data.Dataset,
        ],
    ):
        self.make = make

    @functools.cached_property
    def whole(self) -> tf.data.Dataset:
        """All batches."""
        return self.make(None)

    @property
    def element_spec(self) -> Any:
        """The specs of a batch."""
        return self.whole.element_spec

    def cardinality(self) -> tf.Tensor:
        """Gives the number of batches, as `tf.data.Dataset` does."""
        return self.whole.cardinality()


def build(
    model: keras.Model,
    output_shapes: Any,
    x: Any,
    y: Any = None,
) -> None:
    """Makes the variables of optimizer and metrics.

    A step that makes these variables itself is traced twice. Besides, a
    checkpoint can restore only variables that have been made. This function
    must be called in the scope of the model's strategy.

    Args:
        model: A compiled model.
        output_shapes: Shape of the output that losses and metrics compare with
            the labels, a tuple. For several outputs, a list or dict of shapes.
        x: Inputs, or a `tf.data.Dataset` or `Shared` with labels.
        y: Labels, if they are not in `x`.
    """
    if not model.optimizer.built:  # a second build would make new variables
        model.optimizer.build(model.trainable_variables)
    if isinstance(x, tf.data.Dataset | Shared):
        _, y, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    build_metrics(model, output_shapes, y)


def build_metrics(model: keras.Model, output_shapes: Any, y: Any) -> None:
    """Makes the variables of metrics and losses: see `build`.

    Args:
        model: A compiled model.
        output_shapes: See `build`.
        y: Labels, or their specs. If they have no shape, nothing is made.
    """
    if y is None or not all(
        hasattr(each, "shape") for each in keras.tree.flatten(y)
    ):
        return
    outputs = keras.tree.map_shape_structure(tf.TensorSpec, output_shapes)
    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        metrics.build(y, outputs)
    loss = model._compile_loss
    if isinstance(outputs, (list, dict)) and loss and not loss.built:
        _build_losses(loss, y, outputs)


class _Built(Exception):
    """Ends a loss's call once the loss is built."""


def _build_losses(loss: Any, y: Any, outputs: Any) -> None:
    """Makes the metric that each output's loss has.

    A call of the loss brings labels and outputs to one structure, builds the
    loss with its metrics, and computes. This function ends the call after the
    build. If the metrics were built in a step's graph instead, their variables
    could not be used outside of that graph under a strategy with several
    replicas.
    """
    build = loss.build

    def build_and_end(*both):
        build(*both)
        raise _Built

    loss.build = build_and_end
    try:
        loss(y, outputs)
    except _Built:
        pass
    finally:
        del loss.build


def fit(
    model: keras.Model, x: Any = None, y: Any = None, **arguments: Any
) -> keras.callbacks.History:
    """Trains a model as `keras.Model.fit` does.

    With several workers, each trains on its rows of each batch. All workers run
    the callbacks with equal logs, so a schedule acts on all workers. Only the
    chief shows the progress bar and runs Keras's `ModelCheckpoint`,
    `CSVLogger`, `TensorBoard` and `RemoteMonitor`. Any other callback that
    writes files must check `replicas.is_chief()`.

    Args:
        model: A compiled model. With several workers, its optimizer and metrics
            must be built: see `build`.
        x: As for `keras.Model.fit`, or `Shared`. With several workers, a
            `tf.data.Dataset` of whole batches in the same order on each worker,
            `Shared`, or arrays, which are shuffled by a fixed seed.
        y: Labels, if they are not in `x`.
        **arguments: Other arguments of `keras.Model.fit`. With several workers,
            `class_weight` and `validation_split` are not supported.

    Raises:
        RuntimeError: If another worker is lost.
        ValueError: If an argument is not supported with several workers.
    """
    if not replicas.across_workers(model.distribute_strategy):
        if isinstance(x, Shared):
            x = x.whole
        if isinstance(arguments.get("validation_data"), Shared):
            arguments["validation_data"] = arguments["validation_data"].whole
        with _evenly_shared(model):
            return keras.Model.fit(model, x, y, **arguments)
    for name in ("class_weight", "validation_split"):
        if arguments.get(name):
            raise ValueError(
                f"`{name}` can't be had with several workers. Received: "
                f"{name}={arguments[name]!r}. Use `sample_weight`, or "
                "`validation_data`."
            )
    with _on_workers(model):
        batch_size = arguments.pop("batch_size", None)
        batches = _batches(
            x,
            y,
            arguments.pop("sample_weight", None),
            batch_size,
            arguments.pop("shuffle", True),
        )
        steps = _steps(batches, "steps_per_epoch", arguments)
        validation = arguments.pop("validation_data", None)
        if validation is not None:
            size = arguments.pop("validation_batch_size", None) or batch_size
            parts = keras.utils.unpack_x_y_sample_weight(validation)
            validation = _batches(*parts, size)
            arguments["validation_steps"] = _steps(
                validation, "validation_steps", arguments
            )
            validation = _distributed(validation, repeated=True)
        callbacks = arguments.pop("callbacks", None) or []
        if not replicas.is_chief():
            arguments["verbose"] = 0
            callbacks = [
                each for each in callbacks if not isinstance(each, _WRITERS)
            ]
        return keras.Model.fit(
            model,
            _distributed(batches, repeated=True, least=replicas.number()),
            shuffle=False,  # the batches are shuffled already
            steps_per_epoch=steps,
            validation_data=validation,
            callbacks=callbacks,
            **arguments,
        )


def evaluate(model: keras.Model, x: Any = None, y: Any = None, **arguments):
    """Evaluates a model as `keras.Model.evaluate` does.

    Args:
        model: A compiled model. With several workers, its metrics must be
            built: see `build`.
        x: As for `fit`.
        y: Labels, if they are not in `x`.
        **arguments: Other arguments of `keras.Model.evaluate`.

    Raises:
        RuntimeError: If another worker is lost.
    """
    # For validation, `fit` calls this with data that is distributed already.
    if not replicas.across_workers(model.distribute_strategy) or isinstance(
        x, tf.distribute.DistributedDataset
    ):
        if isinstance(x, Shared):
            x = x.whole
        with _evenly_shared(model):
            return keras.Model.evaluate(model, x, y, **arguments)
    with _on_workers(model):
        batch_size = arguments.pop("batch_size", None)
        weight = arguments.pop("sample_weight", None)
        if not replicas.is_chief():
            arguments["verbose"] = 0
        batches = _batches(x, y, weight, batch_size)
        steps = _steps(batches, "steps", arguments)
        return keras.Model.evaluate(
            model,
            _distributed(batches, repeated=True),
            steps=steps,
            **arguments,
        )


def predict(model: keras.Model, x: Any, **arguments: Any) -> Any:
    """Predicts as `keras.Model.predict` does.

    Args:
        model: A model.
        x: As for `keras.Model.predict`.
        **arguments: Other arguments of `keras.Model.predict`.

    Returns:
        Arrays: the outputs for all samples.
    """
    with _evenly_shared(model):
        return keras.Model.predict(model, x, **arguments)


def static_batches(
    batches: tf.data.Dataset, batch_size: int, num_samples: int
) -> tf.data.Dataset:
    """Gives batches the static shapes that a TPU needs.

    Args:
        batches: A data set of batches.
        batch_size: Samples in a batch.
        num_samples: Samples in an epoch.

    Returns:
        The batches with static shapes.

    Raises:
        ValueError: If the last batch of an epoch would be smaller.
    """
    if num_samples % batch_size:
        raise ValueError(
            "All batches must have one size on a TPU. Received: "
            f"{num_samples} samples in batches of {batch_size}. Choose a "
            "batch size that divides the number of samples."
        )

    @tf.autograph.experimental.do_not_convert
    def fix(*batch):
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [batch_size, *part.shape[1:]]),
            batch,
        )

    return batches.map(fix)


class _Evenly:
    """Wraps a strategy of one process, and shares each batch evenly.

    TensorFlow gives each device the same number of samples until none is left.
    With 9 samples, 4 devices get 3, 3, 3 and 0. This class gives them 3, 2, 2
    and 2.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy

    def experimental_distribute_dataset(self, batches: tf.data.Dataset):
        with self._strategy.scope():
            return _distributed(batches)

    def reduce(self, reduce_op, value, axis=None):
        if reduce_op != "MEAN" or axis is not None:
            return self._strategy.reduce(reduce_op, value, axis)
        # Keras takes this mean of a batch only to see its shapes. Uneven parts
        # have no mean, so one of the parts is given instead.
        return tf.nest.map_structure(
            lambda part: self.experimental_local_results(part)[0], value
        )

    def __getattr__(self, name):
        return getattr(self._strategy, name)


@contextlib.contextmanager
def _evenly_shared(model: keras.Model) -> Iterator[None]:
    """Makes Keras's loops share batches evenly among mirrored devices.

    A device without a sample of the last batch is left out of evaluations and
    predictions.
    """
    own = model._distribute_strategy
    if not isinstance(own, tf.distribute.MirroredStrategy):
        yield
        return
    model._distribute_strategy = _Evenly(own)
    model.test_step = _if_any(model, model.test_step)
    model.predict_step = _with_any(model.predict_step)
    try:
        yield
    finally:
        del model.test_step, model.predict_step
        model._distribute_strategy = own


@contextlib.contextmanager
def _on_workers(model: keras.Model) -> Iterator[None]:
    """Makes Keras's loops over distributed data run on several workers.

    The data must be endless. Then the workers need not agree on its end.
    """
    strategy = model.distribute_strategy
    if model.steps_per_execution > 1:
        raise ValueError(
            "`steps_per_execution` must be 1 with several workers. Received: "
            f"steps_per_execution={model.steps_per_execution}."
        )
    if model.train_function is None:
        model.train_function = _step_function(model, model.train_step)
    if model.test_function is None:
        test_step = _if_any(model, model.test_step)
        model.test_function = _step_function(model, test_step)
    # If the model had its own strategy, Keras would build it from a batch.
    # Without one, the model takes the strategy of the scope.
    model._distribute_strategy = None
    try:
        with strategy.scope(), replicas.connected():
            yield
            replicas.leave()
    finally:
        model._distribute_strategy = strategy


def _step_function(model: keras.Model, step: Callable) -> Callable:
    """Makes the function that Keras calls with an iterator to get logs."""

    @tf.autograph.experimental.do_not_convert
    def run(iterator):
        names = []
        model.distribute_strategy.run(
            lambda batch: names.extend(step(batch)), (next(iterator),)
        )
        results = model.get_metrics_result()
        return {name: results[name] for name in names}

    return run if model.run_eagerly else tf.function(run)


# With an empty batch, TensorFlow's convolutions give wrong shapes on processors
# for which oneDNN is on, and some layers give NaN. So no network sees one.


def _if_any(model: keras.Model, step: Callable) -> Callable:
    """Skips a step on a device that has no sample of the last batch."""
    names = {}

    def run(batch):
        def on_some():
            names.update(step(batch))
            return tf.constant(0)

        tf.cond(_count(batch) > 0, on_some, lambda: tf.constant(0))
        results = model.get_metrics_result()
        return {name: results[name] for name in names}

    return run


def _with_any(step: Callable) -> Callable:
    """Predicts for a sample of zeros if a device has none, and drops that."""

    def run(batch):
        count = _count(batch)
        missing = tf.maximum(1 - count, 0)

        def filled(x):
            if isinstance(x, tf.RaggedTensor):
                lengths = tf.zeros([missing], x.row_splits.dtype)
                rows = tf.RaggedTensor.from_row_lengths(x.values[:0], lengths)
                return tf.concat([x, rows], axis=0)
            others = [[0, 0]] * (x.shape.rank - 1)
            return tf.pad(x, [[0, missing], *others])

        outputs = step(tf.nest.map_structure(filled, batch))
        return tf.nest.map_structure(lambda y: y[:count], outputs)

    return run


def _batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    shuffle: bool = False,
) -> tf.data.Dataset | Shared:
    """Gives batches unchanged, or makes them from arrays."""
    if isinstance(x, tf.data.Dataset | Shared):
        return x
    if x is None or not hasattr(x, "shape"):
        raise ValueError(
            "`x` must be an array or a `tf.data.Dataset` with several workers. "
            f"Received: {type(x).__name__}."
        )
    parts = [part for part in (x, y, sample_weight) if part is not None]
    batches = tf.data.Dataset.from_tensor_slices(tuple(parts))
    if shuffle:
        batches = batches.shuffle(len(x), seed=0)  # alike on each worker
    return batches.batch(batch_size or 32)


def _steps(
    batches: tf.data.Dataset | Shared, name: str, arguments: dict[str, Any]
) -> int:
    """Takes the number of batches from `arguments`, or counts the batches."""
    steps = arguments.pop(name, None) or int(batches.cardinality())
    if steps < 0:
        raise ValueError(
            f"`{name}` must be given with several workers for a data set of "
            f"unknown length. Received: {name}=None."
        )
    return steps


def _distributed(
    batches: tf.data.Dataset | Shared, repeated: bool = False, least: int = 0
) -> tf.distribute.DistributedDataset:
    """Gives each device its rows of each batch, in order."""

    def rows(context):
        number = context.num_replicas_in_sync
        local = number // context.num_input_pipelines
        first = local * context.input_pipeline_id

        @tf.autograph.experimental.do_not_convert
        def split(*batch):
            return _rows(batch, number, first, local, least)

        def share(batches):
            return batches.flat_map(split)

        if isinstance(batches, Shared):
            parts = batches.make(share)
        else:
            parts = share(batches)
        if repeated:
            parts = parts.repeat()
        return parts.prefetch(local)  # one batch

    strategy = tf.distribute.get_strategy()
    return strategy.distribute_datasets_from_function(rows)


def _rows(
    batch: tuple, number: int, first: int, local: int, least: int
) -> tf.data.Dataset:
    """Splits a batch for `number` devices, and gives `local` of the parts."""
    count = _count(batch)
    check = tf.debugging.assert_greater_equal(
        count,
        tf.constant(least, tf.int64),
        f"{replicas.TOO_FEW} Received samples:",
    )

    @tf.autograph.experimental.do_not_convert
    def part(replica):
        # Rounded up, so the first device has a sample of each batch.
        start, end = (
            -(-replica * count // number),
            -(-(replica + 1) * count // number),
        )
        return tf.nest.map_structure(lambda whole: whole[start:end], batch)

    with tf.control_dependencies([check]):
        replica = tf.range(first, first + local, dtype=tf.int64)
    return tf.data.Dataset.from_tensor_slices(replica).map(part)


def _count(batch: Any) -> tf.Tensor:
    return tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
