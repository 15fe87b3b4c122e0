"""A training on images in files: damage, and what it leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.data import Dataset, Files
from tests.training.runs import assert_same_run
from training.runs.interruption import Interruption
from training.runs.run import Run

CONFIG = {
    "batch_size": 4,
    "epochs": 3,
    "seed": 0,
    "validation_freq": 1,
    "views": None,
}


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(70):
        path = tmp_path / f"{number:02}.png"
        image = rng.integers(0, 256, (8, 8, 3), np.uint8)
        path.write_bytes(tf.io.encode_png(image).numpy())
        found.append(path)
    return found


def train(folder, paths, callback=None):
    """Trains, and calls `callback` when the first epoch is tested."""
    keras.utils.set_random_seed(0)
    labels = np.arange(len(paths), dtype=np.int32) % 2
    dataset = Dataset(
        "files",
        Files(paths[:64]),
        labels[:64],
        Files(paths[64:]),
        labels[64:],
        ("a", "b"),
        flip=True,
        padding=1,
    )
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, keras.layers.Dense(2)(x))
    model = Watched(network.inputs, network.outputs)
    model.watch = callback
    model.compile(keras.optimizers.SGD(0.1, 0.9), **dataset.task())
    with Interruption() as interruption:
        Run(folder, CONFIG).fit(
            model, network, dataset, network.variables, interruption
        )


class Watched(keras.Model):
    """Calls a function when an epoch is tested."""

    def test_step(self, data):
        results = super().test_step(data)
        if self.watch:
            tf.py_function(self.watch, [], [])
        return results


@pytest.mark.slow
def test_a_damaged_file_is_named_and_the_run_goes_on(paths, tmp_path):
    train(tmp_path / "whole", paths)
    content = paths[5].read_bytes()
    for damage, error, message in (
        (
            lambda: paths[5].write_bytes(content[:60]) and None,
            ValueError,
            "05.png of 60",
        ),
        (
            lambda: paths[5].unlink(missing_ok=True),
            ValueError,
            "05.png",
        ),
    ):
        with pytest.raises(error, match=message):
            train(tmp_path / "run", paths, damage)
        paths[5].write_bytes(content)
        # Batches are read ahead, so the second epoch may have been trained.
        rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
        assert 2 <= len(rows) <= 3
    train(tmp_path / "run", paths)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
