"""The networks of characters: shapes, padding, sensing points, files."""

import functools

import keras
import numpy as np
import pytest

import keras_mhgd
from keras_mhgd import features, models
from keras_mhgd.models.char_layers import (
    MaskedConv1D,
    PositionEmbedding,
    TransformerBlock,
)

NAMES = models.names("tokens")
LENGTH, TOKENS, CLASSES = 8, 12, 5
VALID = (8, 1, 3, 6)  # tokens of each sequence
BLOCKS = {"char_transformer": 3, "char_transformer_small": 2, "char_cnn": 3}


def make(name, length=LENGTH, **changes):
    keras.utils.set_random_seed(0)
    network = models.get(
        name, (length,), CLASSES, **({"num_tokens": TOKENS} | changes)
    )
    return network


@functools.cache
def untouched(name):
    """Shared by the tests that change nothing. No weight is at its start."""
    network = make(name)
    rng = np.random.default_rng(0)
    network.set_weights(
        [
            np.abs(rng.normal(0.5, 0.2, each.shape))
            if "variance" in each.path
            else rng.normal(0, 0.3, each.shape)
            for each in network.weights
        ]
    )
    return network


def words(length=LENGTH):
    rng = np.random.default_rng(1)
    x = rng.integers(1, TOKENS, (len(VALID), LENGTH), np.int32)
    x *= np.arange(LENGTH) < np.array(VALID)[:, np.newaxis]
    return np.pad(x, [(0, 0), (0, length - LENGTH)])


def longer(network, length):
    """The same network for longer sequences, with other late positions."""
    made = make(network.name, length)
    weights = network.get_weights()
    for number, weight in enumerate(made.get_weights()):
        if weight.shape != weights[number].shape:
            weight[:] = 7.0
            weight[: len(weights[number])] = weights[number]
            weights[number] = weight
    made.set_weights(weights)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_gives_logits(name):
    network = untouched(name)
    assert network.name == name
    assert network.input_shape == (None, LENGTH)
    assert network.inputs[0].dtype == "int32"
    assert network.output_shape == (None, CLASSES)
    assert np.isfinite(network(words())).all()


