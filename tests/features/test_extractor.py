import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import models
from keras_mhgd.features import FeatureExtractor, find_layer, pair, stage_ends

SHAPE = (32, 32, 3)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")


def backbone(name="backbone", sequential=False):
    """Two stages without a head; batch normalisation in the first."""
    stack = [
        keras.layers.Conv2D(4, 3, padding="same", name="conv1"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(name="front"),
        keras.layers.Conv2D(5, 3, 2, padding="same", name="conv2"),
        keras.layers.ReLU(name="back"),
    ]
    inputs = keras.Input((8, 8, 1))
    if sequential:
        return keras.Sequential([inputs, *stack], name=name)
    outputs = inputs
    for layer in stack:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name=name)


def head():
    return [
        keras.layers.GlobalAveragePooling2D(name="average"),
        keras.layers.Dense(3, name="logits"),
    ]


def wrapped(inner, name="net", before=()):
    """A functional model around `inner`."""
    outputs = inputs = keras.Input((8, 8, 1))
    for layer in (*before, inner, *head()):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name=name)


def functional():
    inner = backbone()
    outputs = inner.output
    for layer in head():
        outputs = layer(outputs)
    return keras.Model(inner.input, outputs)


def sequential_by_add():
    """Keras calls every layer anew at each `add`."""
    model = keras.Sequential([keras.Input((8, 8, 1))], name="by_add")
    for layer in (*backbone().layers[1:], *head()):
        model.add(layer)
    return model


def built_of_another_models_layers():
    """Keras's `layer.output` belongs to the other model's graph here."""
    other = wrapped(backbone(), "other")
    outputs = inputs = keras.Input((8, 8, 1))
    for layer in (*other.get_layer("backbone").layers[1:], *other.layers[2:]):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="reuses")


NETWORKS = {
    "functional": (functional, ""),
    "sequential": (
        lambda: keras.Sequential(
            [keras.Input((8, 8, 1)), *backbone().layers[1:], *head()]
        ),
        "",
    ),
    "sequential by add": (sequential_by_add, ""),
    "layers of another model": (built_of_another_models_layers, ""),
    "functional in functional": (lambda: wrapped(backbone()), "backbone/"),
    "sequential in functional": (
        lambda: wrapped(backbone(sequential=True)),
        "backbone/",
    ),
    "functional in sequential": (
        lambda: keras.Sequential([keras.Input((8, 8, 1)), backbone(), *head()]),
        "backbone/",
    ),
    "two levels": (
        lambda: wrapped(
            keras.Sequential(
                [keras.Input((8, 8, 1)), backbone("inner")], name="middle"
            )
        ),
        "middle/inner/",
    ),
}


def layer_of(model, path):
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def recomputed(model, prefix, x):
    """Front and back features by calling one layer after the other."""
    found = {}
    for name in ("conv1", "norm", "front", "conv2", "back"):
        x = layer_of(model, prefix + name)(x)
        found[name] = x.numpy()
    return [found["front"], found["back"]]


def twice(feature):
    return tf.identity(feature), 2 * feature


