"""What preprocessors make of one batch."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Views, text_as_tensors

rng = np.random.default_rng(0)
A, B = (rng.normal(size=(5, 4)).astype("float32") for _ in range(2))


def image(*shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Identity()(inputs))


def pair(*names):
    inputs = {name: keras.Input((4,), name=name) for name in names}
    return keras.Model(inputs, keras.layers.Add()(list(inputs.values())))


def labels_of(x, y=None, sample_weight=None):
    """Makes labels and weights from a batch, as language models need it."""
    return x[:, :-1], x[:, 1:], tf.ones_like(x[:, 1:])


def test_no_preprocessor_is_one_view():
    view = Views(pair("a", "b"), pair("a", "c"))({"a": A, "b": B}, 1, 2)
    assert view.student["b"] is view.teacher["c"] is B
    assert (view.y, view.sample_weight) == (1, 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_two_views(compiled):
    student, teacher = image(2, 2, 1), image(6, 6, 1)
    views = Views(
        student,
        teacher,
        student_preprocessor=keras.layers.Resizing(2, 2),
        teacher_preprocessor=lambda x: x / 2,
    )
    assert views.student_shapes == [(None, 2, 2, 1)]
    assert views.teacher_shapes == [(None, 6, 6, 1)]
    images = rng.uniform(size=(3, 6, 6, 1)).astype("float32")
    view = (tf.function(views) if compiled else views)(images, tf.constant(1))
    blocks = images.reshape(3, 2, 3, 2, 3, 1)
    np.testing.assert_allclose(view.teacher, images / 2)
    # Bilinear without antialiasing takes the middle of three.
    np.testing.assert_allclose(view.student, blocks[:, :, 1, :, 1], rtol=1e-6)
    np.testing.assert_array_equal(views.teacher(images), view.teacher)
    x, y, weight = views.student(images, 1)
    np.testing.assert_array_equal(x, view.student)
    assert (y, weight) == (1, None)


def test_labels_are_those_of_the_students_preprocessor():
    tokens = np.arange(10).reshape(2, 5)
    views = Views(
        image(4), image(5), labels_of, lambda x, y, sample_weight: (-x, 0, 0)
    )
    view = views(tokens)
    np.testing.assert_array_equal(view.student, tokens[:, :4])
    np.testing.assert_array_equal(view.y, tokens[:, 1:])
    np.testing.assert_array_equal(view.sample_weight, np.ones((2, 4)))
    np.testing.assert_array_equal(view.teacher, -tokens)
    # What it doesn't make is what was given.
    views = Views(image(4), image(4), lambda x, y, sample_weight: x)
    assert views.student(A, 1, 2) == (A, 1, 2)


def test_a_shared_preprocessor_runs_once():
    calls = []

    def halved(x):
        calls.append(x)
        return x / 2

    for given in (("teacher", halved), (halved, "student"), (halved, halved)):
        calls.clear()
        views = Views(image(4), image(4), *given)
        view = views(A)
        assert view.student is view.teacher
        assert len(calls) == 1
        np.testing.assert_array_equal(views.teacher(A), A / 2)
    with pytest.raises(ValueError, match="same input shape"):
        Views(image(4), image(5), halved, halved)
    with pytest.raises(ValueError, match="Only one of the preprocessors may"):
        Views(image(4), image(4), "teacher", "student")


@keras.saving.register_keras_serializable(package="tests")
class Task(keras.Model):
    """Has a preprocessor as tasks of KerasHub have: beside its `call`."""

    def __init__(self, preprocessor=None, size=4, **kwargs):
        inputs = keras.Input((size,), name="inputs")
        super().__init__(inputs, keras.layers.Identity()(inputs), **kwargs)
        self.preprocessor = preprocessor
        self.size = size

    def preprocess_samples(self, x, y=None, sample_weight=None):
        return self.preprocessor(x), y, sample_weight

    def get_config(self):
        return {
            "preprocessor": keras.saving.serialize_keras_object(
                self.preprocessor
            ),
            "size": self.size,
        }

    @classmethod
    def from_config(cls, config):
        preprocessor = keras.saving.deserialize_keras_object(
            config["preprocessor"]
        )
        return cls(preprocessor, config["size"])


def test_a_network_brings_its_own():
    doubled = keras.layers.Rescaling(2.0)
    views = Views(Task(doubled), image(4))
    view = views(A)
    np.testing.assert_array_equal(view.student, 2 * A)
    assert view.teacher is A
    off = Views(Task(doubled), image(4), keras.layers.Identity())(A)
    assert off.student is off.teacher is A
    # One that the network runs itself isn't run before it.
    plain = image(4)
    plain.preprocessor = doubled
    assert Views(plain, image(4))(A).student is A


def test_bad_preprocessors_are_refused():
    with pytest.raises(TypeError, match="`student_preprocessor` must be a fun"):
        Views(image(4), image(4), student_preprocessor="student")
    augmenting = keras.Sequential(
        [keras.layers.Rescaling(2.0), keras.layers.RandomFlip(name="flip")]
    )
    with pytest.raises(
        ValueError, match=r"augment at random: .* \['flip'\] do nothing"
    ):
        Views(image(4), image(4), teacher_preprocessor=augmenting)


def test_layers_run_in_inference_mode():
    dropout = keras.layers.Dropout(0.9)
    view = Views(image(4), image(4), dropout)(A)
    np.testing.assert_array_equal(view.student, A)


def test_what_xla_compiles():
    assert Views(image(4), image(4), keras.layers.Resizing(2, 2)).supports_jit
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    assert not Views(image(4), image(4), None, lookup).supports_jit


@keras.saving.register_keras_serializable(package="tests")
def registered(x):
    return x / 2


@keras.saving.register_keras_serializable(package="tests")
class Scaled:
    """Callable, and no layer."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x

    def get_config(self):
        return {"scale": self.scale}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def again(views, student, teacher):
    """The views of loaded networks."""
    config = {
        name: keras.saving.deserialize_keras_object(each)
        for name, each in views.get_config().items()
    }
    return Views(student, teacher, **config)


