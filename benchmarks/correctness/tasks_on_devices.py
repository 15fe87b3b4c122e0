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

import keras_mhgd
from benchmarks.correctness.devices import difference, small, strategy_of
from benchmarks.correctness.situations import SITUATIONS
from keras_mhgd.distribution import replicas

# Two devices have 3 and 3 of the first batch, 3 and 2 of the second, which is
# the last; four devices 2, 2, 1 and 1, then 2, 1, 1 and 1. When the distiller
# is evaluated, only the first device has a sample of the last batch.
BATCH, COUNT, EVALUATED = 6, 11, 7


def repeated(structure, count=COUNT):
    """Repeats the eight samples and gives the first `count`."""
    return keras.tree.map_structure(
        lambda x: None if x is None else np.concatenate([x, x])[:count],
        structure,
    )


def trained(method, situation, strategy):
    """Trains, evaluates and predicts: gives all numbers and weights by name."""
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
    numbers = dict(history)
    if situation.y is not None:
        found = distiller.evaluate(
            repeated(situation.x, EVALUATED),
            repeated(situation.y, EVALUATED),
            sample_weight=repeated(situation.weight, EVALUATED),
            batch_size=BATCH,
            verbose=0,
            return_dict=True,
        )
        # Keras's loss of one of several outputs is a mean over batches of any
        # size, and on several devices over each device's parts of batches.
        of_outputs = distiller.output_names or []
        for name in found.keys() - {f"{each}_loss" for each in of_outputs}:
            numbers[f"evaluated_{name}"] = found[name]
    arrays = distiller.student.get_weights()
    if "TF_CONFIG" not in os.environ:
        arrays += keras.tree.flatten(
            distiller.predict(
                repeated(situation.x, EVALUATED), batch_size=BATCH, verbose=0
            )
        )
    numbers |= {str(number): each for number, each in enumerate(arrays)}
    return {name: np.asarray(each) for name, each in numbers.items()}


def main(devices, method, *tasks):
    """Prints the difference for each task."""
    strategy = strategy_of(devices)
    warnings.simplefilter("ignore")  # variables that no loss reaches
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