@pytest.mark.parametrize("split", [None, twice])
@pytest.mark.parametrize("name", NETWORKS)
def test_yields_predictions_and_features(name, split, x):
    build, prefix = NETWORKS[name]
    model = build()
    points = [prefix + "front", prefix + "back"]
    extractor = FeatureExtractor(model, points, split=split)
    assert extractor.shapes.outputs == (None, 3)
    assert extractor.shapes.maps == [(None, 8, 8, 4), (None, 4, 4, 5)]
    found = extractor(x)
    np.testing.assert_allclose(found.outputs, model(x), atol=1e-6)
    for a, b in zip(found.maps, recomputed(model, prefix, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    if split is None:
        assert found.forks is None
        return
    for a, b in zip(found.maps, found.forks, strict=True):
        np.testing.assert_array_equal(2 * a, b)


@pytest.mark.parametrize("split", [None, twice])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_forward_with_the_models_own_weights(name, split, x):
    build, prefix = NETWORKS[name]
    model = build()
    points = [prefix + "front", prefix + "back"]
    extractor = FeatureExtractor(model, points, split=split)
    norm = layer_of(model, prefix + "norm")
    norm.moving_mean.assign(tf.zeros(4))
    inner = layer_of(model, prefix + "conv1")(x)
    with tf.GradientTape() as tape:
        outputs, maps, *_ = extractor(x, training=True)
        loss = tf.reduce_sum(outputs) + sum(map(tf.reduce_sum, maps))
    mean = tf.reduce_mean(inner, (0, 1, 2))
    # Moved once: twice would give 1.99 / 100 of the batch's mean.
    np.testing.assert_allclose(
        norm.moving_mean, (1 - norm.momentum) * mean, rtol=1e-4, atol=1e-8
    )
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    kernel = layer_of(model, "logits").kernel
    kernel.assign(2 * kernel)
    np.testing.assert_allclose(
        extractor(x).outputs, model(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("split", [None, twice])
@pytest.mark.parametrize("name", NETWORKS)
def test_extracting_leaves_the_model_as_it_was(name, split, x):
    build, prefix = NETWORKS[name]
    model = build()
    expected, config = model(x), model.get_config()
    points = [prefix + "front", prefix + "back"]
    for _ in range(2):
        FeatureExtractor(model, points, split=split)
    np.testing.assert_array_equal(model(x), expected)
    assert model.get_config() == config
    assert stage_ends(model) == {1: prefix + "front", 2: prefix + "back"}


def test_a_nested_model_can_be_a_point_itself(x):
    model = wrapped(backbone())
    found = FeatureExtractor(model, ["backbone/front", "backbone"])(x)
    np.testing.assert_allclose(
        found.maps[1], model.get_layer("backbone")(x), atol=1e-6
    )


def test_points_of_different_depths(x):
    before = keras.layers.Conv2D(1, 3, padding="same", name="stem")
    model = wrapped(backbone(), before=[before])
    found = FeatureExtractor(model, ["stem", "backbone/back", "average"])(x)
    stem = before(x)
    np.testing.assert_allclose(found.maps[0], stem, atol=1e-6)
    back = model.get_layer("backbone")(stem)
    np.testing.assert_allclose(found.maps[1], back, atol=1e-6)
    np.testing.assert_allclose(
        found.maps[2], tf.reduce_mean(back, (1, 2)), atol=1e-6
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("structure", [list, dict])
def test_several_inputs_keep_their_structure(x, structure, nested):
    names = ("b", "a")
    inputs = {name: keras.Input((8, 8, 1), name=name) for name in names}
    net = backbone()
    outputs = inputs["b"] - 2.0 * inputs["a"]
    for layer in [net] if nested else net.layers[1:]:
        outputs = layer(outputs)
    for layer in head():
        outputs = layer(outputs)

    def of(values):
        return values if structure is dict else list(values.values())

    model = keras.Model(of(inputs), outputs)
    path = "backbone/back" if nested else "back"
    found = FeatureExtractor(model, [path])(of({"b": x, "a": x**2}))
    expected = net(x - 2.0 * x**2)
    np.testing.assert_allclose(found.maps[0], expected, atol=1e-5)


def test_keras_applications_nested():
    inner = keras.applications.MobileNetV2(
        SHAPE, alpha=0.35, include_top=False, weights=None
    )
    inputs = keras.Input(SHAPE)
    outputs = inner(keras.layers.Rescaling(2.0, -1.0)(inputs))
    for layer in head():
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    ends = stage_ends(model)
    assert list(ends) == [2, 4, 8, 16, 32]
    assert all(path.startswith(f"{inner.name}/") for path in ends.values())
    extractor = FeatureExtractor(model, ends.values())
    # Keras pads before it strides; a padding layer ends no stage.
    assert [shape[1] for shape in extractor.shapes.maps] == [16, 8, 4, 2, 1]
    x = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    found = extractor(x)
    np.testing.assert_allclose(found.outputs, model(x), atol=1e-5)
    cut = keras.Model(inner.input, inner.get_layer("out_relu").output)
    np.testing.assert_allclose(found.maps[-1], cut(2 * x - 1), atol=1e-5)


@pytest.mark.parametrize("name", models.names("images"))
def test_automatic_points_are_the_named_stages(name):
    model = models.get(name, SHAPE, 5)
    layers = [layer.name for layer in model.layers]
    stages = [f"stage{i}" for i in range(1, 5) if f"stage{i}" in layers]
    assert len(stages) >= 3
    assert list(stage_ends(model).values()) == stages
    assert list(stage_ends(model)) == [2**i for i in range(len(stages))]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("resnet_small", "vgg_small"), ("mobilenet", "wrn_22_4")],
)
def test_pairs_by_resolution(student, teacher):
    """MobileNet has a fourth stage; the wide ResNet none of its size."""
    student, teacher = (models.get(n, SHAPE, 5) for n in (student, teacher))
    expected = [(f"stage{i}", f"stage{i}") for i in (1, 2, 3)]
    assert pair(student, teacher) == expected
    assert pair(teacher, student) == expected


def test_stages_without_weights_do_not_count():
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.MaxPooling2D(name="pool")(inputs)
    x = keras.layers.Conv2D(2, 3, padding="same", name="conv")(x)
    x = keras.layers.MaxPooling2D(name="end")(x)
    x = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    assert stage_ends(keras.Model(inputs, x)) == {2: "conv"}


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (["stage1", "stage2"], [("stage1", "stage1"), ("stage2", "stage2")]),
        (
            [("stage1", "stage2"), ["stage2", "logits"]],
            [("stage1", "stage2"), ("stage2", "logits")],
        ),
        (
            ("stage1", ("stage2", "stage1")),
            [("stage1", "stage1"), ("stage2", "stage1")],
        ),
    ],
)
def test_names_and_pairs(small_net, points, expected):
    found = pair(small_net("student"), small_net("teacher"), points)
    assert found == expected
    assert all(isinstance(each, tuple) for each in found)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], r"2 or more layers.* which gives \[\]"),
        (["stage1"], "2 or more layers, front end first"),
        (
            "stage1",
            r"Received: sensing_points=\['stage1'\].*'stage2'.*Layers of",
        ),
        ([("stage1",) * 3, ("stage2",) * 3], "Pass layer names or .student"),
        (
            ["stage1", "stag2"],
            r"must be a layer of 'student'.*'stag2'. Near names: \['stage2'",
        ),
        (
            [("stage1", "stage1"), ("stage2", "stage3")],
            r"must be a layer of 'teacher'.*'stage3'. Near names: .*'stage2'",
        ),
        (["stage1", "zz"], r"'zz'. Near names: \['input_layer.*'logits'\]"),
        (["stage1", "stage2/conv"], "'stage2/conv'. Near names"),
    ],
)
def test_refuses_wrong_points(small_net, points, message):
    with pytest.raises(ValueError, match=message):
        pair(small_net("student"), small_net("teacher"), points)


