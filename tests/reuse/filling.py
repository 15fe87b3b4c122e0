"""Fills a teacher cache of mixed views of files, and kills itself.

python -m tests.reuse.filling <images> <directory> <batches>

It dies after so many batches, before the state with the last one is saved.
"""

import itertools
import os
import pathlib
import signal
import sys

import keras

import keras_mhgd
from keras_mhgd.data import Mixing
from keras_mhgd.reuse import teacher_cache
from tests.data import viewing

BATCH, VIEWS = 4, 2  # five batches a view


def parts(images):
    """The distiller and the data."""
    keras.utils.set_random_seed(3)

    def network(name):
        x = inputs = keras.Input((16, 16, 3))
        for stage in (1, 2):
            x = keras.layers.Conv2D(
                8, 3, 2, activation="relu", name=f"{name}_{stage}"
            )(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(viewing.COUNT)(x))

    distiller = keras_mhgd.Distiller(
        network("student"), network("teacher"), "fitnet+soft_logits"
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", loss)
    dataset = viewing.images(images).augmented("crop", mixing=Mixing())
    return distiller, dataset


def cache_of(distiller, dataset, directory):
    return keras_mhgd.TeacherCache(
        distiller, dataset, BATCH, VIEWS, directory=directory, verbose=True
    )


def main(images, directory, batches):
    teacher_cache._SAVED_EVERY = 0.0
    saved = itertools.count(1)
    write = teacher_cache.write_atomically

    def write_or_die(path, content):
        if path.name == "filling.json" and next(saved) == int(batches):
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)

    teacher_cache.write_atomically = write_or_die
    cache_of(*parts(pathlib.Path(images)), directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
