"""Pairs of KerasHub's networks: points found, and a step of training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness import pairs

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
    """Two inputs, as the network takes them; no position is padding."""
    numbers = np.random.default_rng(0)
    if not isinstance(network.input, dict):
        return numbers.normal(size=(2, *pairs.HUB_IMAGE))
    shape = 2, pairs.LENGTH
    values = {
        "token_ids": numbers.integers(1, pairs.WORDS, shape),
        "padding_mask": np.ones(shape, "int32"),
        "segment_ids": np.zeros(shape, "int32"),
    }
    return {name: values[name] for name in network.input}


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
