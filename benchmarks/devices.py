"""Trains every method on several devices and tells how far one device is off.

python -m benchmarks.devices <devices> <policy> <folder> <row> ...

The policy is Keras's of dtypes. A row is what `methods.get` takes. Devices are
parts of this processor: TensorFlow must see them from the start, and takes one
strategy a process. With TF_CONFIG this is one of so many workers. What one
device trains is kept in the folder.

The last line printed is a JSON object: for each row the largest difference, or
why there is none.
"""

import contextlib
import json
import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods, replicas

BATCH = 16
# The last batch is 9: TensorFlow would leave one of four devices without any.
COUNT = 2 * BATCH + 9
CLASS_WEIGHT = {0: 1.0, 1: 3.0, 2: 0.5}


def small(row: str) -> methods.Method:
    """Makes the method of a row, with little to learn before the student."""
    method = methods.get(row)
    for part in method.parts():
        for name, value in (
            ("preparation_epochs", 1),
            ("num_heads", 2),
            ("bank_size", 64),
        ):
            if getattr(part, name, 0):
                setattr(part, name, value)
    return method


def network(width: int, seed: int) -> keras.Model:
    """Makes a network of two convolutions for images 8 x 8 x 1."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1))
    for stage in (1, 2):
        x = keras.layers.Conv2D(
            width,
            3,
            strides=stage,
            padding="same",
            activation="relu",
            name=f"stage{stage}",
            kernel_regularizer=keras.regularizers.L2(1e-3),
        )(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def trained(row: str, strategy: tf.distribute.Strategy | None):
    """Trains on a data set with weights, then on arrays with class weights.

    In half precision on the data set alone: over more steps round-off grows.

    Returns:
        Arrays by name: the entries of both histories and all weights.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 8, 8, 1)).astype("float32")
    y = rng.integers(0, 3, COUNT).astype("uint8")
    weight = rng.uniform(0, 2, COUNT).astype("float32")
    with strategy.scope() if strategy else contextlib.nullcontext():
        teacher, student = network(6, 1), network(4, 2)
        keras.utils.set_random_seed(3)
        distiller = keras_mhgd.Distiller(
            student, teacher, small(row), ["stage1", "stage2"]
        )
        optimizer = keras.optimizers.SGD(0.01, 0.9)
        policy = keras.config.dtype_policy().name
        if policy == "mixed_float16":
            # With the default scale the sums of a whole batch overflow in the
            # first steps, and those of its parts do not.
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 32.0)
        distiller.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    batches = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(BATCH)
    of_class = {"class_weight": CLASS_WEIGHT}
    if replicas.across_workers(strategy):  # which have no `class_weight`
        of_class = {"sample_weight": np.float32([CLASS_WEIGHT[i] for i in y])}
    arguments = {"shuffle": False, "verbose": 0}
    numbers, parts = {}, {"data set": {"x": batches}}
    if policy == "float32":
        parts["arrays"] = {"x": x, "y": y, "batch_size": BATCH, **of_class}
    for part, data in parts.items():
        history = distiller.fit(**data, **arguments).history
        numbers |= {f"{part} {name}": history[name] for name in history}
    weights = [*student.get_weights(), *distiller.method.get_weights()]
    numbers |= {f"weight {i}": each for i, each in enumerate(weights)}
    return {name: np.asarray(numbers[name]) for name in numbers}


def reference(row: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Gives what one device trains, from the folder if it is there."""
    path = folder / f"{row}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **trained(row, None))
    return dict(np.load(path))


def difference(
    one: dict[str, np.ndarray], several: dict[str, np.ndarray]
) -> float:
    """Largest difference, relative to an array's largest entry or to 1.

    Raises:
        ValueError: If the names are not the same.
        FloatingPointError: If an entry is not finite.
    """
    if one.keys() != several.keys():
        raise ValueError(f"Other names: {sorted(one)} and {sorted(several)}.")
    lost = [
        name
        for name in one
        if not np.isfinite([one[name], several[name]]).all()
    ]
    if lost:
        raise FloatingPointError(f"NaN or infinity in {', '.join(lost)}.")
    return max(
        float(np.abs(one[name] - several[name]).max())
        / max(1.0, float(np.abs(one[name]).max()))
        for name in one
    )


def strategy_of(devices: str) -> tf.distribute.Strategy:
    """Makes the strategy of so many workers, or of parts of this processor."""
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(devices),
        )
        strategy = tf.distribute.MirroredStrategy()
    if strategy.num_replicas_in_sync != int(devices):
        raise ValueError(f"There are other devices. Received: {devices}.")
    # Each graph runs a few times: making it faster takes longer.
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    return strategy


def main(devices: str, policy: str, folder: str, *rows: str) -> None:
    """Prints the cells of a column."""
    strategy = strategy_of(devices)
    keras.config.set_dtype_policy(policy)
    cells = {}
    for row in rows:
        try:
            several = trained(row, strategy)
            with strategy.scope():
                is_chief = replicas.is_chief()
            if is_chief:
                one = reference(row, pathlib.Path(folder, policy))
                cells[row] = difference(one, several)
        except Exception as error:  # an outcome as well
            cells[row] = f"{type(error).__name__}: {error}"
    with strategy.scope():
        replicas.wait_for_workers()
    print(json.dumps(cells))


if __name__ == "__main__":
    main(*sys.argv[1:])