def test_refuses_networks_of_too_few_stages(small_net):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(6, 3, 4, padding="same", name="only")(inputs)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    message = r"sensing_points=None.* gives \[\('stage2', 'only'\)\]"
    with pytest.raises(ValueError, match=message):
        pair(small_net(), keras.Model(inputs, x))


def called_twice(nested):
    inputs = keras.Input((8, 8, 1))
    inner = keras.Input((8, 8, 1))
    twice = keras.layers.Conv2D(1, 3, padding="same", name="twice")
    if nested:
        twice = keras.Model(inner, twice(inner), name="twice")
        twice.layers[-1].name = "conv"
    x = keras.layers.ReLU(name="once")(twice(twice(inputs)))
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    return keras.Model(inputs, x, name="siamese")


@pytest.mark.parametrize(
    ("nested", "point"), [(False, "twice"), (True, "twice/conv")]
)
def test_refuses_a_layer_that_is_called_twice(nested, point):
    message = (
        "calls once and that has one output. "
        f"Received: '{point}' of 'siamese', where 'twice' is not"
    )
    with pytest.raises(ValueError, match=message):
        find_layer(called_twice(nested), point)


class Splits(keras.layers.Layer):
    def call(self, inputs):
        return inputs, -inputs


def test_refuses_a_layer_of_two_outputs():
    inputs = keras.Input((8, 8, 1))
    x, _ = Splits(name="splits")(inputs)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    with pytest.raises(ValueError, match="has one output. Received: 'splits'"):
        FeatureExtractor(keras.Model(inputs, x), ["splits"])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_require_finite(small_net, x, value, compiled):
    model = small_net("net")
    kernel = model.layers[4].kernel
    kernel.assign(tf.fill(kernel.shape, value))

    def run(require_finite):
        extractor = FeatureExtractor(
            model, ["stage1", "stage2"], require_finite=require_finite
        )
        return (tf.function(extractor) if compiled else extractor)(x)

    assert not np.isfinite(run(False).maps[1]).all()
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="features of 'net' must be finite.* at layer 'stage2'",
    ):
        run(True)


