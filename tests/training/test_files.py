"""A training on images in files: damage, and what it leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import finiteness
from keras_mhgd.data import Dataset, Files
from tests.training.launcher import launch, read_when_needed
from tests.training.runs import assert_same_run
from training.runs.interruption import Interruption
from training.runs.run import Run, damage_named

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


def dataset_of(paths):
    labels = np.arange(len(paths), dtype=np.int32) % 2
    return Dataset(
        "files",
        Files(paths[:64]),
        labels[:64],
        Files(paths[64:]),
        labels[64:],
        ("a", "b"),
        flip=True,
        padding=1,
    )


def train(folder, paths, callback=None):
    """Trains, and calls `callback` when an epoch is tested."""
    keras.utils.set_random_seed(0)
    dataset = dataset_of(paths)
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


def test_an_error_of_any_kind_is_searched_for_damage(paths, tmp_path):
    """A function that reads a file, such as a record, may raise any."""
    places = dataset_of(paths).train_with_places(4, seed=0, initial_epoch=1)
    damaged = paths[int(next(iter(places))[2][0])]

    def damage():
        damaged.write_bytes(b"")
        raise RuntimeError("can't be read")

    with pytest.raises(ValueError, match=f"{damaged.name} of 0 bytes"):
        train(tmp_path / "run", paths, damage)


def test_a_damaged_file_is_named_wherever_it_is(paths, tmp_path):
    """More may be read ahead than the next batches."""
    places = dataset_of(paths).train_with_places(4, seed=0, initial_epoch=1)
    *_, last = places.take(16)
    damaged = paths[int(last[2][0])]

    def damage():
        damaged.write_bytes(b"")
        raise RuntimeError("can't be read")

    with pytest.raises(ValueError, match=f"{damaged.name} of 0 bytes"):
        train(tmp_path / "run", paths, damage)


@tf.function
def not_finite():
    finiteness.check({"loss": tf.constant(np.nan)})


def disconnected():
    raise tf.errors.UnavailableError(None, None, "a worker is gone")


@pytest.mark.parametrize("fail", [not_finite, disconnected])
def test_all_images_are_read_only_if_a_file_may_be_the_cause(
    paths, monkeypatch, fail
):
    """A large set takes long."""
    dataset = dataset_of(paths)
    monkeypatch.setattr(Dataset, "require_whole", pytest.fail)
    with pytest.raises(tf.errors.OpError), damage_named(dataset):
        fail()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "flags"),
    [("test", []), ("train", ["--cache_teacher", "--views=1"])],
)
def test_a_damaged_file_is_named_before_a_distillation(tmp_path, part, flags):
    """In measuring the teacher, and in running it for the cache."""
    image = tf.io.encode_png(np.zeros((16, 16, 3), np.uint8)).numpy()
    for each in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / "set" / each
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.png").write_bytes(image)
    (tmp_path / "set" / part / "b" / "1.png").write_bytes(b"")
    teacher = keras_mhgd.models.get("resnet_small", (16, 16, 3), 2)
    teacher.save(tmp_path / "teacher.keras")
    code, output = launch(
        "training.distill",
        f"--dataset={tmp_path / 'set'}",
        f"--teacher={tmp_path / 'teacher.keras'}",
        "--student=resnet_small",
        "--method=soft_logits",
        f"--run={tmp_path / 'run'}",
        *flags,
        limit=read_when_needed,
    )
    assert code
    assert f"{part}/b/1.png of 0 bytes" in output
