"""Masks of sequences: those of layers, and that of the network's input."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import FeatureExtractor

layers = keras.layers

TOKENS = np.array([[3, 1, 2, 0, 0], [1, 0, 0, 0, 0], [4, 2, 1, 3, 5]])
MASK = TOKENS > 0
LENGTHS = [5, None]


def stack():
    """Embedding, attention and a recurrent layer, with sensing points."""
    return {
        "table": layers.Embedding(6, 4, mask_zero=True, name="table"),
        "attention": layers.MultiHeadAttention(2, 2, name="attention"),
        "add": layers.Add(name="add"),
        "norm": layers.LayerNormalization(name="norm"),
        "lstm": layers.LSTM(3, return_sequences=True, name="lstm"),
        "drop": OwnCode(name="drop"),
        "scores": layers.Dense(2, "softmax", name="scores"),
    }


@keras.saving.register_keras_serializable(package="tests")
class OwnCode(layers.Layer):
    """Does not pass masks on."""

    def call(self, inputs):
        return 2.0 * inputs


@keras.saving.register_keras_serializable(package="tests")
class Tagger(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = stack()

    def call(self, inputs):
        each = self.parts
        x = each["table"](inputs)
        x = each["norm"](each["add"]([x, each["attention"](x, x)]))
        return each["scores"](each["drop"](each["lstm"](x)))


def network(kind, length):
    code = Tagger()
    if kind == "code":
        code(TOKENS)
        return code
    inputs = keras.Input((length,), dtype="int32")
    model = keras.Model(inputs, code.call(inputs))
    if kind == "nested":
        inputs = keras.Input((length,), dtype="int32")
        model = keras.Model(inputs, model(inputs))
    return model


def path(kind, model, name):
    return f"{model.layers[-1].name}/{name}" if kind == "nested" else name


# What `OwnCode` does to masks Keras tells in a warning.
of_own_code = pytest.mark.filterwarnings("ignore:Layer 'drop' .of type OwnCode")


@of_own_code
@pytest.mark.parametrize(
    ("kind", "length", "splits", "compiled"),
    [
        ("graph", 5, False, None),
        ("graph", 5, True, "xla"),
        ("graph", None, False, "graph"),
        ("nested", None, True, "graph"),
        ("nested", None, False, None),
        ("code", 5, False, "graph"),
        ("code", 5, True, None),
    ],
)
def test_masks_of_layers(kind, length, splits, compiled):
    split = (lambda each: (1 * each, 2 * each)) if splits else None
    model = network(kind, length)
    names = ["table", "norm", "lstm", "drop", "scores"]
    extractor = FeatureExtractor(
        model, [path(kind, model, name) for name in names], split=split
    )
    assert extractor.shapes.masks is None
    run = extractor
    if compiled:
        signature = tf.TensorSpec([None, length], tf.int32)
        run = tf.function(
            extractor,
            input_signature=[signature] if compiled == "graph" else None,
            jit_compile=compiled == "xla",
        )
    found = run(tf.constant(TOKENS, tf.int32))
    np.testing.assert_allclose(found.outputs, model(TOKENS), rtol=1e-4)
    assert len(found.masks) == 5
    for mask in (*found.masks, found.output_masks):
        assert mask.dtype == tf.bool
        np.testing.assert_array_equal(mask, MASK)
    for maps in (found.without_padding().maps, found.without_padding().forks):
        for each, before in zip(maps or [], found.maps, strict=False):
            assert not np.any(each.numpy()[~MASK])
            assert np.any(before.numpy()[~MASK])


def padded(length, pooled):
    """As a KerasHub network: no layer makes a mask."""
    inputs = {
        name: keras.Input((length,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    x = layers.Embedding(6, 4, name="table")(inputs["token_ids"])
    mask = keras.ops.expand_dims(inputs["padding_mask"], 1)
    attention = layers.MultiHeadAttention(2, 2)
    x = layers.Add(name="block")([x, attention(x, x, attention_mask=mask)])
    first = layers.Lambda(lambda x: x[:, 1:], name="cut")(x)
    if pooled:
        first = layers.GlobalAveragePooling1D()(first)
        return keras.Model(inputs, layers.Dense(2)(first))
    return keras.Model(inputs, {"short": layers.Dense(2)(first), "all": x})


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pooled", [False, True])
def test_the_mask_of_an_input(pooled, length, compiled):
    model = padded(length, pooled)
    extractor = FeatureExtractor(model, ["table", "block", "cut"])
    inputs = {
        "token_ids": tf.constant(TOKENS, tf.int32),
        "padding_mask": tf.constant(MASK, tf.int32),
    }
    run = extractor
    if compiled:
        signature = {
            name: tf.TensorSpec([None, length], tf.int32) for name in inputs
        }
        run = tf.function(extractor, input_signature=[signature])
    found = run(inputs)
    table, block, cut = found.masks
    for mask in (table, block):
        assert mask.dtype == tf.bool
        np.testing.assert_array_equal(mask, MASK)
    if compiled and length is None:  # lengths were compared at run time
        np.testing.assert_array_equal(cut, np.ones((3, 4), bool))
    else:
        assert cut is None
    if pooled:
        assert found.output_masks is None
    else:
        assert set(found.output_masks) == {"short", "all"}
        np.testing.assert_array_equal(found.output_masks["all"], MASK)


def test_inputs_in_a_list_are_known_by_name():
    model = padded(5, False)
    flat = [model.input["padding_mask"], model.input["token_ids"]]
    model = keras.Model(flat, model.output["all"])
    found = FeatureExtractor(model, ["block"])([MASK.astype("int32"), TOKENS])
    np.testing.assert_array_equal(found.masks[0], MASK)
    np.testing.assert_array_equal(found.output_masks, MASK)


class OfDict(keras.Model):
    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(6, 4, name="table")
        self.scores = layers.Dense(2, name="scores")

    def call(self, inputs):
        return self.scores(self.table(inputs["token_ids"]))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_mask_of_an_input_of_code(compiled):
    model = OfDict()
    inputs = {"token_ids": TOKENS, "padding_mask": MASK}
    model(inputs)
    extractor = FeatureExtractor(model, ["table"], ["logits"])
    run = tf.function(extractor) if compiled else extractor
    found = run(inputs)
    np.testing.assert_array_equal(found.masks[0], MASK)
    np.testing.assert_array_equal(found.output_masks, MASK)


def test_masking_of_frames():
    inputs = keras.Input((5, 2))
    x = layers.Masking(name="masking")(inputs)
    x = layers.GRU(3, return_sequences=True, name="gru")(x)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = np.random.default_rng(0).normal(size=(3, 5, 2)) * MASK[..., None]
    found = FeatureExtractor(model, ["masking", "gru"])(x.astype("float32"))
    for mask in found.masks:
        np.testing.assert_array_equal(mask, MASK)
    assert found.output_masks is None


def test_no_masks_where_nothing_masks():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, name="conv")(inputs)
    x = layers.Reshape((-1, 3), name="sequence")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    extractor = FeatureExtractor(model, ["conv", "sequence"])
    found = extractor(np.zeros((1, 8, 8, 1), "float32"))
    assert found.masks is None
    assert found.output_masks is None
    # The network's own graph is run: nothing is added to it.
    assert extractor._run.get_layer("conv") is model.get_layer("conv")
    assert extractor._run.operations == model.operations
