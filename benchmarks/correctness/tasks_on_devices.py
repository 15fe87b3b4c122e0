"""Trains for tasks on one device and on several, and compares both.

python -m benchmarks.correctness.tasks_on_devices <devices> <method> [task ...]

Without a task, it trains for all of them. With TF_CONFIG it is one of several
workers, each a device. It needs a process of its own: TensorFlow must know all
devices from its start.
"""

import contextlib
import json
import os
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.conditions import difference
from benchmarks.correctness.devices import small
from benchmarks.correctness.situations import SITUATIONS
from keras_mhgd.distribution import replicas


def trained(method, situation, strategy, batch_size):
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
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    ).history
    weights = enumerate(distiller.student.get_weights())
    return history | {str(number): each for number, each in weights}


def main(devices, method, *tasks):
    """Prints the difference for each task."""
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
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    warnings.simplefilter("ignore")  # variables that no loss reaches
    # Of eight samples, two devices get 3 and 2, then 2 and 1. With four, one
    # device would get none of the last three, which is refused.
    batch_size = 5 if int(devices) < 4 else 4
    differences = {}
    for name in tasks or SITUATIONS:
        situation = SITUATIONS[name]
        several = trained(method, situation, strategy, batch_size)
        with strategy.scope():
            if not replicas.is_chief():
                continue
        one = trained(method, situation, None, batch_size)
        if not all(np.isfinite(each).all() for each in one.values()):
            raise FloatingPointError(f"{name} with {method}: {one}")
        differences[name] = difference(one, several)
    with strategy.scope():
        replicas.wait_for_workers()
    print(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
