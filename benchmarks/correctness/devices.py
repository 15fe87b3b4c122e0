"""Trains methods on several devices and compares them with one device.

python -m benchmarks.correctness.devices <devices> <policy> <folder> <row> ...

The policy is Keras's dtype policy. A row is an argument of `methods.parts`: a
method, or several joined by `+`. The devices are logical devices of this
processor. TensorFlow must know them from its start, and allows one strategy a
process. With TF_CONFIG, this process is one of that number of workers. The
folder keeps the results of one device.

The last line printed is a JSON object: for each row, the largest difference or
the error.
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
from keras_mhgd import methods
from keras_mhgd.distribution import replicas

BATCH = 16
# The last batch has 9 samples: TensorFlow would give one of four devices none.
COUNT = 2 * BATCH + 9
CLASS_WEIGHT = {0: 1.0, 1: 3.0, 2: 0.5}


def small(row: str) -> list[methods.Method]:
    """Makes the methods of a row, small and with short preparations."""
    made = methods.parts(row)
    for each in made:
        if each.preparation and each.preparation.epochs:
            each.preparation.epochs = 1
        for name, value in (("num_heads", 2), ("bank_size", 64)):
            if hasattr(each, name):
                setattr(each, name, value)
    return made


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

    In half precision, trains on the data set only: round-off grows with steps.

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
            # With the default scale, sums over a whole batch overflow in the
            # first steps where sums over its parts do not.
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 32.0)
        distiller.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    batches = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(BATCH)
    of_class = {"class_weight": CLASS_WEIGHT}
    if replicas.across_workers(strategy):  # `fit` has no `class_weight`
        of_class = {"sample_weight": np.float32([CLASS_WEIGHT[i] for i in y])}
    arguments = {"shuffle": False, "verbose": 0}
    numbers, parts = {}, {"data set": {"x": batches}}
    if policy == "float32":
        parts["arrays"] = {"x": x, "y": y, "batch_size": BATCH, **of_class}
    for part, data in parts.items():
        history = distiller.fit(**data, **arguments).history
        numbers |= {f"{part} {name}": history[name] for name in history}
    weights = student.get_weights()
    for method in distiller.methods:
        weights += method.get_weights()
    numbers |= {f"weight {i}": each for i, each in enumerate(weights)}
    return {name: np.asarray(numbers[name]) for name in numbers}


def reference(row: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Gives the results of one device, from the folder if they are there."""
    path = folder / f"{row}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **trained(row, None))
    return dict(np.load(path))


def difference(
    one: dict[str, np.ndarray], several: dict[str, np.ndarray]
) -> float:
    """Computes the largest difference, relative to an array's largest or 1.

    Raises:
        ValueError: If the names are not the same.
        FloatingPointError: If a value is not finite.
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
    """Makes a strategy of logical devices, or of workers with TF_CONFIG."""
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
    # Each graph runs only a few times, so optimising it would take longer.
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
        except Exception as error:  # an error is a result, too
            cells[row] = f"{type(error).__name__}: {error}"
    with strategy.scope():
        replicas.wait_for_workers()
    print(json.dumps(cells))


if __name__ == "__main__":
    main(*sys.argv[1:])