def test_preprocessors_are_saved():
    for given in (
        (None, None),
        (registered, keras.layers.Rescaling(3.0)),
        ("teacher", Scaled(2.0)),
        (keras.layers.Identity(), None),
    ):
        views = Views(image(4), image(4), *given)
        loaded = again(views, image(4), image(4))
        assert loaded.is_one == views.is_one
        for ours, theirs in zip(views(A)[:2], loaded(A)[:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("function", [lambda x: x, np.abs])
def test_what_is_not_registered_is_told_when_saved(function):
    views = Views(image(4), image(4), function)
    with pytest.raises(
        ValueError, match="must be a Keras layer or a registered function"
    ):
        views.get_config()


def test_an_object_of_both_networks_is_saved_once():
    """Loaded as two, of which one would be empty, they were no longer one."""
    normal = keras.layers.Normalization(mean=1.0, variance=4.0)
    mine, its = Task(normal), Task(keras.layers.Rescaling(2.0))
    name = "student_preprocessor", "teacher_preprocessor"
    for given, expected in (
        ((None, normal), (None, "student")),
        ((its.preprocessor, None), ("teacher", None)),
        ((normal, None), (None, None)),
        ((registered, registered), (registered, "student")),
        (("teacher", registered), ("teacher", registered)),
        ((its.preprocessor, its.preprocessor), ("teacher", None)),
    ):
        views = Views(mine, its, *given)
        assert views.given == dict(zip(name, expected, strict=True))
        assert again(views, mine, its).is_one == views.is_one
    table = keras.layers.StringLookup(vocabulary=["a"], name="table")
    with pytest.raises(ValueError, match=r"not share .* Received: \['table'\]"):
        Views(Task(table), Task(table)).get_config()


def test_text_as_tensors():
    Pair = collections.namedtuple("Pair", "a")
    x = {
        "list": ["a", "bc"],
        "array": np.array(["a", "bc"]),
        "objects": np.array(["a", "bc"], object),
        "two": (np.array([b"a", b"bc"]), A),
        "numbers": A,
        "several": [A, B],
        "pair": Pair(1),
    }
    found = text_as_tensors(x)
    text = [*(found[name] for name in ("list", "array", "objects"))]
    for each in (*text, found["two"][0]):
        assert tf.is_tensor(each)
        assert each.numpy().tolist() == [b"a", b"bc"]
    assert found["two"][1] is found["numbers"] is A
    assert found["several"] is x["several"]
    assert found["pair"] is x["pair"]
