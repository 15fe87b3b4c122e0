"""What one batch is to two networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Inputs

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
