import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.linalg.directions import (
    cosines,
    direction_and_length,
    unit,
)


@pytest.mark.parametrize("scale", [1e-29, 1e-20, 1.0, 1e30])
def test_hand_value_at_every_scale(scale):
    """(3, 4): direction (3/5, 4/5), length 5."""
    direction, length = direction_and_length(tf.constant([[3.0, 4.0]]) * scale)
    np.testing.assert_allclose(direction, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(length, [5 * scale], rtol=1e-6)


def test_gradient_is_exact():
    """Of a . x / |x| + |x| at (3, 4), a = (1, 0).

    (a - u (a . u)) / 5 + u with u = (3/5, 4/5): first entry
    (1 - 9/25) / 5 + 3/5, second -12/125 + 4/5.
    """
    x = tf.constant([[3.0, 4.0]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        direction, length = direction_and_length(x)
        value = direction[0, 0] + length[0]
    expected = [[16 / 125 + 3 / 5, 4 / 5 - 12 / 125]]
    np.testing.assert_allclose(tape.gradient(value, x), expected, rtol=1e-12)


def test_zero_vectors_have_no_direction():
    x = tf.constant([[0.0, 0.0], [1.0, 1.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        direction, length = direction_and_length(x)
        near = cosines(x)
    np.testing.assert_array_equal(direction[0], 0)
    assert float(length[0]) == 0
    np.testing.assert_allclose(near, [[0, 0], [0, 1]], atol=1e-6)
    for value in (direction, length, near):
        found = tape.gradient(value, x)
        np.testing.assert_array_equal(found[0], 0)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-25, 1e-12, 1.0, 1e25])
@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_unit(scale, axis):
    weights, values = np.random.default_rng(0).normal(size=(2, 3, 4))
    x = tf.constant(scale * values, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = unit(x, axis)
        loss = tf.reduce_sum(found * weights.astype("float32"))
    zero = scale < 1e-30
    np.testing.assert_allclose(
        tf.norm(found, axis=axis), 0.0 if zero else 1.0, rtol=1e-6
    )
    gradient = tape.gradient(loss, x)
    assert np.isfinite(gradient).all()
    assert zero != bool(tf.reduce_any(gradient != 0))
    # Growing leaves a unit vector as it is.
    along = tf.reduce_sum(gradient * x, axis)
    np.testing.assert_allclose(along, 0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_half_precision_becomes_float32(dtype):
    found = unit(tf.constant([[3.0, 4.0], [0.0, 0.0]], dtype))
    assert found.dtype == (tf.float64 if dtype == "float64" else tf.float32)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_spoils_its_own_vector_only(jit_compile):
    x = tf.constant([[np.nan, 1.0], [1.0, np.nan], [np.nan] * 2, [3.0, 4.0]])
    found = tf.function(unit, jit_compile=jit_compile)(x).numpy()
    assert np.isnan(found[:3]).any(axis=1).all()
    np.testing.assert_allclose(found[3], [0.6, 0.8], rtol=1e-6)