def test_stages_of_odd_sizes_pair():
    """28 pixels become 14, 7, and 3 (VGG) or 4 (MobileNet)."""
    student = models.get("mobilenet", (28, 28, 1), 10)
    teacher = models.get("vgg7", (28, 28, 1), 10)
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    assert pair(student, teacher) == list(zip(stages, stages, strict=True))


@pytest.mark.parametrize("name", ["vgg7", "wrn_10_4"])
def test_a_pool_before_the_first_stage_makes_no_stage(name):
    model = models.get(name, (64, 64, 3), 10)
    ends = stage_ends(model)
    assert list(ends.values()) == [f"stage{i + 1}" for i in range(len(ends))]


# --- logits and embedding


def ending(*layers):
    """Maps, their average, and the given layers."""
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    outputs = keras.layers.GlobalAveragePooling2D(name="average")(outputs)
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="net")


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [keras.layers.Dense(3)],
        lambda: [keras.layers.Dense(3, activation="softmax")],
        lambda: [keras.layers.Dense(3, activation="softmax", use_bias=False)],
        lambda: [keras.layers.Dense(3), keras.layers.Softmax()],
        lambda: [keras.layers.Dense(3), keras.layers.Activation("softmax")],
        lambda: [keras.layers.Dropout(0.5), keras.layers.Dense(3)],
    ],
    ids=["linear", "dense", "no_bias", "layer", "activation", "dropout"],
)
def test_logits_and_embedding(layers, x):
    model = ending(*layers())
    extractor = FeatureExtractor(model, ["conv"], ["logits", "embedding"])
    found = extractor(x)
    np.testing.assert_array_equal(found.outputs, model(x))
    outputs = found.outputs.numpy()
    if outputs.sum(-1) == pytest.approx(1.0, rel=1e-5):
        outputs = np.log(outputs)  # the logits, but for a shift
        logits = found.logits - np.log(np.exp(found.logits).sum(-1))[:, None]
        np.testing.assert_allclose(logits, outputs, atol=1e-6)
    else:
        np.testing.assert_array_equal(found.logits, outputs)
    average = found.maps[0].numpy().mean((1, 2))
    np.testing.assert_allclose(found.embedding, average, rtol=1e-5)
    assert extractor.shapes.logits == (None, 3)
    assert extractor.shapes.embedding == (None, 4)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_split_goes_on_with_its_first_part(activation, x):
    """At the embedding and at the output, the last sensing points."""
    model = ending(keras.layers.Dense(3, activation=activation, name="last"))
    extractor = FeatureExtractor(
        model,
        ["average", "last"],
        ["logits", "embedding"],
        split=lambda feature: (3 * feature, feature),
    )
    found = extractor(x)
    average = model.get_layer("average").input
    average = keras.Model(model.input, average)(x).numpy().mean((1, 2))
    np.testing.assert_allclose(found.forks[0], average, rtol=1e-5)
    np.testing.assert_allclose(found.embedding, 3 * average, rtol=1e-5)
    outputs = model.get_layer("last")(3 * average)
    np.testing.assert_allclose(found.forks[1], outputs, rtol=1e-5)
    np.testing.assert_allclose(found.outputs, 3 * outputs, rtol=1e-5)
    kernel = model.get_layer("last").kernel
    logits = 3 * average @ kernel.numpy()
    scale = 3 if activation is None else 1
    np.testing.assert_allclose(found.logits, scale * logits, rtol=1e-4)


class Calling(keras.Model):
    def __init__(self, body, last):
        super().__init__()
        self.body, self.last = body, last

    def call(self, inputs):
        return self.last(self.body(inputs))


def fused(kind):
    """A network that ends in a Dense layer with a softmax of its own.

    Gives the network, the layer's path and what comes before it.
    """
    body = ending()
    last = keras.layers.Dense(3, activation="softmax", name="last")
    if kind == "code":
        model = Calling(body, last)
        model(np.zeros((1, 8, 8, 1), "float32"))
        return model, "last", body
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, last(body(inputs)), name="inner")
    if kind == "graph":
        return model, "last", body
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, model(inputs)), "inner/last", body


