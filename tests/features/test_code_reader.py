"""Networks without a graph of layers: read while their code runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import FeatureExtractor, pair, stage_ends


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Two stages and a head, called by code."""

    def __init__(self, activation=None, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = keras.layers.Conv2D(
            6, 3, padding="same", activation="relu", name="front"
        )
        self.conv2 = keras.layers.Conv2D(
            8, 3, 2, padding="same", use_bias=False, name="conv2"
        )
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.act = keras.layers.ReLU(name="back")
        self.pool = keras.layers.GlobalAveragePooling2D(name="pool")
        self.drop = keras.layers.Dropout(dropout, name="drop")
        self.dense = keras.layers.Dense(3, name="scores", activation=activation)

    def call(self, inputs, training=False):
        x = self.conv1(inputs)
        x = self.act(self.norm(self.conv2(x), training=training))
        return self.dense(self.drop(self.pool(x), training=training))


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")


@pytest.fixture
def network(x):
    def make(**kwargs):
        model = Subclassed(**kwargs)
        model(x)
        return model

    return make


def by_hand(model, x):
    front = model.conv1(x)
    before = model.norm(model.conv2(front))
    embedding = model.pool(model.act(before))
    return front, before, model.act(before), embedding


def run(extractor, x, compiled, training=False):
    if compiled:
        return tf.function(extractor)(x, training=training)
    return extractor(x, training=training)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_yields_all_features(network, x, activation, compiled):
    model = network(activation=activation)
    extractor = FeatureExtractor(
        model,
        ["front", "back"],
        ("logits", "embedding", "maps_before_activation"),
        ["conv2"],
    )
    assert extractor.shapes.outputs == (None, 3)
    assert extractor.shapes.maps == [(None, 8, 8, 6), (None, 4, 4, 8)]
    found = run(extractor, x, compiled)
    front, before, back, embedding = by_hand(model, x)
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.outputs, model(x), **close)
    np.testing.assert_allclose(found.maps[0], front, **close)
    np.testing.assert_allclose(found.maps[1], back, **close)
    np.testing.assert_allclose(found.embedding, embedding, **close)
    np.testing.assert_allclose(
        found.logits, embedding @ model.dense.kernel, **close
    )
    np.testing.assert_allclose(found.maps_before_activation[1], before, **close)
    raw = found.maps_before_activation[0]
    assert raw.numpy().min() < 0
    np.testing.assert_allclose(tf.nn.relu(raw), front, **close)
    np.testing.assert_allclose(
        found.layers["conv2"], model.conv2(front), **close
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_one_forward_pass_in_training_mode(network, x, compiled):
    """Batch statistics move once, and the model is left as it was."""
    model = network(dropout=0.5)
    attributes = {layer.name: set(vars(layer)) for layer in model.layers}
    moved = np.mean(model.conv2(model.conv1(x)), axis=(0, 1, 2)) * 0.01
    run(
        FeatureExtractor(model, ["front", "back"], ("logits", "embedding")),
        x,
        compiled,
        training=True,
    )
    np.testing.assert_allclose(model.norm.moving_mean, moved, rtol=1e-4)
    assert attributes == {
        layer.name: set(vars(layer)) for layer in model.layers
    }
    assert model.conv1.activation is keras.activations.relu


def test_fork(network, x):
    model = network()
    extractor = FeatureExtractor(
        model, ["front"], split=lambda each: (3 * each, 2 * each)
    )
    found = extractor(x)
    front = model.conv1(x)
    np.testing.assert_allclose(found.maps[0], 3 * front, rtol=1e-6)
    np.testing.assert_allclose(found.forks[0], 2 * front, rtol=1e-6)
    rest = model.act(model.norm(model.conv2(3 * front)))
    np.testing.assert_allclose(
        found.outputs, model.dense(model.pool(rest)), rtol=1e-5, atol=1e-6
    )


def test_gradients_flow_through_a_tap(network, x):
    model = network()
    extractor = FeatureExtractor(model, ["back"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(extractor(x).maps[0] ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert [each is not None for each in gradients] == [True] * 5 + [False] * 2


def test_a_subclassed_model_inside_of_a_graph(network, x):
    inner = network(name="inner")
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(3)(inner(inputs))
    model = keras.Model(inputs, outputs)
    found = FeatureExtractor(model, ["inner/front", "inner"])(x)
    np.testing.assert_allclose(found.maps[0], inner.conv1(x), atol=1e-6)
    np.testing.assert_allclose(found.maps[1], inner(x), atol=1e-6)


def test_pairs_stages_with_a_graph(network, small_net):
    assert stage_ends(network()) == {1: "front", 2: "back"}
    assert pair(network(), small_net("teacher")) == [
        ("front", "stage1"),
        ("back", "stage2"),
    ]


class Twice(Subclassed):
    def call(self, inputs, training=False):
        return super().call(inputs) + super().call(-inputs)


def test_refuses_what_a_tap_cannot_tell(x):
    model = Twice(name="twice")
    model(x)
    with pytest.raises(ValueError, match="'front', called more times. Choose"):
        FeatureExtractor(model, ["front"])
    with pytest.raises(ValueError, match="'front', called more times. Choose"):
        FeatureExtractor(model, [], others=["front"])
    with pytest.raises(ValueError, match=r"gets vectors .*'twice', which"):
        FeatureExtractor(model, [], ("embedding",))
    extractor = FeatureExtractor(model, [], ("logits",))
    assert extractor.ends == (None, False)
    np.testing.assert_array_equal(extractor(x).logits, model(x))
    with pytest.raises(
        ValueError, match="layer of 'twice'.*'fron'. Near names"
    ):
        FeatureExtractor(model, ["fron"])
    message = "before their activation.* 'pool' of type GlobalAveragePooling2D"
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(model, ["pool"], ("maps_before_activation",))
    with pytest.raises(TypeError, match="must be a built keras.Model"):
        FeatureExtractor(Subclassed(), ["front"])


@keras.saving.register_keras_serializable(package="tests")
class OfTwo(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(2, 3, name="conv")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(3, name="scores")

    def call(self, inputs):
        pooled = self.pool(self.conv(inputs["image"]))
        return self.dense(keras.ops.concatenate([pooled, inputs["x"]], -1))


def test_several_inputs(x):
    inputs = {"x": np.ones((4, 5), "float32"), "image": x}
    model = OfTwo()
    model(inputs)
    extractor = FeatureExtractor(model, ["conv"], ("embedding",))
    assert extractor.shapes.maps == [(None, 6, 6, 2)]
    assert extractor.shapes.embedding == (None, 7)
    found = extractor(inputs)
    np.testing.assert_allclose(found.maps[0], model.conv(x), atol=1e-6)
    np.testing.assert_array_equal(found.embedding[:, 2:], inputs["x"])


def test_refuses_inputs_of_unknown_shape():
    model = OfTwo(name="unknown")
    model.built = True
    with pytest.raises(ValueError, match="shapes are known. .*'unknown', wh"):
        FeatureExtractor(model, ["conv"])
