import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import FeatureExtractor

layers = keras.layers
CLASSES = 3


def body(x, width=5):
    return layers.Conv2D(width, 3, activation="relu", name="last")(x)


def pooled(x):
    x = layers.GlobalAveragePooling2D()(body(x))
    return layers.Dense(CLASSES, bias_initializer="normal", name="head")(x)


def with_softmax(x):
    x = layers.GlobalAveragePooling2D()(body(x))
    return layers.Dense(CLASSES, "softmax", name="head")(x)


def softmax_apart(x):
    return layers.Softmax()(pooled(x))


def dropout(x):
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(body(x)))
    return layers.Dense(CLASSES, use_bias=False, name="head")(x)


def convolution(x):
    """The head of Keras's MobileNet."""
    x = layers.GlobalAveragePooling2D(keepdims=True)(body(x))
    x = layers.Conv2D(CLASSES, 1, bias_initializer="normal", name="head")(x)
    return layers.Softmax()(layers.Reshape((CLASSES,))(x))


def reshaped(x):
    x = layers.GlobalAveragePooling2D()(body(x))
    x = layers.Reshape((1, 1, 5))(x)
    return layers.Dense(CLASSES, name="head")(layers.Flatten()(x))


def flattened(x):
    x = layers.Flatten()(body(x))
    return layers.Dense(CLASSES, bias_initializer="normal", name="head")(x)


def nested_pooling(x):
    inputs = keras.Input(x.shape[1:])
    inner = layers.GlobalAveragePooling2D()(body(inputs))
    x = keras.Model(inputs, inner, name="inner")(x)
    return layers.Dense(CLASSES, name="head")(x)


def nested_map(x):
    inputs = keras.Input(x.shape[1:])
    x = keras.Model(inputs, body(inputs), name="inner")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(CLASSES, name="head")(x)


def nested_head(x):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, pooled(inputs), name="inner")(x)


HEADS = [
    *(pooled, with_softmax, softmax_apart, dropout, convolution, reshaped),
    *(flattened, nested_pooling, nested_map, nested_head),
]


def network(head):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, head(inputs), name="net")


class Subclassed(keras.Model):
    """A network that only its code knows."""

    def __init__(self):
        super().__init__(name="net")
        self.convolution = layers.Conv2D(5, 3, name="last")
        self.pool = layers.GlobalAveragePooling2D()
        self.dropout = layers.Dropout(0.5)
        self.head = layers.Dense(CLASSES, name="head")

    def call(self, x, training=False):
        x = self.pool(self.convolution(x))
        return self.head(self.dropout(x, training=training))


def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 6, 6, 2)).astype("float32")


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("compiled", [False, True])
def test_its_mean_is_the_logits(head, compiled):
    extractor = FeatureExtractor(network(head), [], ["logits", "logit_map"])
    run = tf.function(extractor) if compiled else extractor
    found = run(images())
    assert found.logit_map.shape == (3, 4, 4, CLASSES)
    assert extractor.shapes.logit_map == (None, 4, 4, CLASSES)
    means = tf.reduce_mean(found.logit_map, axis=(1, 2))
    logits = tf.reshape(found.logits, (3, CLASSES))
    # The convolutional head gives a softmax behind `Reshape`.
    np.testing.assert_allclose(
        tf.nn.log_softmax(means), tf.nn.log_softmax(logits), atol=1e-5
    )
    if head is not convolution:
        np.testing.assert_allclose(means, logits, atol=1e-5)


def test_subclassed_network():
    made = Subclassed()
    made(images())
    extractor = FeatureExtractor(made, [], ["logits", "logit_map"])
    found = extractor(images())
    np.testing.assert_allclose(
        tf.reduce_mean(found.logit_map, axis=(1, 2)), found.logits, atol=1e-5
    )
    assert extractor(images(), training=True).logit_map.shape == (3, 4, 4, 3)


