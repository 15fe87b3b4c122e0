import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd.features import Features
from keras_mhgd.methods.pieces.maps import to_grid
from keras_mhgd.methods.simkd import (
    SimKD,
    last_map_loss,
    with_teacher_classifier,
)

layers = keras.layers


def network(name, width, size=8, head="pool", strides=2, seed=0):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(width, 3, strides, padding="same", name="stage1")(x)
    x = layers.ReLU(name="last")(x)
    if head == "flatten":
        x = layers.Flatten(name="flatten")(x)
    else:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    if head == "dropout":
        x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.Dense(3, bias_initializer="normal", name="logits")(x)
    if head == "softmax":
        x = layers.Softmax(name="softmax")(x)
    return keras.Model(inputs, x, name=name)


def compiled(student, teacher, **options):
    distiller = keras_mhgd.Distiller(student, teacher, SimKD())
    distiller.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return distiller


def test_the_formula():
    rng = np.random.default_rng(0)
    student = rng.normal(size=(3, 2, 2, 5))
    teacher = rng.normal(size=(3, 4, 4, 5))
    pooled = teacher.reshape(3, 2, 2, 2, 2, 5).mean((2, 4))
    found = last_map_loss(tf.constant(student), tf.constant(teacher))
    expected = ((student - pooled) ** 2).mean()
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_gradient_by_hand():
    """2 (s - t) / number of entries."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 2, 2, 4))
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = last_map_loss(student, tf.constant(teacher))
    expected = 2 * (student - teacher) / tf.size(student, tf.int64).numpy()
    np.testing.assert_allclose(tape.gradient(loss, student), expected)


@pytest.mark.parametrize("head", ["pool", "flatten", "dropout", "softmax"])
def test_the_student_classifies_as_the_teacher(head, images):
    """A projector that gave the teacher's map would give its predictions."""
    teacher = network("teacher", 6, head=head)
    made = with_teacher_classifier(network("student", 4), teacher)
    assert made.name == "student"
    inputs = keras.Input((4, 4, 6))
    x = inputs
    for layer in made.layers[made.layers.index(_end(made)) + 1 :]:
        x = layer(x)
    tail = keras.Model(inputs, x)
    last = keras.Model(teacher.input, teacher.get_layer("last").output)
    np.testing.assert_allclose(
        tail(last(images[0])), teacher(images[0]), atol=1e-5
    )


def _end(made):
    return made.get_layer("projector_relu3")


def test_the_layers_of_the_student():
    student, teacher = network("student", 4), network("teacher", 12)
    made = with_teacher_classifier(student, teacher, factor=4)
    shapes = [
        made.get_layer(f"projector_conv{number}").kernel.shape
        for number in (1, 2, 3)
    ]
    assert shapes == [(1, 1, 4, 3), (3, 3, 3, 3), (1, 1, 3, 12)]
    assert made.get_layer("stage1") is student.get_layer("stage1")
    assert "logits" not in [each.name for each in made.layers]
    copied = made.get_layer("teacher_logits")
    for a, b in zip(
        copied.get_weights(),
        teacher.get_layer("logits").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert not copied.trainable_variables
    assert teacher.get_layer("logits").trainable


@pytest.mark.parametrize("size", [4, 7, 8])
def test_a_larger_map_is_pooled_to_the_teachers_size(size, images):
    student = network("student", 4, size, strides=1)
    teacher = network("teacher", 6, 6, head="flatten")
    made = with_teacher_classifier(student, teacher)
    pool = made.get_layer("projector_pool")
    x = np.random.default_rng(0).normal(size=(2, size, size, 4))
    np.testing.assert_allclose(pool(x), to_grid(x, 3), atol=1e-6)


@pytest.mark.parametrize("head", ["pool", "flatten"])
def test_trains_by_the_map_alone(head, images, tmp_path):
    x, y = images
    teacher = network("teacher", 6, head=head, seed=1)
    student = with_teacher_classifier(network("student", 4), teacher)
    distiller = compiled(student, teacher, loss_weights=0.0)
    frozen = student.get_layer("teacher_logits").get_weights()
    history = distiller.fit(x, y, epochs=5, verbose=0).history
    assert history["simkd"][-1] < history["simkd"][0]
    np.testing.assert_allclose(history["loss"], history["simkd"], rtol=1e-5)
    for a, b in zip(
        frozen, student.get_layer("teacher_logits").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(loaded(x), student(x), atol=1e-6)
    assert not loaded.get_layer("teacher_logits").trainable


def test_the_loss_of_a_training_step(images):
    x, y = images
    teacher = network("teacher", 6, seed=1)
    student = with_teacher_classifier(network("student", 4), teacher)

    def last(made, name, training):
        read = keras.Model(made.input, made.get_layer(name).output)
        return np.float64(read(x, training=training))

    distiller = compiled(student, teacher)
    # Reading in training mode moves statistics, which training doesn't read.
    ours = last(student, "projector_relu3", True)
    expected = ((ours - last(teacher, "last", False)) ** 2).mean()
    found = distiller.train_step((tf.constant(x), tf.constant(y)))
    assert float(found["simkd"]) == pytest.approx(expected, rel=1e-4)


def test_configuration():
    method = SimKD(weight=0.5)
    found = keras_mhgd.methods.get(keras.saving.serialize_keras_object(method))
    assert isinstance(found, SimKD) and found.get_config()["weight"] == 0.5


def test_refuses_a_student_with_its_own_classifier():
    message = (
        "SimKD must get a student with the teacher's classifier.*Received: "
        r"maps \(None, 4, 4, 4\) and \(None, 4, 4, 6\).*with_teacher_class"
    )
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(
            network("student", 4), network("teacher", 6), SimKD()
        )
    shapes = [
        Features(None, [], last_map=(None, size, size, 4)) for size in (4, 2)
    ]
    with pytest.raises(ValueError, match="is not larger. Received"):
        SimKD().build(*shapes)


def nested(name):
    inner = network("inner", 4)
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, inner(inputs), name=name)


@pytest.mark.parametrize(
    ("student", "arguments", "message"),
    [
        (lambda: network("s", 4), {"factor": 0}, "`factor` must be 1 or more"),
        (lambda: nested("s"), {}, "`student` must be a functional.*'s'"),
        (
            lambda: network("s", 4, None),
            {},
            "`student` must have a last map of a known size.*'s'",
        ),
        (
            lambda: network("s", 4, strides=4),
            {},
            r"`student` must have a last map at least.*\(2, 2\) and \(4, 4\)",
        ),
    ],
    ids=["factor", "nested", "size", "too small"],
)
def test_refuses_other_networks(student, arguments, message):
    teacher = network("teacher", 6, head="flatten")
    with pytest.raises(ValueError, match=message):
        with_teacher_classifier(student(), teacher, **arguments)


def test_takes_a_nested_teacher(images):
    teacher = nested("teacher")
    made = with_teacher_classifier(network("student", 3), teacher)
    assert made(images[0]).shape == (32, 3)
    assert compiled(made, teacher).built


def test_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="`weight` must be 0 or more.*-1"):
        SimKD(weight=-1)
