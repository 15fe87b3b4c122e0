import math

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.pieces import maps

POOLINGS = {"average": np.mean, "max": np.max}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def adaptive(x, axis, size, reduce):
    """Pools one axis cell by cell, as the definition has it."""
    length, x = x.shape[axis], np.moveaxis(x, axis, 0)
    cells = [
        reduce(
            x[
                math.floor(i * length / size) : math.ceil(
                    (i + 1) * length / size
                )
            ],
            axis=0,
        )
        for i in range(size)
    ]
    return np.moveaxis(np.stack(cells), 0, axis)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("a", "b", "size"),
    [
        ((7, 4), (3, 4), (3, 4)),
        ((7, 2), (3, 5), (3, 2)),  # each axis for itself
        ((8, 8), (2, 2), (2, 2)),
        ((5,), (3,), (3,)),
        ((4, 3), (), (1, 1)),  # a vector is a map of one position
        ((), (6,), (1,)),
        ((), (), ()),
    ],
)
def test_to_one_size(a, b, size, pooling, close):
    arrays = random(2, *a, 3), random(2, *b, 5, seed=1)
    found = maps.to_one_size(*arrays, pooling)
    assert maps.common_size(arrays[0].shape, arrays[1].shape) == size
    for array, each in zip(arrays, found, strict=True):
        expected = array
        if array.ndim == 2:
            expected = array.reshape(2, *[1] * len(size), -1)
        for axis, length in enumerate(size, start=1):
            expected = adaptive(expected, axis, length, POOLINGS[pooling])
        assert each.dtype == tf.float64
        close(each, expected, 1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_of_windows_that_overlap_has_the_right_gradient(pooling, close):
    x, other = random(2, 7, 5, 2), tf.zeros((2, 3, 2, 1), tf.float64)
    weights = random(2, 3, 2, 2, seed=1)

    def value(x):
        pooled, _ = maps.to_one_size(x, other, pooling)
        return tf.reduce_sum(weights * pooled)

    variable = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = value(variable)
    gradient, step = tape.gradient(loss, variable).numpy(), 1e-6
    for seed in range(3):
        direction = random(*x.shape, seed=seed + 2)
        numeric = value(x + step * direction) - value(x - step * direction)
        close(np.sum(gradient * direction), numeric / (2 * step), 1e-6)


def test_first_of_equal_maxima_has_the_gradient():
    x = tf.constant([[0.0, 1.0], [1.0, 1.0]])[tf.newaxis, :, :, tf.newaxis]
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled, _ = maps.to_one_size(x, tf.zeros((1, 1, 1, 1)), "max")
    gradient = tape.gradient(pooled, x)[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[0.0, 1.0], [0.0, 0.0]])


def test_both_have_the_wider_dtype():
    a, b = tf.zeros((1, 2, 2, 1)), tf.zeros((1, 4, 4, 1), tf.float64)
    for pair in ((a, b), (b, a)):
        for found in maps.to_one_size(*pair):
            assert found.dtype == tf.float64


def test_a_maximum_does_not_hide_nan():
    for place in np.ndindex(2, 2):
        x = np.zeros((1, 2, 2, 1))
        x[0, *place] = np.nan
        pooled, _ = maps.to_one_size(x, np.zeros((1, 1, 1, 1)), "max")
        assert np.isnan(pooled)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sizes_that_are_not_known(pooling):
    spec = tf.TensorSpec((None, None, None, 3))

    @tf.function(input_signature=[spec, spec])
    def same(a, b):
        a, b = maps.to_one_size(a, b, pooling)
        return maps.flatten_positions(a), maps.flatten_positions(b)

    x = random(2, 3, 5, 3).astype("float32")
    for found in same(x, x):
        np.testing.assert_array_equal(found, x.reshape(2, 15, 3))

    @tf.function(input_signature=[spec, tf.TensorSpec((None, 3))])
    def with_vector(a, b):
        return maps.to_one_size(a, b, pooling)

    found, _ = with_vector(x, x[:, 0, 0])
    expected = POOLINGS[pooling](x, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_batch_that_is_not_known():
    @tf.function(input_signature=[tf.TensorSpec((None, 7, 5, 3))] * 1)
    def pool(x):
        small = tf.zeros((2, 3, 2, 1))
        return [
            maps.to_one_size(x, small, pooling)[0] for pooling in POOLINGS
        ] + [maps.flatten_positions(x)]

    x = random(2, 7, 5, 3).astype("float32")
    for (name, reduce), found in zip(POOLINGS.items(), pool(x), strict=False):
        expected = adaptive(adaptive(x, 1, 3, reduce), 2, 2, reduce)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((2, 4, 4, 3), (2, 4, 3), "must both be `maps .*`sequences.*(4, 4, 3)"),
        ((2, None, 4, 3), (2, 2, 4, 3), "`heights and widths` .*Received"),
    ],
)
def test_sizes_that_do_not_go_together(a, b, message):
    for pair in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=message):
            maps.common_size(*pair)


def test_requirements():
    same = [(None, 4, 4, 3)]
    maps.require_positions(same, [(None, 1, 2, 5)], "X")
    maps.require_positions(
        [(None, None, None, 3)], [(None, None, None, 3)], "X"
    )
    for one in ((None, 5), (None, 1, 1, 5)):
        with pytest.raises(ValueError, match="`more than one position` .*nt 0"):
            maps.require_positions(same, [one], "X")