@pytest.mark.parametrize("kind", ["graph", "nested", "code"])
@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize(
    "needs", [[], ["logits", "embedding", "maps_before_activation"]]
)
def test_a_point_of_logits_is_before_a_softmax_of_its_layer(
    kind, splits, needs, x
):
    model, path, body = fused(kind)
    extractor = FeatureExtractor(
        model,
        [path],
        needs,
        [path],
        split=(lambda feature: (2 * feature, 3 * feature)) if splits else None,
        logits=[path],
    )
    found = extractor(x)
    logits = body(x).numpy() @ find_layer(model, path).kernel.numpy()
    expected = {"maps_before_activation": [logits], "embedding": body(x)}
    if splits:
        np.testing.assert_allclose(found.forks[0], 3 * logits, 1e-4)
        logits = 2 * logits
    else:
        np.testing.assert_array_equal(found.outputs, model(x))
    np.testing.assert_allclose(found.maps[0], logits, 1e-4)
    np.testing.assert_allclose(found.outputs, tf.nn.softmax(logits), 1e-4)
    np.testing.assert_array_equal(found.layers[path], found.outputs)
    for name in needs:
        wanted = {**expected, "logits": logits}[name]
        np.testing.assert_allclose(getattr(found, name), wanted, 1e-4)
    assert find_layer(model, path).activation is keras.activations.softmax
    assert extractor.shapes.maps == [(None, 3)]


def test_logits_share_the_weights_of_a_softmax_layer(x):
    model = ending(keras.layers.Dense(3, activation="softmax", name="last"))
    extractor = FeatureExtractor(model, [], ["logits"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(extractor(x).logits ** 2)
    kernel = model.get_layer("last").kernel
    assert np.abs(tape.gradient(loss, kernel.value)).max() > 0
    before = extractor(x).logits
    kernel.assign(2 * kernel)
    np.testing.assert_allclose(extractor(x).logits, 2 * before, rtol=1e-5)


def test_logits_and_embedding_around_a_nested_model(x):
    model = wrapped(backbone())
    points = ["backbone/front", "backbone/back"]
    found = FeatureExtractor(model, points, ["logits", "embedding"])(x)
    np.testing.assert_allclose(
        found.embedding, found.maps[1].numpy().mean((1, 2)), rtol=1e-5
    )
    np.testing.assert_array_equal(found.logits, model(x))


def test_refuses_an_embedding_that_cannot_be_told():
    inputs = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(3, 8)(inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(maps), name="net")
    with pytest.raises(ValueError, match=r"gets vectors .*'net'"):
        FeatureExtractor(model, [], ["embedding"])


@pytest.mark.parametrize(
    ("last", "form"),
    [
        (
            lambda: keras.layers.Conv2D(3, 8, activation="softmax"),
            "softmax",
        ),
        (lambda: keras.layers.Softmax(), None),
    ],
    ids=["classes stay", "classes mix"],
)
def test_probabilities_that_are_only_reshaped(last, form, x):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.AveragePooling2D(8),
            keras.layers.UpSampling2D(8),
            last(),
            keras.layers.Flatten(),
            keras.layers.Reshape((-1,)),
        ]
    )
    extractor = FeatureExtractor(model, [], ["logits"])
    assert extractor.ends == (form, form is not None)
    x = np.repeat(x, 3, axis=-1)
    found = extractor(x)
    np.testing.assert_array_equal(found.logits, model(x))


@pytest.mark.parametrize("need", ["logits", "embedding"])
def test_require_finite_covers_logits_and_embedding(need, x):
    model = ending(keras.layers.Dense(3, name="last"))
    for layer in ("conv", "last"):
        kernel = model.get_layer(layer).kernel
        kernel.assign(tf.fill(kernel.shape, float("nan")))
    extractor = FeatureExtractor(model, [], [need], require_finite=True)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=f"features of 'net' must be finite.* at its {need}",
    ):
        extractor(x)


@pytest.mark.parametrize("where", ["head", "network"])
def test_logits_and_embedding_inside_of_what_a_network_ends_in(where, x):
    """A softmax there must not pass for logits."""
    inner = ending(
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, activation="softmax", name="last"),
    )
    average, last = inner.get_layer("average"), inner.get_layer("last")
    scaled = keras.layers.Rescaling(2.0)
    if where == "network":
        model = keras.Sequential([keras.Input((8, 8, 1)), scaled, inner])
    else:
        inputs = keras.Input((8, 8, 1))
        outputs = average(inner.get_layer("conv")(scaled(inputs)))
        head = keras.Sequential([keras.layers.Dropout(0.5), last])
        model = keras.Model(inputs, head(outputs))
    extractor = FeatureExtractor(model, [], ["logits", "embedding"])
    assert extractor.shapes.embedding == (None, 4)
    found = tf.function(extractor)(x)
    embedding = average(inner.get_layer("conv")(2 * x))
    close = dict(rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.embedding, embedding, **close)
    np.testing.assert_allclose(
        found.logits, embedding @ last.kernel + last.bias, **close
    )
    np.testing.assert_allclose(found.outputs, model(x), **close)


