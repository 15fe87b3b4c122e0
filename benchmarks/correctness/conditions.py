"""Checks every method in other precisions, execution modes and tasks.

Each condition is a column of `benchmarks.correctness.matrix`. The networks are
tiny, and most conditions run a single step without tracing. A column therefore
takes only seconds for each method.
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.devices import difference, small
from benchmarks.correctness.situations import SITUATIONS

# The largest difference that is allowed, relative to the largest entry or 1.
TOLERANCES = {
    "run_eagerly": 1e-4,
    "steps_per_execution": 1e-5,
    "jit_compile": 1e-5,
    "mixed_bfloat16": 0.02,
    "mixed_float16": 0.01,
}
COUNT = 8


def network(width, seed):
    """Makes a network of two convolutions: images 8 x 8 x 1, three classes."""
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
        )(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))


def data():
    """Makes a batch of images and class numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 8, 8, 1)).astype("float32")
    return x, np.arange(COUNT) % 3


def image_distiller(row, policy="float32", **options):
    """Makes a compiled distiller of two small networks of a dtype policy."""
    keras.config.set_dtype_policy(policy)
    try:
        teacher, student = network(6, 1), network(4, 2)
        keras.utils.set_random_seed(3)
        distiller = keras_mhgd.Distiller(
            student, teacher, small(row), ["stage1", "stage2"]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    distiller.compile(
        keras.optimizers.SGD(0.001),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return distiller


def step(distiller, *batch):
    """Runs one step without tracing; gives its losses by name."""
    batch = keras.tree.map_structure(
        lambda x: None if x is None else tf.convert_to_tensor(x), batch
    )
    logs = distiller.train_step(batch)
    return {name: float(value) for name, value in logs.items()}


def losses(row, condition):
    """Gives losses and later weights of a step, or of a short `fit`."""
    if condition.startswith("mixed"):
        distiller = image_distiller(row, condition)
        found = step(distiller, *data())
        return {name: found[name] for name in distiller.terms}
    if condition == "run_eagerly":
        distiller = image_distiller(row)
        found = step(distiller, *data())
    else:
        options = {}
        if condition == "steps_per_execution":
            options = {"steps_per_execution": 2}
        elif condition == "jit_compile":
            options = {"jit_compile": True}
        distiller = image_distiller(row, **options)
        for method in distiller.methods:  # skips preparation
            if method.preparation and not method.preparation.done:
                method.preparation.adopt(method.preparation.networks)
        batches = tf.data.Dataset.from_tensors(data())
        history = distiller.fit(batches, verbose=0, shuffle=False).history
        found = {name: values[0] for name, values in history.items()}
    weights = distiller.student.get_weights()
    if condition == "jit_compile":
        require_nan_raises(distiller, row)
    return found | {str(i): each for i, each in enumerate(weights)}


def require_nan_raises(distiller, row):
    """Checks that a step which XLA compiled does not hide a NaN."""
    x, y = data()
    x[3, 2, 2] = np.nan
    batches = tf.data.Dataset.from_tensors((x, y))
    try:
        distiller.fit(batches, verbose=0, shuffle=False)
    except FloatingPointError:
        return
    raise AssertionError(f"{row}: a step that XLA compiled hides a NaN.")


@functools.lru_cache(maxsize=1)
def expected(row):
    """Gives the losses and weights of one step of `fit` in float32."""
    return losses(row, "fit")


def of_condition(row, condition):
    """Computes the largest difference from `fit` in float32."""
    found = losses(row, condition)
    return difference(found, {name: expected(row)[name] for name in found})


def of_task(row, task):
    """Gives 0.0 if a step has finite losses, else its warning or error."""
    situation = SITUATIONS[task]
    try:
        distiller = keras_mhgd.Distiller(
            situation.student(), situation.teacher(), small(row)
        )
        distiller.compile(keras.optimizers.SGD(0.001), **situation.task)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            found = step(distiller, situation.x, situation.y, situation.weight)
    except ValueError as error:
        return reason(str(error))
    terms = [found[term] for term in distiller.terms]
    if not terms or not np.isfinite(terms).all():
        raise FloatingPointError(f"{row} for {task}: {found}")
    if told:
        return f"Trains, and warns: {reason(str(told[0].message))}"
    return 0.0


def reason(message):
    """Gives the text of an error or warning up to what was received."""
    # If a layer's call fails, Keras puts the error's message in bold.
    message = message.split("\x1b[1m")[-1].split("\x1b[0m")[0]
    return message.split(" Received:")[0]


def _column(
    cell, argument
) -> Callable[[Sequence[str], str | os.PathLike], dict]:
    return lambda rows, folder: {row: cell(row, argument) for row in rows}


COLUMNS = {
    **{name: _column(of_condition, name) for name in TOLERANCES},
    **{name: _column(of_task, name) for name in SITUATIONS},
}
