"""Trains for every task on one device and on two, and compares both.

python -m benchmarks.correctness.tasks_on_devices <method>

It needs a process of its own: TensorFlow must know both devices from its start.
"""

import contextlib
import json
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.conditions import difference
from benchmarks.correctness.devices import small
from benchmarks.correctness.situations import SITUATIONS

# Eight samples: two devices get 3 and 2 in the first batch, then 2 and 1.
BATCH = 5


def trained(method, situation, strategy):
    """Trains once: gives the history and the student's weights by name."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(3)
        distiller = keras_mhgd.Distiller(
            situation.student(), situation.teacher(), small(method)
        )
        distiller.compile(keras.optimizers.SGD(0.01), **situation.task)
    history = distiller.fit(
        situation.x,
        situation.y,
        sample_weight=situation.weight,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
    ).history
    weights = enumerate(distiller.student.get_weights())
    return history | {str(number): each for number, each in weights}


def main(method):
    """Prints the difference for each task."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy()
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    warnings.simplefilter("ignore")  # variables that no loss reaches
    differences = {}
    for name, situation in SITUATIONS.items():
        one, two = (
            trained(method, situation, each) for each in (None, strategy)
        )
        if not all(np.isfinite(each).all() for each in one.values()):
            raise FloatingPointError(f"{name} with {method}: {one}")
        differences[name] = difference(one, two)
    print(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
