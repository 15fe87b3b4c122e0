import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.pieces.connector import Connector, connected, connectors


@pytest.mark.parametrize("shape", [(4, 3, 4, 5), (4, 3, 5), (4, 5)])
def test_is_a_matrix_with_batch_normalisation(shape):
    x = 3 + np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = Connector(7, epsilon=1e-3)
    layer.build((None, *shape[1:]))
    assert len(layer.weights) == len(layer.trainable_weights) == 3
    layer.gamma.assign(np.linspace(1, 2, 7))
    layer.beta.assign(np.linspace(-1, 1, 7))
    found = layer(x)
    assert found.shape == layer.compute_output_shape(shape) == (*shape[:-1], 7)
    rows = x.reshape(-1, 5) @ layer.kernel.numpy()
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3)
    expected = layer.gamma.numpy() * expected + layer.beta.numpy()
    np.testing.assert_allclose(
        found, expected.reshape(found.shape), rtol=1e-4, atol=1e-4
    )


def test_published_initial_deviation():
    layer = Connector(200)
    layer.build((None, 300))
    assert np.std(layer.kernel) == pytest.approx(0.1, rel=0.02)


def test_a_constant_batch_gives_the_offset():
    layer = Connector(3)
    x = tf.ones((1, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = layer(x)
    np.testing.assert_allclose(found, np.zeros((1, 3)), atol=1e-3)
    assert np.isfinite(tape.gradient(found, x)).all()


def test_config_round_trip():
    layer = Connector(3, epsilon=0.1, name="mine")
    config = keras.saving.serialize_keras_object(layer)
    found = keras.saving.deserialize_keras_object(config)
    assert (found.units, found.epsilon) == (3, 0.1)
    assert keras.saving.serialize_keras_object(found) == config


@pytest.mark.parametrize("keep_equal", [False, True])
def test_one_for_each_point(keep_equal):
    layers = connectors([(None, 2, 6), (None, 5)], [(None, 5), (None, 5)])
    assert [len(layer.weights) for layer in layers] == [3, 3]
    layers = connectors(
        [(None, 2, 6), (None, 5)], [(None, 5), (None, 5)], keep_equal
    )
    assert len(layers[1].weights) == (0 if keep_equal else 3)
    maps = tf.random.normal((2, 2, 6)), tf.random.normal((2, 5))
    found = connected(layers, maps)
    assert [each.shape for each in found] == [(2, 2, 5), (2, 5)]
    assert np.allclose(found[1], maps[1]) == keep_equal


def test_wrong_arguments():
    with pytest.raises(
        ValueError, match="`units` must be 1 or more.*units=0. Pass"
    ):
        Connector(0)
    with pytest.raises(ValueError, match="`inputs` must have a known number"):
        Connector(3).build((None, 4, None))