def test_the_small_ones_are_small():
    size, *small = (untouched(name).count_params() for name in NAMES)
    assert max(small) < size / 5


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_logits(name):
    network = untouched(name)
    more = longer(network, LENGTH + 5)
    for training in (False, name == "char_cnn"):
        np.testing.assert_allclose(
            more(words(LENGTH + 5), training=training),
            network(words(), training=training),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_vector_of_padding_is_not_read(name):
    network = make(name)
    x = words()
    expected = network(x)
    (table,) = network.get_layer("embedding").get_weights()
    table[0] = 9.0
    network.get_layer("embedding").set_weights([table])
    np.testing.assert_allclose(network(x), expected, rtol=1e-5, atol=1e-6)
    table[x[0, 0], ::2] += 1.0
    network.get_layer("embedding").set_weights([table])
    assert np.abs(network(x) - expected).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_characters_counts(name):
    x = words()
    turned = x.copy()
    turned[0] = x[0, ::-1]
    found, expected = untouched(name)(turned), untouched(name)(x)
    assert np.abs(found[0] - expected[0]).max() > 1e-3
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_sensing_points_are_the_ends_of_blocks(name):
    expected = [f"stage{i + 1}" for i in range(BLOCKS[name])]
    assert features.block_ends(untouched(name)) == expected
    assert features.logits_end(untouched(name)) == "logits"


@pytest.mark.parametrize(
    ("student", "pairs"),
    [
        (
            "char_transformer_small",
            [("stage1", "stage2"), ("stage2", "stage3")],
        ),
        ("char_cnn", [(f"stage{i}", f"stage{i}") for i in (1, 2, 3)]),
    ],
)
def test_pairs(student, pairs):
    teacher = untouched("char_transformer")
    assert features.pair(untouched(student), teacher) == pairs


@pytest.mark.parametrize("name", NAMES)
def test_features_have_masks(name):
    network = untouched(name)
    points = features.block_ends(network)
    read = features.FeatureExtractor(network, points)(words())
    for mask in read.masks:
        np.testing.assert_array_equal(mask, words() > 0)


@pytest.mark.parametrize("name", NAMES)
def test_saves_and_loads(name, tmp_path):
    network = untouched(name)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(again(words()), network(words()))
    assert len(again.losses) == len(network.losses)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_covers_all_weights(name):
    network = make(name, weight_decay=0.2)
    squares = sum(
        float(np.sum(np.square(each))) for each in network.trainable_weights
    )
    np.testing.assert_allclose(sum(network.losses), 0.1 * squares, rtol=1e-4)
    assert not make(name, weight_decay=0).losses


@pytest.mark.parametrize(
    ("name", "shape", "changes", "message"),
    [
        ("char_cnn", (8,), {}, "char_cnn takes sequences .* num_tokens=None"),
        ("char_cnn", (28, 28, 1), {}, "Networks of images: vgg16, "),
        (
            "resnet_small",
            (8,),
            {"num_tokens": 9},
            r"resnet_small takes images, .*\(8,\).* tokens: char_transformer,",
        ),
        ("char_cnn", (8, 2), {"num_tokens": 9}, "a tuple of the length"),
        ("char_cnn", (None,), {"num_tokens": 9}, "a tuple of the length"),
        ("char_cnn", (8,), {"num_tokens": 1}, "`num_tokens` must be 2 or more"),
    ],
)
def test_refuses(name, shape, changes, message):
    with pytest.raises(ValueError, match=message):
        models.get(name, shape, CLASSES, **changes)


def test_names_by_inputs():
    assert models.names() == [*models.names("images"), *NAMES]
    with pytest.raises(ValueError, match="`inputs` must be one of images, tok"):
        models.names("sound")


# Layers.


@pytest.mark.parametrize(
    "layer",
    [
        PositionEmbedding(regularizer="l2"),
        MaskedConv1D(6, 3, kernel_regularizer="l2"),
        TransformerBlock(2, 12, dropout=0.5, regularizer="l2"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layer(layer):
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    found = layer(x)
    assert found.shape == layer.compute_output_shape(x.shape) == x.shape
    again = type(layer).from_config(layer.get_config())
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(x), found)
    assert again.get_config() == layer.get_config()
    half = type(layer).from_config(
        layer.get_config() | {"dtype": "mixed_float16"}
    )
    assert half(x).dtype == "float16"


def test_block_by_hand():
    """One head, whose query is 0: attention is the mean of real positions."""
    layer = TransformerBlock(1, 4)
    layer.build((None, 3, 2))
    for weight in layer.weights:
        weight.assign(np.zeros(weight.shape))
    layer.attention_norm.gamma.assign([1.0, 1.0])
    layer.attention.value_dense.kernel.assign(np.eye(2)[:, np.newaxis])
    layer.attention.output_dense.kernel.assign(np.eye(2)[np.newaxis])
    x = np.array([[[3.0, 1.0], [5.0, 9.0], [7.0, 2.0]]], "float32")
    mask = np.array([[True, True, False]])
    # Normalised: (1, -1), (-1, 1), which cancel; alone, the first.
    np.testing.assert_allclose(layer(x, mask=mask), x, atol=1e-4)
    alone = layer(x, mask=mask & [[True, False, False]])
    np.testing.assert_allclose(alone, x + [1, -1], atol=1e-4)


def test_dropout_is_of_training_alone():
    network = make("char_transformer_small")
    x = words()
    np.testing.assert_array_equal(network(x), network(x))
    a, b = (network(x, training=True) for _ in range(2))
    assert np.abs(a - b).max() > 0


# Distillation.


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mhgd", "recommended"])
def test_distills(method):
    languages = keras_mhgd.data.load("languages", subset=96)
    sizes = languages.input_shape, languages.num_classes
    keras.utils.set_random_seed(0)
    teacher, student = (
        models.get(name, *sizes, num_tokens=len(languages.tokens))
        for name in ("char_transformer_small", "char_cnn")
    )
    if method == "mhgd":
        method = keras_mhgd.methods.MHGD(num_heads=2, preparation_epochs=1)
    distiller = keras_mhgd.Distiller(student, teacher, method=method)
    distiller.compile("sgd", **languages.task())
    before = student.get_weights()
    history = distiller.fit(
        languages.train(32),
        steps_per_epoch=3,
        epochs=1,
        shuffle=False,
        verbose=0,
    ).history
    assert all(np.isfinite(each).all() for each in history.values())
    assert any(
        (a != b).any()
        for a, b in zip(before, student.get_weights(), strict=True)
    )
