import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.pieces.divergence import (
    softened_divergence,
    standardized,
)


def test_standardized_hand_value():
    """(1, 2, 3, 6): mean 3, variance (4 + 1 + 0 + 9) / 4 = 7/2."""
    found = standardized(tf.constant([[1.0, 2.0, 3.0, 6.0]], tf.float64))
    expected = np.array([[-2, -1, 0, 3]]) / np.sqrt(3.5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_standardized_has_no_scale_and_no_shift(axis, scale):
    x = np.random.default_rng(0).normal(size=(4, 5))
    found = standardized(tf.constant(scale * (x + 2), tf.float32), axis).numpy()
    np.testing.assert_allclose(found.mean(axis), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis), 1, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-40])
def test_standardized_is_zero_where_values_are_equal(value):
    x = tf.fill((2, 7), tf.constant(value))
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = standardized(x)
        loss = tf.reduce_sum(found * tf.range(7.0))
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(tape.gradient(loss, x), 0)


def test_divergence_has_the_teachers_classes_first():
    """Teacher (1/2, 1/2), student (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3."""
    student = tf.math.log([[1.0, 3.0]])
    found = softened_divergence(student, tf.zeros((1, 2)))
    assert float(found) == pytest.approx(0.5 * np.log(4 / 3), rel=1e-5)
    # Logits and temperature scale together.
    found = softened_divergence(3 * student, tf.zeros((1, 2)), temperature=3.0)
    assert float(found) == pytest.approx(0.5 * np.log(4 / 3), rel=1e-5)