def test_each_position_by_numpy():
    made = network(pooled)
    kernel, bias = made.get_layer("head").get_weights()
    maps = keras.Model(made.input, made.get_layer("last").output)(images())
    found = FeatureExtractor(made, [], ["logit_map"])(images()).logit_map
    np.testing.assert_allclose(found, maps @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize("head", [pooled, flattened, nested_map, nested_head])
def test_the_last_map_itself(head):
    made = network(head)
    inner = made.layers[1] if isinstance(made.layers[1], keras.Model) else made
    last = keras.Model(inner.inputs[0], inner.get_layer("last").output)
    extractor = FeatureExtractor(made, [], ["last_map"])
    found = extractor(images())
    np.testing.assert_array_equal(found.last_map, last(images()))
    assert extractor.shapes.last_map == (None, 4, 4, 5)
    assert found.logit_map is None


def test_each_position_of_a_flattened_map_by_numpy():
    made = network(flattened)
    kernel, bias = made.get_layer("head").get_weights()
    maps = keras.Model(made.input, made.get_layer("last").output)(images())
    found = FeatureExtractor(made, [], ["logit_map"])(images()).logit_map
    of_position = kernel.reshape(4, 4, 5, CLASSES)
    for row, column in np.ndindex(4, 4):
        expected = 16 * maps[:, row, column] @ of_position[row, column] + bias
        np.testing.assert_allclose(found[:, row, column], expected, atol=1e-4)


@pytest.mark.parametrize("head", [pooled, nested_pooling, flattened])
def test_trains_the_classifier_and_the_maps(head):
    made = network(head)
    extractor = FeatureExtractor(made, [], ["logit_map"])
    with tf.GradientTape() as tape:
        found = extractor(images(), training=True).logit_map
        loss = tf.reduce_sum(found**2)
    for gradient in tape.gradient(loss, made.trainable_variables):
        assert np.abs(gradient).max() > 0


def test_follows_the_weights_and_leaves_the_network_as_it_is():
    made = network(pooled)
    extractor = FeatureExtractor(made, [], ["logit_map"])
    head = made.get_layer("head")
    calls, weights = len(head._inbound_nodes), len(made.weights)
    before = extractor(images()).logit_map
    head.kernel.assign(2 * head.kernel)
    head.bias.assign(2 * head.bias)
    found = extractor(images()).logit_map
    np.testing.assert_allclose(found, 2 * before, atol=1e-5)
    assert (len(head._inbound_nodes), len(made.weights)) == (calls, weights)


def test_has_the_precision_of_the_classifier():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = network(pooled)
        inputs = keras.Input((6, 6, 2))
        x = layers.GlobalAveragePooling2D()(body(inputs))
        x = layers.Dense(CLASSES, dtype="float32")(x)
        single = keras.Model(inputs, x)
    finally:
        keras.config.set_dtype_policy("float32")
    for made, dtype in ((half, "bfloat16"), (single, "float32")):
        found = FeatureExtractor(made, [], ["logit_map"])(images())
        assert found.logit_map.dtype == dtype


def several_outputs(x):
    return [pooled(x), pooled_again(x)]


def pooled_again(x):
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(x))
    return layers.Dense(CLASSES, name="other")(x)


def hidden_layer(x):
    x = layers.GlobalAveragePooling2D()(body(x))
    return layers.Dense(CLASSES)(layers.Dense(4)(x))


def largest(x):
    return layers.Dense(CLASSES)(layers.GlobalMaxPooling2D()(body(x)))


def squashed(x):
    x = layers.GlobalAveragePooling2D()(body(x))
    return layers.Dense(CLASSES, "tanh")(x)


def dense_map(x):
    return layers.Conv2D(CLASSES, 1)(body(x))


def one_position(x):
    x = layers.Flatten()(layers.Conv2D(4, 6)(x))
    return layers.Dense(CLASSES)(x)


@pytest.mark.parametrize(
    "head",
    [several_outputs, hidden_layer, largest, squashed, dense_map, one_position],
    ids=lambda head: head.__name__,
)
def test_refuses_other_heads_by_name(head):
    message = (
        "reads the last map must get networks of one output.*Received: 'net'"
        ", which does not end so. Choose another method, or end the network"
    )
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(network(head), [], ["logit_map"])