def test_a_convolution_of_one_position_can_classify(x):
    """As in MobileNetV3."""
    inputs = keras.Input((8, 8, 1))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    hidden = keras.layers.Conv2D(5, 1, name="hidden")(pooled)
    scores = keras.layers.Conv2D(3, 1, name="scores")(hidden)
    outputs = keras.layers.Softmax()(keras.layers.Flatten()(scores))
    model = keras.Model(inputs, outputs)
    extractor = FeatureExtractor(
        model, [], ["logits", "embedding"], ["hidden", "scores"]
    )
    assert extractor.shapes.embedding == (None, 5)
    found = extractor(x)
    np.testing.assert_array_equal(
        found.embedding, found.layers["hidden"][:, 0, 0]
    )
    np.testing.assert_array_equal(found.logits, found.layers["scores"][:, 0, 0])


@pytest.mark.parametrize(
    ("operation", "form"),
    [
        (lambda outputs: outputs / 2.0, None),
        (keras.ops.softmax, "softmax"),
        (keras.ops.sigmoid, "sigmoid"),
    ],
)
def test_a_network_that_ends_in_operations(operation, form, x):
    inner = ending(keras.layers.Dense(3))
    model = keras.Model(inner.input, operation(inner.output))
    extractor = FeatureExtractor(model, [], ["logits", "embedding"])
    assert extractor.ends == (form, False)
    assert extractor.shapes.embedding == (None, 4)
    logits = inner(x) if form else inner(x) / 2
    np.testing.assert_allclose(extractor(x).logits, logits, rtol=1e-6)


@pytest.mark.parametrize("function", [keras.ops.softmax, tf.nn.softmax])
def test_a_softmax_of_another_module_is_one(function, x):
    model = ending(keras.layers.Dense(3, activation=function))
    found = FeatureExtractor(model, [], ["logits"])(x)
    np.testing.assert_allclose(tf.nn.softmax(found.logits), found.outputs)


def test_an_activation_inside_of_a_layer_is_not_its_end():
    inputs = keras.Input((6, 2))
    outputs = keras.layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
    outputs = keras.layers.GlobalAveragePooling1D()(outputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(outputs))
    extractor = FeatureExtractor(model, ["lstm"], ["maps_before_activation"])
    found = extractor(np.ones((2, 6, 2), "float32"))
    np.testing.assert_array_equal(
        found.maps_before_activation[0], found.maps[0]
    )


def test_a_point_inside_of_a_model_of_several_outputs(x):
    inner = backbone()
    both = [inner.get_layer("front").output, inner.output]
    inner = keras.Model(inner.input, both, name="backbone")
    inputs = keras.Input((8, 8, 1))
    front, back = inner(inputs)
    pools = [keras.layers.GlobalMaxPooling2D()(each) for each in (front, back)]
    outputs = keras.layers.Dense(3)(keras.layers.Concatenate()(pools))
    model = keras.Model(inputs, outputs)
    points = ["backbone/front", "backbone/back"]
    assert list(stage_ends(model).values()) == points
    found = FeatureExtractor(model, points)(x)
    for ours, theirs in zip(found.maps, inner(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(found.outputs, model(x), atol=1e-6)
    with pytest.raises(ValueError, match="one output. Received: 'backbone'"):
        FeatureExtractor(model, ["backbone"])


def test_operations_inside_of_a_last_layer():
    """What they give can't be told."""
    inputs = keras.Input((6, 2))
    recurrent = keras.layers.Bidirectional(keras.layers.LSTM(2))
    outputs = recurrent(inputs)
    extractor = FeatureExtractor(keras.Model(inputs, outputs), [], ["logits"])
    assert extractor.ends == (None, False)
    outputs = keras.layers.Activation("linear")(outputs)
    model = keras.Model(inputs, outputs)
    extractor = FeatureExtractor(model, [], ["logits"])
    assert extractor.ends == (None, False)
    x = np.ones((2, 6, 2), "float32")
    np.testing.assert_array_equal(extractor(x).logits, model(x))
