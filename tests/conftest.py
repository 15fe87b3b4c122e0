"""Shared by all tests: seeds, fixtures of the reference, small networks."""

import os
import pathlib
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_mhgd  # noqa: E402

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items):
    """Puts files of slow tests first: no process waits for the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def no_tuner():
    """Streams of arrays in `fit`, which end with a wait for tf.data's tuner.

    As long again as the stream has lasted, now and then: half of a test's
    time. The library's own streams are without the tuner.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    iterate = tf.data.Dataset.__iter__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.data.Dataset,
            "__iter__",
            lambda self: iterate(self.with_options(options)),
        )
        yield


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(params=[0, 1], ids=["seed0", "seed1"])
def golden(request):
    """Loads `golden("tf_svd")`: see tests/golden/README.md."""

    def load(name):
        with np.load(GOLDEN / f"{name}_seed{request.param}.npz") as archive:
            return dict(archive)

    return load


@pytest.fixture
def close():
    """Compares with an array, relative to its largest entry."""

    def check(found, expected, tolerance):
        expected = np.asarray(expected)
        scale = max(np.abs(expected).max(), 1e-30)
        error = np.abs(np.asarray(found) - expected).max() / scale
        assert error < tolerance, f"off by {error:.2e} of the largest entry"

    return check


@pytest.fixture
def small_net():
    """Makes `small_net(name)`: stages `stage1` and `stage2`, 3 classes."""

    def build(
        name="net",
        widths=(6, 8),
        size=8,
        classes=3,
        dropout=0.0,
        regularizer=None,
    ):
        x = inputs = keras.Input((size, size, 1))
        for stage, width in enumerate(widths, start=1):
            x = keras.layers.Conv2D(
                width, 3, 1 if stage == 1 else 2, padding="same"
            )(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU(name=f"stage{stage}")(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
        logits = keras.layers.Dense(
            classes,
            kernel_regularizer=regularizer,
            name="logits",
            dtype="float32",
        )
        return keras.Model(inputs, logits(x), name=name)

    return build


@pytest.fixture
def images():
    """32 images 8 x 8 of 3 classes that differ in a bar's place."""
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 3
    x = 0.3 * rng.normal(size=(32, 8, 8, 1))
    for image, label in zip(x, labels, strict=True):
        image[2 * label + 1] += 1.0
    return x.astype("float32"), labels.astype("int64")


@pytest.fixture
def bars(images):
    """The images as a data set: two batches of 16."""
    x, y = images
    x = np.clip(128 + 60 * x, 0, 255).astype("uint8")
    y = y.astype("int32")
    return keras_mhgd.data.Dataset(
        "bars", x, y, x, y, ("a", "b", "c"), padding=1
    )


@pytest.fixture
def task():
    """Keyword arguments for `compile`: SGD, cross-entropy, accuracy."""

    def make(**changes):
        return {
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
            "loss": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "metrics": ["accuracy"],
            **changes,
        }

    return make


@pytest.fixture
def distiller(small_net, task):
    """Makes a compiled distiller of two small networks."""

    def build(method=None, student=None, teacher=None, **changes):
        model = keras_mhgd.Distiller(
            student or small_net("student"),
            teacher or small_net("teacher"),
            method
            or keras_mhgd.methods.MHGD(num_heads=2, preparation_epochs=1),
        )
        model.compile(**task(**changes))
        return model

    return build


@pytest.fixture(scope="session")
def prepare():
    """Writes a set as TensorFlow Datasets does, and gives its images.

    All splits have the same images. Their classes are 0 to 5, in turns, of 10.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the import
        tfds = pytest.importorskip("tensorflow_datasets")

    def write(
        folder,
        name,
        version,
        shape,
        splits=("train", "test"),
        more=False,
        file_format=None,
        count=6,
    ):
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        size = (count, *(side or 9 for side in shape))
        images = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        split = {"image": images, "label": np.arange(count) % 6}
        if more:
            features["more"] = features["label"]
            split["more"] = split["label"]
        split = tf.data.Dataset.from_tensor_slices(split)
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version=version,
            features=tfds.features.FeaturesDict(features),
            split_datasets=dict.fromkeys(splits, split),
            data_dir=folder,
            disable_shuffling=True,
            file_format=file_format,
        )
        return images

    return write
