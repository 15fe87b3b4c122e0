"""Networks of two precisions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.features import Features
from tests.methods.calls import shares

PAIRS = (
    ("float64", "float64"),
    ("float32", "float64"),
    ("float64", "float32"),
    ("float16", "float32"),
    ("float32", "bfloat16"),
)
SHAPES = ((4, 4, 5), (3, 3, 6), (2, 2, 7))
CLASSES = 3


def shapes():
    maps = [(None, *shape) for shape in SHAPES]
    return Features(
        (None, CLASSES),
        maps,
        (None, CLASSES),
        (None, 8),
        maps_before_activation=maps,
        logit_map=(None, 4, 4, CLASSES),
    )


def drawn(seed, dtype, batch=4):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return tf.cast(rng.normal(size=(batch, *shape)), dtype)

    logits = draw(CLASSES)
    return Features(
        logits,
        [draw(*shape) for shape in SHAPES],
        logits,
        draw(8),
        maps_before_activation=[draw(*shape) for shape in SHAPES],
        logit_map=draw(4, 4, CLASSES),
    )


def trained(method, dtypes):
    """Terms and gradients to what a method reads of the student."""
    student, teacher = map(drawn, (0, 1), dtypes)
    read = tf.nest.flatten(
        [getattr(student, need) for need in method.needs.fields]
    )
    with tf.GradientTape() as tape:
        tape.watch(read)
        terms = shares(method, student, teacher, tf.constant([0, 1, 2, 0]))
        loss = tf.add_n(list(terms.values()))
    return terms, tape.gradient(loss, read)


@pytest.mark.parametrize("name", methods.names())
def test_any_pair(name):
    method = methods.get(name)
    method.build(shapes(), shapes())
    expected, _ = trained(method, ("float32", "float32"))
    for dtypes in PAIRS:
        terms, gradients = trained(method, dtypes)
        for term, value in terms.items():
            assert value.dtype == tf.float32
            np.testing.assert_allclose(
                value, expected[term], rtol=5e-2, atol=1e-2
            )
        gradients = [each for each in gradients if each is not None]
        assert gradients
        for gradient in gradients:
            assert gradient.dtype == dtypes[0]
            assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def network(name, dtype):
    x = inputs = keras.Input((4, 4, 1), dtype=dtype)
    for stage in (1, 2):
        x = keras.layers.Conv2D(
            3, 3, stage, padding="same", dtype=dtype, name=f"stage{stage}"
        )(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    x = keras.layers.Dense(3, kernel_regularizer="l2", dtype=dtype)(x)
    return keras.Model(inputs, x, name=name)


@pytest.fixture
def restored_floatx():
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtypes", "floatx", "method"),
    [
        (("float64", "float64"), "float32", "per_variable"),
        (("float64", "float64"), "float64", "per_feature"),
        (("float32", "float64"), "float32", "initializes"),
    ],
    ids=str,
)
def test_trains(dtypes, floatx, method, restored_floatx):
    keras.config.set_floatx(floatx)
    if method == "initializes":
        method = methods.FitNet(preparation_epochs=1)
    else:
        method = methods.MHGD(2, 1, clipping=method)
    distiller = keras_mhgd.Distiller(
        *map(network, ("student", "teacher"), dtypes),
        [method, "fsp"],
        sensing_points=["stage1", "stage2"],
    )
    distiller.compile(
        keras.optimizers.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4, 4, 1)), np.arange(8) % 3
    before = distiller.student.get_weights()
    history = distiller.fit(x, y, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    for a, b in zip(before, distiller.student.get_weights(), strict=True):
        assert a.dtype == b.dtype == dtypes[0]
        assert np.any(a != b)
