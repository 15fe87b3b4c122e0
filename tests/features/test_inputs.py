"""What one batch is to two networks."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Inputs, Views, text_as_tensors

rng = np.random.default_rng(0)
A, B, C = (rng.normal(size=(5, 4)).astype("float32") for _ in range(3))


def difference(*names, kind=dict, sizes=(4, 4), dtypes=("float32",) * 2):
    """A network that computes first - 2 second, in the order of the names."""
    first, second = (
        keras.Input((size,), name=name, dtype=dtype)
        for name, size, dtype in zip(names, sizes, dtypes, strict=True)
    )
    outputs = keras.layers.Subtract()([first, 2.0 * second])
    given = {first.name: first, second.name: second}
    return keras.Model(given if kind is dict else [first, second], outputs)


def image(*shape, dtype="float32", name=None):
    inputs = keras.Input(shape, dtype=dtype, name=name)
    return keras.Model(inputs, keras.layers.Identity()(inputs))


def reversed_order(model):
    """The same network, given the inputs of its list the other way round."""
    return keras.Model(list(reversed(model.input)), model.output)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs["a"] - 2 * inputs["b"]


def subclassed():
    network = Subclassed()
    network({"a": A, "b": B})
    return network


DICT, OTHER_ORDER = {"a": A, "b": B}, {"b": B, "a": A}


@pytest.mark.parametrize("x", [DICT, OTHER_ORDER, {"0": C, **DICT, "q": C}])
@pytest.mark.parametrize(
    ("teacher", "pairs"),
    [
        (difference("a", "b"), []),
        (difference("a", "b", kind=list), []),
        (reversed_order(difference("a", "b", kind=list)), []),
        # One name each is left.
        (difference("a", "c"), [("b", "c")]),
        (difference("z", "b"), [("a", "z")]),
        # Keras sorts the keys of dicts, here to "y", "z".
        (difference("z", "y"), [("a", "z"), ("b", "y")]),
        (
            difference(None, None, kind=list),
            [("a", "input[0]"), ("b", "input[1]")],
        ),
        (subclassed(), []),
    ],
)
def test_inputs_of_a_dict(x, teacher, pairs):
    student = difference("a", "b")
    inputs = Inputs(student, teacher)
    assert inputs.pairs == pairs
    expected = A - 2 * B
    np.testing.assert_array_equal(student(inputs.student(x)), expected)
    np.testing.assert_array_equal(teacher(inputs.teacher(x)), expected)


@pytest.mark.parametrize(
    "teacher",
    [
        difference("a", "b"),
        difference("a", "b", kind=list),
        reversed_order(difference("a", "b", kind=list)),
    ],
)
@pytest.mark.parametrize("x", [[A, B], (A, B), DICT, OTHER_ORDER])
def test_inputs_of_a_list(x, teacher):
    inputs = Inputs(difference("a", "b", kind=list), teacher)
    np.testing.assert_array_equal(teacher(inputs.teacher(x)), A - 2 * B)


def test_names_that_keras_made_are_none():
    """Of two networks with such, the numbers happen to overlap."""
    names = ["keras_tensor_1", "input_layer_2"], ["input_layer_2", "input_1"]
    student, teacher = (difference(*each, kind=list) for each in names)
    inputs = Inputs(student, teacher)
    assert inputs.pairs == []
    np.testing.assert_array_equal(teacher(inputs.teacher([A, B])), A - 2 * B)


def test_an_input_that_only_the_teacher_takes_is_a_key_of_the_batch():
    a = keras.Input((4,), name="a")
    student = keras.Model({"a": a}, keras.layers.Identity()(a))
    inputs = Inputs(student, difference("a", "b"))
    assert inputs.pairs == []
    assert list(inputs.student(DICT)) == ["a"]
    assert inputs.teacher(DICT)["b"] is B
    with pytest.raises(
        ValueError,
        match=r"must have all inputs of .* \['a', 'b'\]. Received: \['a'\], "
        r"without \['b'\]. Add them, or pass",
    ):
        inputs.teacher({"a": A})


def test_a_key_of_the_batch_goes_before_a_pair():
    inputs = Inputs(difference("a", "b"), difference("a", "c"))
    assert inputs.teacher({**DICT, "c": C})["c"] is C


def test_single_inputs_are_passed_as_they_are():
    inputs = Inputs(image(4, name="a"), image(4, name="b"))
    assert inputs.student(A) is A
    assert inputs.teacher(A) is A
    assert inputs.pairs == []


def test_a_nested_structure_is_passed_as_it_is():
    def nested():
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        return keras.Model({"x": [a, b]}, a - 2.0 * b)

    teacher = nested()
    x = Inputs(nested(), teacher).teacher({"x": [A, B]})
    np.testing.assert_array_equal(teacher(x), A - 2 * B)


def test_a_subclassed_network_of_unknown_inputs_takes_the_batch():
    unknown = Subclassed()
    unknown.built = True
    inputs = Inputs(difference("a", "b"), unknown)
    assert inputs.teacher(DICT) is DICT
    assert inputs.teacher_shapes == []
    assert Inputs(unknown, difference("a", "b")).student(DICT) is DICT


def test_another_number_of_inputs_is_refused():
    with pytest.raises(
        ValueError,
        match=r"Received: \['a', 'b'\] of '.*', \['c'\] of '.*'. Rename .* "
        "`teacher_preprocessor=`",
    ):
        a = keras.Input((4,), name="c")
        teacher = keras.Model({"c": a}, keras.layers.Identity()(a))
        Inputs(difference("a", "b"), teacher)


@pytest.mark.parametrize(
    ("mine", "its", "merged"),
    [
        ((8, 8, 3), (8, 8, 3), (None, 8, 8, 3)),
        ((None, None, 3), (8, 8, 3), (None, 8, 8, 3)),
        ((8, None, 3), (None, 6, 3), (None, 8, 6, 3)),
        ((None, 4), (None, 4), (None, None, 4)),
    ],
)
def test_sizes_that_one_network_knows(mine, its, merged):
    inputs = Inputs(image(*mine), image(*its))
    assert inputs.student_shapes == inputs.teacher_shapes == [merged]


def test_shapes_are_in_the_order_of_each_network():
    student = difference("a", "b", sizes=(1, 4))
    teacher = reversed_order(difference("a", "b", kind=list, sizes=(1, 4)))
    inputs = Inputs(student, teacher)
    assert inputs.student_shapes == [(None, 1), (None, 4)]
    assert inputs.teacher_shapes == [(None, 4), (None, 1)]


@pytest.mark.parametrize(
    ("mine", "its", "mend"),
    [
        ((8, 8, 3), (16, 12, 3), r"keras.layers.Resizing\(16, 12\)"),
        ((8, 8, 3), (8,), "lambda x: ..."),
        ((8,), (6,), "lambda x: ..."),
    ],
)
def test_other_sizes_are_refused(mine, its, mend):
    with pytest.raises(
        ValueError,
        match="must have the same input shape, .* Received: "
        rf".*teacher_preprocessor={mend}",
    ):
        Inputs(image(*mine), image(*its))


def test_other_numbers_are_cast_and_text_is_refused():
    pixels = np.arange(8, dtype="uint8").reshape(2, 4)
    teacher = image(4)
    inputs = Inputs(image(4, dtype="uint8"), teacher)
    found = teacher(inputs.teacher(pixels))
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, pixels)
    with pytest.raises(ValueError, match="must get numbers. Received: text"):
        inputs.teacher(tf.constant(["a", "b"]))
    with pytest.raises(ValueError, match=r"Received: \(4,\) string for"):
        Inputs(image(4, dtype="string"), teacher)


def labels_of(x, y=None, sample_weight=None):
    """Makes labels and weights from a batch, as language models need it."""
    return x[:, :-1], x[:, 1:], tf.ones_like(x[:, 1:])


def test_no_preprocessor_is_one_view():
    view = Views(difference("a", "b"), difference("a", "c"))(DICT, 1, 2)
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
