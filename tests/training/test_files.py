"""A training on images in files: damage, and what it leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import finiteness
from keras_mhgd.data import Dataset, Files, files
from tests.training.launcher import launch, read_when_needed
from tests.training.runs import assert_same_run, weights
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


def not_kept():
    """Makes every set be read when it is needed."""
    files._IN_MEMORY = 0


def write_photos(folder, count, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        image = tf.io.encode_jpeg(rng.integers(0, 256, (16, 16, 3), np.uint8))
        (folder / f"{number}.jpg").write_bytes(image.numpy())


@pytest.mark.slow
def test_a_folder_of_images_without_labels_teaches(tmp_path):
    """In memory as from files, and what it shows counts."""
    for number, part in enumerate(("train/a", "train/b", "test/a", "test/b")):
        write_photos(tmp_path / "set" / part, 4, number)
    write_photos(tmp_path / "more" / "inside", 6, 4)
    write_photos(tmp_path / "others", 6, 5)
    teacher = keras_mhgd.models.get("resnet_small", (16, 16, 3), 2)
    teacher.save(tmp_path / "teacher.keras")

    def distill(run, unlabeled, method="soft_logits", limit=None):
        code, output = launch(
            "training.distill",
            f"--dataset={tmp_path / 'set'}",
            f"--unlabeled={tmp_path / unlabeled}",
            f"--teacher={tmp_path / 'teacher.keras'}",
            "--student=vgg_thin",
            f"--method={method}",
            "--batch_size=7",
            "--epochs=1",
            f"--run={tmp_path / run}",
            limit=limit,
        )
        assert (tmp_path / run / "last.keras").exists() == (not code), output
        return output

    output = distill("kept", "more")
    assert "6 of 14 training images have no labels." in output
    assert "Warning: the 6 images" not in output
    output = distill("lazy", "more", limit=not_kept)
    assert "Reads 14 training images" in output
    assert_same_run(tmp_path / "lazy", tmp_path / "kept")
    distill("other", "others")
    first, other = (weights(tmp_path / run) for run in ("kept", "other"))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    output = distill("labels", "more", method="dkd")
    assert "the 6 images without labels teach nothing here: dkd" in output
    damaged = tmp_path / "more" / "inside" / "3.jpg"
    damaged.write_bytes(b"")
    assert f"{damaged} of 0 bytes" in distill("damaged", "more")


@pytest.mark.slow
def test_record_files_of_both_formats_give_one_training(tmp_path, prepare):
    """In memory as from the files, held out and in part."""
    for file_format in ("tfrecord", "array_record"):
        prepare(
            tmp_path / file_format,
            "toy",
            "1.0.0",
            (16, 16, 3),
            file_format=file_format,
            count=60,
        )
        for name, limit in (("kept", None), ("lazy", not_kept)):
            run = tmp_path / f"{file_format}_{name}"
            code, output = launch(
                "training.train",
                "--dataset=toy",
                f"--data_dir={tmp_path / file_format}",
                "--model=resnet_small",
                "--validation_split=0.3",
                "--subset=24",
                "--batch_size=8",
                "--epochs=2",
                f"--run={run}",
                limit=limit,
            )
            assert not code, output
            assert "24 training images of toy, tested on 18 held-out" in output
            assert ("Reads 24 training images" in output) == bool(limit)
            assert_same_run(run, tmp_path / "tfrecord_kept")


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
