"""Trains for every task on one device and on two; prints how far apart.

python -m tests.tasks_on_devices <method>

See `replicated.py`.
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
from tests.situations import SITUATIONS

# Eight samples: two devices have 3 and 2 of a batch, then 2 and 1.
BATCH = 5


def trained(method, situation, strategy):
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
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy()
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    warnings.simplefilter("ignore")  # of what no loss reaches
    differences = {}
    for name, situation in SITUATIONS.items():
        one, two = (
            trained(method, situation, each) for each in (None, strategy)
        )
        assert one.keys() == two.keys()
        assert all(np.isfinite(each).all() for each in one.values())
        differences[name] = difference(one, two)
    print(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
