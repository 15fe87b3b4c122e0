"""Distils a tiny pair for long; writes what the process holds each epoch.

python -m tests.training.long_run <folder> <epochs>

As `training.distill` does it: preparation, checkpoints within epochs and
after them, tests, `metrics.csv`, TensorBoard and the report.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from training.runs.interruption import Interruption
from training.runs.run import Run

IMAGES, BATCH = 400, 4  # 100 steps an epoch


class Watched(keras_mhgd.Distiller):
    """Notes the process's memory and open files after each epoch."""

    def fit(self, *arguments, callbacks, **others):
        self.held = []
        watch = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: self.held.append(held())
        )
        return super().fit(*arguments, callbacks=[*callbacks, watch], **others)


def held() -> tuple[int, int]:
    """Resident memory in bytes, and the number of open files."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    # One of them is the listing's own.
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))


def bars(count):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = rng.integers(0, 90, size=(count, 8, 8, 1))
    for image, label in zip(x, y, strict=True):
        image[2 * label + 1] += 150
    return x.astype("uint8"), y.astype("int32")


def network(width, name):
    x = inputs = keras.Input((8, 8, 1))
    for stage in (1, 2):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU(name=f"stage{stage}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x), name=name)


def main(folder, epochs):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    dataset = keras_mhgd.data.Dataset(
        "bars", *bars(IMAGES), *bars(30), ("a", "b", "c")
    )
    student = network(4, "student")
    distiller = Watched(
        student,
        network(4, "teacher"),
        keras_mhgd.methods.MHGD(num_heads=2, preparation_epochs=2),
    )
    distiller.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    config = {
        "batch_size": BATCH,
        "epochs": int(epochs),
        "seed": 0,
        "views": None,
        "validation_freq": 1,
    }
    with Interruption() as interruption:
        Run(folder, config).fit(
            distiller,
            student,
            dataset,
            distiller.resumable_variables,
            interruption,
            save_freq=50,
        )
    pathlib.Path(folder, "held.json").write_text(json.dumps(distiller.held))


if __name__ == "__main__":
    main(*sys.argv[1:])
