"""Pairs of KerasHub's networks: points found, and a step of training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks import pairs

pytest.importorskip("keras_hub")

# Data stays in graphs, which is all right.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Even though the `tf.config.experimental_run_functions_eagerly"
)


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def batch(network):
    """Two inputs, as the network takes them."""
    numbers = np.random.default_rng(0)
    return keras.tree.map_structure(
        lambda spec: (
            (
                numbers.normal(size=(2, *spec.shape[1:]))
                if spec.dtype.is_floating
                else numbers.integers(1, pairs.WORDS, (2, pairs.LENGTH))
            )
            if "mask" not in spec.name and "segment" not in spec.name
            else np.ones((2, pairs.LENGTH), "int32")
        ),
        keras.tree.map_structure(
            lambda each: tf.TensorSpec(each.shape, each.dtype, each.name),
            network.input,
        ),
    )


@pytest.mark.parametrize("names", pairs.HUB_PAIRS, ids=" of ".join)
def test_pairs_of_the_page_train(names, eagerly):
    student, teacher = map(pairs.build, names)
    distiller = keras_mhgd.Distiller(
        student, teacher, ["similarity_preserving", "soft_logits"]
    )
    line = pairs.row(names, distiller.sensing_points)
    assert line in pairs.PAGE.read_text()
    distiller.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    before = [each.numpy() for each in student.trainable_variables]
    history = distiller.fit(batch(student), np.arange(2), verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert any(
        not np.array_equal(*each)
        for each in zip(before, student.trainable_variables, strict=True)
    )
