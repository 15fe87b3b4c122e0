"""Trains for tasks on one device and on several; prints how far apart.

python -m tests.tasks_on_devices <devices> <method> [task ...]

All tasks if none is named. With TF_CONFIG it is one of several workers: see
`replicated.py`.
"""

import contextlib
import json
import sys
import warnings

import keras
import numpy as np

import keras_mhgd
from benchmarks.devices import difference, small, strategy_of
from keras_mhgd import replicas
from tests.situations import SITUATIONS

# Two devices have 3 and 3 of the first batch, 3 and 2 of the second, which is
# the last; four devices 2, 2, 1 and 1, then 2, 1, 1 and 1.
BATCH, COUNT = 6, 11


def repeated(structure):
    """Gives so many samples of the eight and those again."""
    return keras.tree.map_structure(
        lambda x: None if x is None else np.concatenate([x, x])[:COUNT],
        structure,
    )


def trained(method, situation, strategy):
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(3)
        distiller = keras_mhgd.Distiller(
            situation.student(), situation.teacher(), small(method)
        )
        distiller.compile(keras.optimizers.SGD(0.01), **situation.task)
    history = distiller.fit(
        repeated(situation.x),
        repeated(situation.y),
        sample_weight=repeated(situation.weight),
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
    ).history
    weights = enumerate(distiller.student.get_weights())
    numbers = history | {str(number): each for number, each in weights}
    return {name: np.asarray(each) for name, each in numbers.items()}


def main(devices, method, *tasks):
    strategy = strategy_of(devices)
    warnings.simplefilter("ignore")  # of what no loss reaches
    differences = {}
    for name in tasks or SITUATIONS:
        situation = SITUATIONS[name]
        several = trained(method, situation, strategy)
        with strategy.scope():
            if not replicas.is_chief():
                continue
        one = trained(method, situation, None)
        differences[name] = difference(one, several)
    with strategy.scope():
        replicas.wait_for_workers()
    print(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
