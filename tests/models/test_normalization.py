"""Batch normalisation as one operation gives Keras's numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd.models import fuse_batch_normalization

LAYER = keras.layers.BatchNormalization


def pair_of(shape, **arguments):
    """A plain and a fused layer of the same random weights."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(2):
        inputs = keras.Input(shape)
        layer = LAYER(momentum=0.9, **arguments)
        layers.append(keras.Model(inputs, layer(inputs)))
    weights = [rng.uniform(0.5, 2, each.shape) for each in layers[0].weights]
    for each in layers:
        each.set_weights(weights)
    assert fuse_batch_normalization(layers[1]) == 1
    return layers


def run(model, x, training):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x, training=training)
        loss = tf.reduce_sum(tf.cast(tf.sin(y), tf.float32))
    return y, tape.gradient(loss, [x, *model.trainable_variables])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((5, 4, 3), {}),
        ((5, 4, 3), {"scale": False, "epsilon": 0.1}),
        ((5, 4, 3), {"center": False}),
        ((5, 4, 3), {"trainable": False}),
        ((5, 4, 3), {"axis": 1}),  # these two run as Keras has them
        ((7,), {}),
    ],
    ids=str,
)
def test_the_same_numbers(shape, arguments, training):
    plain, fused = pair_of(shape, **arguments)
    x = tf.random.normal((6, *shape), 1.0, 2.0)
    expected, found = run(plain, x, training), run(fused, x, training)
    for a, b in zip(
        [*keras.tree.flatten(expected), *plain.weights],
        [*keras.tree.flatten(found), *fused.weights],
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    plain, fused = pair_of((5, 4, 3))
    x = 300 * tf.random.normal((6, 5, 4, 3))  # squares overflow float16
    a, b = plain(x, training=True), fused(x, training=True)
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
        tf.cast(a, tf.float32), tf.cast(b, tf.float32), atol=0.02
    )
    np.testing.assert_allclose(
        plain.layers[1].moving_variance,
        fused.layers[1].moving_variance,
        rtol=1e-2,
    )


@pytest.mark.slow
def test_trains_as_before_and_leaves_no_trace(
    task, small_net, images, tmp_path
):
    plain, fused = small_net(), small_net()
    fused.set_weights(plain.get_weights())
    assert fuse_batch_normalization(fused) == 2
    assert fuse_batch_normalization(fused) == 2  # not twice around
    for network in (plain, fused):
        network.compile(**task())
        network.fit(*images, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    np.testing.assert_allclose(
        loaded.predict(images[0], verbose=0),
        fused.predict(images[0], verbose=0),
        atol=1e-5,
    )
    copy = keras.models.clone_model(fused)
    for network in (loaded, copy):
        assert type(network.layers[2]) is LAYER
        assert "call" not in vars(network.layers[2])
    assert fused.layers[2].get_config().keys() == (
        plain.layers[2].get_config().keys()
    )


def test_one_operation(small_net):
    network = small_net()
    fuse_batch_normalization(network)
    run = tf.function(lambda x: network(x, training=True))
    graph = run.get_concrete_function(tf.TensorSpec((4, 8, 8, 1))).graph
    kinds = [each.type for each in graph.get_operations()]
    assert kinds.count("FusedBatchNormV3") == 2
    assert "SquaredDifference" not in kinds


def test_synchronised_layers_stay():
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, LAYER(synchronized=True)(inputs))
    assert fuse_batch_normalization(model) == 0
    assert keras_mhgd.models.fuse_batch_normalization(model) == 0
