"""What networks end in, several outputs, and layers that are not as built."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import (
    End,
    FeatureExtractor,
    random_layers,
    with_input_shapes,
)

layers = keras.layers


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(3, 6)).astype("float32")


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")


def softmax(logits):
    each = np.exp(logits - logits.max(-1, keepdims=True))
    return each / each.sum(-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def check(model, x, form, is_probability, expected=None):
    """Compares `ends` and logits in both ways; gives the logits."""
    extractor = FeatureExtractor(model, [], ["logits"])
    assert extractor.ends == End(form, is_probability)
    assert FeatureExtractor(model, []).ends == extractor.ends
    found = extractor(x)
    outputs = model(x).numpy()
    np.testing.assert_allclose(found.outputs, outputs, rtol=1e-5, atol=1e-7)
    logits = found.logits.numpy()
    if is_probability or form not in ("softmax", "sigmoid"):
        np.testing.assert_allclose(logits, outputs, rtol=1e-5, atol=1e-7)
    else:
        of = softmax if form == "softmax" else sigmoid
        np.testing.assert_allclose(of(logits), outputs, rtol=1e-4, atol=1e-6)
    if expected is not None:
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def after(inputs_shape, *stack):
    return keras.Sequential([keras.Input(inputs_shape), *stack])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "make",
    [
        lambda activation: layers.Conv2D(5, 1, activation=activation),
        lambda activation: layers.Conv2DTranspose(5, 2, activation=activation),
        lambda activation: layers.DepthwiseConv2D(2, activation=activation),
        lambda activation: layers.SeparableConv2D(5, 2, activation=activation),
        lambda activation: layers.Dense(5, activation=activation),
        lambda activation: layers.EinsumDense(
            "bhwc,cd->bhwd", (None, None, 5), activation=activation
        ),
    ],
)
def test_an_activation_inside_of_a_layer_is_taken_off(make, activation, images):
    model = after((4, 4, 3), make(activation))
    linear = make(None)
    linear.build((None, 4, 4, 3))
    linear.set_weights(model.get_weights())
    check(model, images, activation, False, linear(images))


def square(x):
    return x**2


@pytest.mark.parametrize(
    ("stack", "form", "is_probability"),
    [
        (lambda: [layers.Dense(3)], "linear", False),
        (lambda: [layers.Dense(3, activation="relu")], "other", False),
        (lambda: [layers.Dense(3), layers.LeakyReLU()], "other", False),
        (
            lambda: [layers.Dense(3), layers.BatchNormalization()],
            "linear",
            False,
        ),
        (lambda: [layers.Dense(3), layers.Softmax()], "softmax", False),
        (
            lambda: [layers.Dense(3), layers.Activation("sigmoid")],
            "sigmoid",
            False,
        ),
        (
            lambda: [layers.Dense(3, activation=layers.Softmax())],
            "softmax",
            False,
        ),
        (lambda: [layers.Dense(3, activation=tf.nn.sigmoid)], "sigmoid", False),
        (lambda: [layers.Dense(3, activation=square)], None, False),
        (lambda: [layers.Dense(3), layers.Lambda(tf.nn.softmax)], None, False),
        (lambda: [layers.Dense(3), layers.Dropout(0.5)], "linear", False),
        (
            lambda: [
                layers.Dense(3, activation="softmax"),
                layers.Dropout(0.5),
            ],
            "softmax",
            True,
        ),
        (
            lambda: [layers.Dense(3, activation="sigmoid"), layers.Identity()],
            "sigmoid",
            True,
        ),
        (
            lambda: [
                layers.Dense(3),
                layers.Softmax(),
                layers.Activation("linear"),
            ],
            "softmax",
            True,
        ),
        (
            lambda: [layers.Dense(3), layers.Softmax(), layers.Rescaling(2.0)],
            None,
            False,
        ),
        (lambda: [layers.Dense(3), layers.Rescaling(2.0)], "linear", False),
        (
            lambda: [layers.Dense(6), layers.Softmax(), layers.Reshape((2, 3))],
            None,
            False,
        ),
        (
            lambda: [layers.Dense(6), layers.Softmax(), layers.Reshape((1, 6))],
            "softmax",
            True,
        ),
        (
            lambda: [
                layers.Dense(6),
                layers.Reshape((2, 3)),
                layers.Softmax(axis=1),
            ],
            None,
            False,
        ),
        (
            lambda: [
                layers.Dense(6),
                layers.Reshape((2, 3)),
                layers.Softmax(axis=[2]),
            ],
            "softmax",
            False,
        ),
        (
            lambda: [
                layers.Dense(6),
                layers.Reshape((2, 3)),
                layers.Softmax(),
                layers.Permute((2, 1)),
            ],
            None,
            False,
        ),
        (
            lambda: [
                layers.Dense(6),
                layers.Reshape((2, 3)),
                layers.Softmax(),
                layers.GlobalAveragePooling1D(),
            ],
            "softmax",
            True,
        ),
        (
            lambda: [
                layers.Reshape((2, 3)),
                layers.TimeDistributed(layers.Dense(4, activation="softmax")),
            ],
            "softmax",
            True,
        ),
        (
            lambda: [
                layers.Reshape((2, 3)),
                layers.TimeDistributed(layers.Dense(4)),
            ],
            "linear",
            False,
        ),
    ],
)
def test_ends(stack, form, is_probability, x):
    check(after((6,), *stack()), x, form, is_probability)


def test_a_cast_passes_probabilities_on(x):
    inputs, (output,) = heads("softmax")
    output = keras.ops.cast(output, "float64")
    check(keras.Model(inputs, output), x, "softmax", True)


def heads(*activations):
    inputs = keras.Input((6,))
    return inputs, [
        layers.Dense(3, activation=each, name=f"head{index}")(inputs)
        for index, each in enumerate(activations)
    ]


@pytest.mark.parametrize(
    ("merge", "activations", "form", "is_probability"),
    [
        (layers.Average, ("softmax", "softmax"), "softmax", True),
        (layers.Average, ("sigmoid", "sigmoid"), "sigmoid", True),
        (layers.Average, ("softmax", "sigmoid"), None, False),
        (layers.Average, ("softmax", None), None, False),
        (layers.Average, (None, None), "linear", False),
        (layers.Add, (None, None), "linear", False),
        (layers.Add, ("softmax", "softmax"), None, False),
        (layers.Maximum, ("softmax", "softmax"), None, False),
        (layers.Minimum, ("sigmoid", "sigmoid"), None, False),
        (layers.Multiply, ("softmax", "softmax"), None, False),
        (layers.Concatenate, ("softmax", "softmax"), None, False),
        (layers.Concatenate, ("sigmoid", "sigmoid"), "sigmoid", True),
    ],
)
def test_merges(merge, activations, form, is_probability, x):
    inputs, outputs = heads(*activations)
    model = keras.Model(inputs, merge()(outputs))
    check(model, x, form, is_probability)


def member(activation="softmax", name=None):
    inputs, (output,) = heads(activation)
    return keras.Model(inputs, output, name=name)


class Ensemble(keras.Model):
    def __init__(self, merge):
        super().__init__()
        self.members = [member(), member()]
        self.merge = merge

    def call(self, inputs):
        return self.merge([each(inputs) for each in self.members])


@pytest.mark.parametrize("by_code", [False, True])
def test_an_ensemble_of_networks(by_code, x):
    if by_code:
        model = Ensemble(layers.Average())
        model(x)
    else:
        inputs = keras.Input((6,))
        outputs = [member(name=f"m{index}")(inputs) for index in range(2)]
        model = keras.Model(inputs, layers.Average()(outputs))
    check(model, x, "softmax", True)


def test_code_after_the_last_layer_cannot_be_told(x):
    model = Ensemble(lambda tensors: (tensors[0] + tensors[1]) / 2)
    model(x)
    check(model, x, None, False)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_a_nested_networks_end_is_the_networks(activation, x):
    inner = member(activation)
    head = inner.get_layer("head0")
    form = activation or "linear"
    for depth in range(2):
        inputs = keras.Input((6,))
        inner = keras.Model(inputs, inner(inputs), name=f"depth{depth}")
        check(inner, x, form, False, x @ head.kernel.numpy())


def test_a_nested_networks_other_output(x):
    inputs, outputs = heads(None, "softmax")
    inner = keras.Model(inputs, outputs, name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, inner(inputs)[1])
    check(model, x, "softmax", False)


@pytest.mark.parametrize("name", ["Sum", "Own"])
def test_a_layer_of_own_code_cannot_be_told(name, x):
    class Own(layers.Dense):
        def call(self, inputs):
            return tf.nn.softmax(super().call(inputs))

    class Sum(layers.Layer):
        def call(self, inputs):
            return inputs / tf.reduce_sum(inputs, -1, keepdims=True)

    last = {"Own": Own, "Sum": lambda _: Sum()}[name](3)
    check(after((6,), layers.Dense(3), last), x, None, False)


def test_an_activity_is_regularised_once(x):
    last = layers.Dense(3, "softmax", activity_regularizer="l2")
    model = after((6,), last)
    model(x)
    expected = float(sum(model.losses))
    FeatureExtractor(model, [], ["logits"])(x)
    assert len(model.losses) == 1
    np.testing.assert_allclose(model.losses[0], expected, rtol=1e-6)


# --- several outputs


def structures():
    return {
        "list": lambda a, b: [a, b],
        "tuple": lambda a, b: (a, b),
        "dict": lambda a, b: {"b": b, "a": a},
        "single": lambda a, b: (b,),
    }


class Several(keras.Model):
    def __init__(self, structure):
        super().__init__()
        self.first = layers.Dense(5, "relu", name="body")
        self.a = layers.Dense(3, "softmax", name="a")
        self.b = layers.Dense(2, name="b")
        self.structure = structure

    def call(self, inputs):
        hidden = self.first(inputs)
        return self.structure(self.a(hidden), self.b(hidden))


@pytest.mark.parametrize("by_code", [False, True])
@pytest.mark.parametrize("split", [None, lambda each: (each, 2 * each)])
@pytest.mark.parametrize("name", structures())
def test_several_outputs(name, by_code, split, x):
    model = code = Several(structures()[name])
    code(x)
    if not by_code:
        inputs = keras.Input((6,))
        model = keras.Model(inputs, code.call(inputs))
    needs = ["logits", "embedding"]
    extractor = FeatureExtractor(model, ["body"], needs, split=split)
    found = extractor(x)
    expected = model(x)
    keras.tree.assert_same_structure(found.outputs, expected)
    keras.tree.assert_same_structure(found.logits, expected)
    for ours, theirs in zip(
        keras.tree.flatten(found.outputs),
        keras.tree.flatten(expected),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    hidden = np.maximum(x @ code.first.kernel.numpy(), 0)
    np.testing.assert_allclose(found.embedding, hidden, rtol=1e-5)
    ends = code.structure(End("softmax", False), End("linear", False))
    logits = code.structure(
        hidden @ code.a.kernel.numpy(), hidden @ code.b.kernel.numpy()
    )
    shapes = code.structure((None, 3), (None, 2))
    if name == "single" and not by_code:  # as Keras gives it
        ends, logits, shapes = ends[0], logits[0], shapes[0]
    assert extractor.ends == ends
    assert extractor.shapes.outputs == shapes
    assert extractor.shapes.logits == shapes
    for ours, theirs in zip(
        keras.tree.flatten(found.logits),
        keras.tree.flatten(logits),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_head_that_gives_several_outputs(x):
    inputs = keras.Input((6,))
    head = layers.Dense(3, "softmax", name="head")
    hidden = [layers.Dense(4, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, [head(each) for each in hidden])
    found = FeatureExtractor(model, ["a"], ["logits"])(x)
    for name, logits in zip("ab", found.logits, strict=True):
        hidden = model.get_layer(name)(x)
        np.testing.assert_allclose(logits, hidden @ head.kernel, rtol=1e-5)


@pytest.mark.parametrize("by_code", [False, True])
def test_refuses_an_embedding_of_outputs_that_share_none(by_code, x):
    if by_code:
        model = Unshared(name="two")
        model(x)
    else:
        inputs = keras.Input((6,))
        hidden = [layers.Dense(4)(inputs) for _ in range(2)]
        outputs = [layers.Dense(3)(each) for each in hidden]
        model = keras.Model(inputs, outputs, name="two")
    with pytest.raises(ValueError, match="one embedding .*'two', whose 2 outp"):
        FeatureExtractor(model, [], ["embedding"])
    assert (
        FeatureExtractor(model, [], ["logits"]).ends == [("linear", False)] * 2
    )


class Unshared(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.a, self.b = layers.Dense(3), layers.Dense(3)

    def call(self, inputs):
        return [self.a(inputs), self.b(2 * inputs)]


def test_points_inside_of_a_nested_network_of_several_outputs(x):
    inputs, outputs = heads("softmax", "relu")
    inner = keras.Model(inputs, {"p": outputs[0], "q": outputs[1]}, name="in")
    inputs = keras.Input((6,))
    given = inner(inputs)
    outputs = [layers.Dense(2)(given["p"]), given["q"]]
    model = keras.Model(inputs, outputs)
    found = FeatureExtractor(
        model, ["in/head0", "in/head1"], split=lambda each: (each, 3 * each)
    )(x)
    for ours, theirs in zip(found.maps, inner(x).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(found.forks[0], 3 * found.maps[0], rtol=1e-6)
    np.testing.assert_allclose(found.outputs[0], model(x)[0], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan])
def test_require_finite_covers_each_of_several_logits(value, x):
    inputs, outputs = heads(None, "softmax")
    model = keras.Model(inputs, outputs)
    kernel = model.get_layer("head1").kernel
    kernel.assign(tf.fill(kernel.shape, value))
    extractor = FeatureExtractor(model, [], ["logits"], require_finite=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="at its logits"):
        extractor(x)


# --- int8, low rank, double precision, frozen


class Small(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.a = layers.Dense(8, "relu", name="a")
        self.c = layers.Dense(3, activation, name="c")

    def call(self, inputs):
        return self.c(self.a(inputs))


def small(by_code, activation):
    code = Small(activation)
    if by_code:
        code(np.zeros((1, 6), "float32"))
        return code
    inputs = keras.Input((6,))
    return keras.Model(inputs, code.c(code.a(inputs)))


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quan")
@pytest.mark.parametrize("by_code", [False, True])
@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("change", ["int8", "lora", "int8 and lora"])
@pytest.mark.slow
def test_quantized_layers_and_low_rank(change, activation, by_code, x):
    model = small(by_code, activation)
    if "int8" in change:
        model.quantize("int8")
    if "lora" in change:
        for name in "ac":
            model.get_layer(name).enable_lora(2)
            model.get_layer(name).lora_kernel_b.assign_add(
                0.1 * tf.ones_like(model.get_layer(name).lora_kernel_b)
            )
    extractor = FeatureExtractor(
        model,
        ["a", "c"],
        ["logits", "embedding", "maps_before_activation"],
        logits=["c"],
    )
    found = extractor(x)
    expected = model(x)
    hidden = model.get_layer("a")(x)
    np.testing.assert_array_equal(found.outputs, expected)
    np.testing.assert_array_equal(found.maps[0], hidden)
    np.testing.assert_array_equal(found.embedding, hidden)
    before = found.maps_before_activation[0]
    np.testing.assert_array_equal(tf.nn.relu(before), hidden)
    assert before.numpy().min() < 0
    logits = found.logits.numpy()
    np.testing.assert_array_equal(found.maps[1], logits)
    if activation:
        assert logits.min() < 0
        logits = softmax(logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert extractor.ends == (activation or "linear", False)


def test_gradients_train_what_low_rank_leaves_to_train(x):
    model = small(False, "softmax")
    model.get_layer("a").enable_lora(2)
    model.get_layer("c").enable_lora(2)
    extractor = FeatureExtractor(model, ["a"], ["logits"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(extractor(x, training=True).logits ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    names = [each.name for each in model.trainable_variables]
    assert names == ["bias", "lora_kernel_a", "lora_kernel_b"] * 2
    assert all(each is not None for each in gradients)


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
def test_logits_keep_the_layers_dtype(policy, x):
    inputs = keras.Input((6,))
    last = layers.Dense(3, "softmax", dtype=policy)
    model = keras.Model(inputs, last(inputs))
    found = FeatureExtractor(model, [], ["logits"])(x)
    dtype = last.compute_dtype
    assert found.logits.dtype == found.outputs.dtype == dtype
    np.testing.assert_array_equal(found.outputs, model(x))


def test_a_frozen_nested_networks_statistics_stay(images):
    backbone = after(
        (4, 4, 3),
        layers.Conv2D(2, 3, name="conv"),
        layers.BatchNormalization(name="norm"),
    )
    backbone.name = "backbone"
    backbone.trainable = False
    inputs = keras.Input((4, 4, 3))
    outputs = layers.Dense(3, "softmax")(layers.Flatten()(backbone(inputs)))
    model = keras.Model(inputs, outputs)
    extractor = FeatureExtractor(
        model,
        ["backbone/norm"],
        ["logits", "maps_before_activation"],
        split=lambda each: (each, 1 * each),
    )
    found = extractor(images, training=True)
    np.testing.assert_allclose(found.outputs, model(images), rtol=1e-5)
    norm = backbone.get_layer("norm")
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(2))
    assert not norm.trainable


# --- any size


def any_size(nested):
    stack = [
        layers.Conv2D(4, 3, 2, padding="same", name="conv"),
        layers.ReLU(name="end"),
    ]
    body = after((None, None, 3), *stack)
    body.name = "body"
    inputs = keras.Input((None, None, 3))
    outputs = inputs
    for layer in [body] if nested else stack:
        outputs = layer(outputs)
    outputs = layers.GlobalAveragePooling2D()(outputs)
    return keras.Model(inputs, layers.Dense(3)(outputs), name="net")


@pytest.mark.parametrize("nested", [False, True])
def test_maps_of_a_network_of_any_size(nested):
    model = any_size(nested)
    point = "body/end" if nested else "end"
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype("float32")
    assert FeatureExtractor(model, [point]).shapes.maps == [(None,) * 3 + (4,)]
    extractor = FeatureExtractor(
        model, [point], ["logits"], input_shapes=[(None, 9, 7, 3)]
    )
    assert extractor.shapes.maps == [(None, 5, 4, 4)]
    found = extractor(x)
    np.testing.assert_allclose(found.outputs, model(x), rtol=1e-6)
    conv = (model.get_layer("body") if nested else model).get_layer("conv")
    np.testing.assert_allclose(found.maps[0], tf.nn.relu(conv(x)), rtol=1e-6)
    sized = with_input_shapes(model, [(None, 9, 7, 3)])
    inner = sized.get_layer("body") if nested else sized
    assert inner.get_layer("conv") is conv
    assert inner.input_shape == (None, 9, 7, 3)
    assert sized.name == "net"
    assert model.input_shape == (None, None, None, 3)


def test_sizes_of_several_inputs_keep_the_structure():
    inputs = {name: keras.Input((None, 2), name=name) for name in "ba"}
    outputs = layers.Add()([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, outputs)
    sized = with_input_shapes(model, [(None, 5, 2), (None, 5, 2)])
    assert {name: each.shape for name, each in sized.input.items()} == {
        name: (None, 5, 2) for name in "ba"
    }
    x = {name: np.full((1, 5, 2), float(ord(name))) for name in "ba"}
    np.testing.assert_array_equal(sized(x), model(x))


@pytest.mark.parametrize("shapes", [[(None, 8, 8, 1)], [(None, 8, 8, 3)] * 2])
def test_refuses_sizes_that_do_not_fit(shapes):
    message = r"must fit the network's own. Received: .* for 'net', which takes"
    with pytest.raises(ValueError, match=message):
        with_input_shapes(any_size(False), shapes)


def test_code_has_no_sizes_to_set(x):
    model = small(True, None)
    assert with_input_shapes(model, [(None, 6)]) is model


# --- random layers


def test_random_layers():
    augment = keras.Sequential(
        [layers.RandomFlip(name="flip"), layers.RandomRotation(0.1, name="rot")]
    )
    augment.name = "augment"
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Resizing(8, 8),
            layers.CenterCrop(8, 8),
            augment,
            layers.RandAugment(name="rand"),
            layers.MixUp(name="mix"),
            layers.CutMix(name="cut"),
            layers.RandomErasing(name="erase"),
            layers.GaussianNoise(0.1),
            layers.Conv2D(2, 3),
            layers.Dropout(0.5),
        ]
    )
    assert random_layers(model) == [
        "augment/flip",
        "augment/rot",
        "rand",
        "mix",
        "cut",
        "erase",
    ]


def test_random_layers_of_code():
    class Augmenting(keras.Model):
        def __init__(self):
            super().__init__()
            self.flip = layers.RandomFlip(name="flip")
            self.drop = layers.Dropout(0.5)

        def call(self, inputs):
            return self.drop(self.flip(inputs))

    assert random_layers(Augmenting()) == ["flip"]
