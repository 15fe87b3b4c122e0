"""Trains on images that are read when they are needed; may kill itself.

python -m tests.training.killed <kind> <folder> <run> [<step that kills>]

It prints the number of each image that is read of a record file.
"""

import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.data import Dataset, Files, images, records
from training.runs.interruption import Interruption
from training.runs.run import Run

COUNT, BATCH = 80, 4  # 20 steps an epoch
CONFIG = {
    "batch_size": BATCH,
    "epochs": 3,
    "seed": 0,
    "validation_freq": 3,
    "views": None,
}


def write_images(folder):
    """Writes the images as files, and as record files of both kinds."""
    from array_record.python import array_record_module

    writers = (
        tf.io.TFRecordWriter(str(folder / "set.tfrecord")),
        array_record_module.ArrayRecordWriter(
            str(folder / "set.arrayrecord"), "group_size:1"
        ),
    )
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        image = rng.integers(0, 256, (8, 8, 3), np.uint8)
        jpeg = tf.io.encode_jpeg(image).numpy()
        (folder / f"{number:02}.jpg").write_bytes(jpeg)
        for writer in writers:
            writer.write(jpeg)
    for writer in writers:
        writer.close()


class Told:
    """Prints the number of each record that is read."""

    def __init__(self, reader):
        self._reader = reader

    def __len__(self):
        return len(self._reader)

    def __getitem__(self, index):
        os.write(1, b"Reads %d.\n" % index)
        return self._reader[index]


def images_of(kind, folder):
    if kind == "files":
        return Files(sorted(folder.glob("*.jpg")), (8, 8))
    reader = getattr(records, kind)([*folder.glob(f"*.{kind[:-1].lower()}")])
    return records.Records(Told(reader), images.decode, (8, 8), True, 3, kind)


def dataset_of(kind, folder):
    x_test = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    return Dataset(
        "set",
        images_of(kind, folder),
        np.arange(COUNT, dtype=np.int32) % 2,
        x_test,
        np.arange(4, dtype=np.int32) % 2,
        ("a", "b"),
        flip=True,
        padding=1,
        # So that no image is read beforehand.
        moments=(np.full(3, 128, np.float32), np.full(3, 64, np.float32)),
    )


class Killed(keras.Model):
    """Kills its process in a step."""

    steps, last = 0, None

    def train_step(self, batch):
        def count():
            self.steps += 1
            if self.steps == self.last:
                os.kill(os.getpid(), signal.SIGKILL)

        tf.py_function(count, [], [])
        return super().train_step(batch)


def main(kind, folder, run, last=None):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    dataset = dataset_of(kind, pathlib.Path(folder))
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, keras.layers.Dense(2)(x))
    model = Killed(network.inputs, network.outputs)
    model.last = last and int(last)
    model.compile(keras.optimizers.SGD(0.1, 0.9), **dataset.task())
    with Interruption() as interruption:
        Run(run, CONFIG).fit(
            model,
            network,
            dataset,
            network.variables,
            interruption,
            save_freq=5,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
