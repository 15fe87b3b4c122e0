"""Pairs of networks of every kind: trained, saved, loaded, exported."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness import pairs
from keras_mhgd import export, methods

# Data stays in graphs, which is all right.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Even though the `tf.config.experimental_run_functions_eagerly"
)
layers = keras.layers
IMAGE, LENGTH, WORDS, CLASSES, COUNT = (12, 12, 3), 6, 11, 3, 8
LABELS = np.arange(COUNT) % CLASSES


def values(*shape):
    return np.random.default_rng(0).normal(size=(COUNT, *shape)).astype("f")


def convolutions(x, widths, each=1, prefix="stage"):
    """Stages of halved resolution; each ends in an activation `stage<i>`."""
    for stage, width in enumerate(widths, start=1):
        for index in range(each):
            stride = 2 if stage > 1 and index == 0 else 1
            x = layers.Conv2D(width, 3, stride, padding="same")(x)
            x = layers.BatchNormalization()(x)
            name = f"{prefix}{stage}" if index == each - 1 else None
            x = layers.ReLU(name=name)(x)
    return x


def classifier(x, units=CLASSES, activation=None):
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(units, activation, name="scores")(x)


def functional(widths, each=1, name=None, **head):
    inputs = keras.Input(IMAGE)
    x = convolutions(inputs, widths, each)
    return keras.Model(inputs, classifier(x, **head), name=name)


def sequential(widths):
    model = [keras.Input(IMAGE)]
    for width in widths:
        model += [layers.Conv2D(width, 3, activation="relu", name=f"c{width}")]
        model += [layers.MaxPooling2D(name=f"p{width}")]
    model += [layers.Flatten(), layers.Dense(7, "relu", name="hidden")]
    return keras.Sequential([*model, layers.Dropout(0.2), layers.Dense(3)])


def nested(widths, each):
    """A backbone inside of a model, after a layer that scales."""
    inputs = keras.Input(IMAGE)
    backbone = keras.Model(
        inputs, convolutions(inputs, widths, each), name="backbone"
    )
    x = backbone(layers.Rescaling(2.0)(inputs))
    return keras.Model(inputs, classifier(x))


@keras.saving.register_keras_serializable("test_pairs")
class Residual(layers.Layer):
    """A block of layers that halves the resolution."""

    def __init__(self, width, stride, **kwargs):
        super().__init__(**kwargs)
        self.width, self.stride = width, stride
        self.convolution = layers.Conv2D(width, 3, stride, padding="same")
        self.shortcut = layers.Conv2D(width, 1, stride)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.convolution.build(shape)
        self.shortcut.build(shape)
        self.norm.build(self.convolution.compute_output_shape(shape))

    def call(self, x, training=False):
        y = self.norm(self.convolution(x), training=training)
        return keras.ops.relu(self.shortcut(x) + y)

    def get_config(self):
        config = {"width": self.width, "stride": self.stride}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("test_pairs")
class Subclassed(keras.Model):
    """Blocks, average and scores, called by code."""

    def __init__(self, widths, **kwargs):
        super().__init__(**kwargs)
        self.widths = list(widths)
        self.blocks = [
            Residual(width, 2 if index else 1, name=f"block{index}")
            for index, width in enumerate(widths)
        ]
        self.average = layers.GlobalAveragePooling2D()
        self.scores = layers.Dense(CLASSES)

    def call(self, inputs, training=False):
        x = inputs
        for block in self.blocks:
            x = block(x, training=training)
        return self.scores(self.average(x))

    def get_config(self):
        return {**super().get_config(), "widths": self.widths}


@keras.saving.register_keras_serializable("test_pairs")
class SubclassedOfTwo(Subclassed):
    """Takes a dict of an image and numbers."""

    def call(self, inputs, training=False):
        x = inputs["image"]
        for block in self.blocks:
            x = block(x, training=training)
        x = keras.ops.concatenate([self.average(x), inputs["numbers"]], -1)
        return self.scores(x)


def called(network, x):
    network(x)
    return network


def of_two(structure, widths, hidden):
    """An image and numbers, in a list or a dict."""
    inputs = {
        "numbers": keras.Input((4,), name="numbers"),
        "image": keras.Input(IMAGE, name="image"),
    }
    x = convolutions(inputs["image"], widths)
    x = layers.GlobalAveragePooling2D()(x)
    y = layers.Dense(hidden, "relu", name="numbers_hidden")(inputs["numbers"])
    x = layers.Dense(hidden, "relu")(layers.Concatenate()([x, y]))
    return keras.Model(of(structure, inputs), layers.Dense(CLASSES)(x))


def of(structure, inputs):
    return inputs if structure is dict else list(inputs.values())


@keras.saving.register_keras_serializable("test_pairs")
class Positions(layers.Layer):
    """Adds a learnt vector to each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x):
        return x + self.table


def transformer(x, width, depth):
    for index in range(depth):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(2, width // 2)(y, y)
        x = layers.Add(name=f"attended{index}")([x, y])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(width, "gelu")(y)
        x = layers.Add(name=f"block{index}")([x, layers.Dense(width)(y)])
    return layers.LayerNormalization()(x)


def vit(width, depth):
    """Patches of 4 x 4 pixels as a sequence of 9."""
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(width, 4, 4, name="patches")(inputs)
    x = layers.Reshape((-1, width))(x)
    x = transformer(Positions()(x), width, depth)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def attention_on_words(width, depth):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = Positions()(layers.Embedding(WORDS, width)(inputs))
    x = transformer(x, width, depth)[:, 0]
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def convolutions_on_words(*widths):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, 5)(inputs)
    for index, width in enumerate(widths):
        x = layers.Conv1D(width, 3, padding="same", name=f"c{index}")(x)
        x = layers.ReLU(name=f"a{index}")(x)
    x = layers.GlobalMaxPooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def perceptron(*widths):
    x = inputs = keras.Input((9,))
    x = layers.Normalization()(x)
    for index, width in enumerate(widths):
        x = layers.Dense(width, name=f"d{index}")(x)
        x = layers.LeakyReLU(name=f"a{index}")(x)
        x = layers.Dropout(0.1)(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def named(*names):
    return [(name, name) for name in names]


def scores(from_logits=True):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


@dataclasses.dataclass
class Pair:
    """Two networks, their data, the points that they are paired by."""

    student: Callable[[], keras.Model]
    teacher: Callable[[], keras.Model]
    points: Sequence[tuple[str, str]]
    methods: Sequence[str] = ("soft_logits", "fitnet")
    x: Any = dataclasses.field(default_factory=lambda: values(*IMAGE))
    y: np.ndarray = dataclasses.field(default_factory=lambda: LABELS)
    loss: keras.losses.Loss = dataclasses.field(default_factory=scores)


TWO = {"numbers": values(4), "image": values(*IMAGE)}
TEXT = np.random.default_rng(0).integers(WORDS, size=(COUNT, LENGTH))
HALVES = np.arange(COUNT) % 2

PAIRS = {
    "functional": Pair(
        lambda: functional([4, 6]),
        lambda: functional([6, 8, 10], each=2),
        named("stage1", "stage2"),
        ("dkd", "attention_transfer"),
    ),
    "sequential of functional": Pair(
        lambda: sequential([4, 5]),
        lambda: functional([6, 8, 10]),
        [("c4", "stage1"), ("c5", "stage3")],  # 12 and 3 pixels
        ("rkd", "kd_svd"),
    ),
    "nested": Pair(
        lambda: functional([4, 6, 8]),
        lambda: nested([6, 8, 10], each=2),
        [(f"stage{i}", f"backbone/stage{i}") for i in (1, 2, 3)],
        ("soft_logits", "overhaul"),
    ),
    "subclassed": Pair(
        lambda: called(Subclassed([4, 6]), values(*IMAGE)),
        lambda: called(Subclassed([6, 8, 9]), values(*IMAGE)),
        named("block0", "block1"),
        ("rkd", "similarity_preserving"),
    ),
    "subclassed of functional": Pair(
        lambda: called(Subclassed([4, 6]), values(*IMAGE)),
        lambda: functional([6, 8, 10]),
        [("block0", "stage1"), ("block1", "stage2")],
        ("dist", "review_kd"),
    ),
    "subclassed of several inputs": Pair(
        lambda: called(SubclassedOfTwo([4, 6]), TWO),
        lambda: of_two(dict, [6, 8, 10], 9),
        [("block0", "stage1"), ("block1", "stage2")],
        ("pkt", "fitnet"),
        x=TWO,
    ),
    "dict of inputs": Pair(
        lambda: of_two(dict, [4, 6], 5),
        lambda: of_two(dict, [6, 8, 10], 9),
        named("stage1", "stage2"),
        ("dkd", "fitnet"),
        x=TWO,
    ),
    "list of inputs": Pair(
        lambda: of_two(list, [4, 6], 5),
        lambda: of_two(list, [6, 8, 10], 9),
        named("stage1", "stage2"),
        ("rkd", "attention_transfer"),
        x=of(list, TWO),
    ),
    "transformer of convolutions": Pair(
        lambda: vit(4, 2),
        lambda: functional([6, 8, 10]),
        [("block0", "stage1"), ("attended1", "stage2"), ("block1", "stage3")],
        ("dkd", "rkd"),
    ),
    "transformers": Pair(
        lambda: vit(4, 1),
        lambda: vit(6, 2),
        [("attended0", "block0"), ("block0", "block1")],
        ("soft_logits", "similarity_preserving"),
    ),
    "text, attention": Pair(
        lambda: attention_on_words(4, 1),
        lambda: attention_on_words(6, 2),
        [("attended0", "block0"), ("block0", "block1")],
        ("pkt", "attention_transfer"),
        x=TEXT,
    ),
    "text, convolutions of attention": Pair(
        lambda: convolutions_on_words(4, 5),
        lambda: attention_on_words(6, 2),
        [("a0", "block0"), ("a1", "block1")],
        ("dkd", "nst"),
        x=TEXT,
    ),
    "vectors": Pair(
        lambda: perceptron(5, 4),
        lambda: perceptron(8, 7, 6),
        [("a0", "a1"), ("a1", "a2")],
        ("rkd", "fitnet"),
        x=values(9),
    ),
    "one logit": Pair(
        lambda: functional([4, 6], units=1),
        lambda: functional([6, 8], units=1),
        named("stage1", "stage2"),
        ("soft_logits", "crd"),
        y=HALVES,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    ),
    "one probability": Pair(
        lambda: functional([4, 6], units=1, activation="sigmoid"),
        lambda: functional([6, 8], units=1, activation="sigmoid"),
        named("stage1", "stage2"),
        ("soft_logits", "kd_svd"),
        y=HALVES[:, np.newaxis],
        loss=keras.losses.BinaryCrossentropy(),
    ),
    "one-hot": Pair(
        lambda: functional([4, 6], activation="softmax"),
        lambda: functional([6, 8], activation="softmax"),
        named("stage1", "stage2"),
        ("dkd", "vid"),
        y=np.eye(CLASSES, dtype="float32")[LABELS],
        loss=keras.losses.CategoricalCrossentropy(),
    ),
}


@pytest.fixture
def eagerly():
    """Without graphs of operations: most of the time goes to build them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def compiled(pair, method):
    distiller = keras_mhgd.Distiller(pair.student(), pair.teacher(), method)
    distiller.compile("sgd", pair.loss, metrics=["accuracy"], jit_compile=False)
    return distiller


def train(distiller, pair):
    history = distiller.fit(pair.x, pair.y, batch_size=4, verbose=0).history
    terms = distiller.terms
    assert set(history) == {"loss", "task_loss", "accuracy", *terms}
    assert np.isfinite(list(history.values())).all()


def weights(network):
    return [weight.copy() for weight in network.get_weights()]


def equal(ours, theirs):
    return all(np.array_equal(*each) for each in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_transfers_graphs_saves_and_loads(name, eagerly, tmp_path):
    pair = PAIRS[name]
    distiller = compiled(pair, methods.MHGD(num_heads=2, preparation_epochs=1))
    assert list(distiller.sensing_points) == pair.points
    student, teacher = distiller.student, distiller.teacher
    before = weights(student), weights(teacher)
    train(distiller, pair)
    assert not equal(weights(student), before[0])
    assert equal(weights(teacher), before[1])

    result = distiller.evaluate(pair.x, pair.y, verbose=0, return_dict=True)
    assert set(result) == {"loss", "accuracy"}
    predicted = distiller.predict(pair.x, verbose=0)
    np.testing.assert_allclose(predicted, student(pair.x), atol=1e-5)

    distiller.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    assert loaded.sensing_points == distiller.sensing_points
    for ours, theirs in zip(
        [distiller.student, distiller.teacher, *distiller.methods],
        [loaded.student, loaded.teacher, *loaded.methods],
        strict=True,
    ):
        assert equal(weights(ours), weights(theirs))
    np.testing.assert_allclose(loaded(pair.x), predicted, atol=1e-5)
    graphs = weights(loaded.methods[0].mhan)
    train(loaded, pair)
    assert equal(weights(loaded.methods[0].mhan), graphs)  # not prepared again
    assert not equal(weights(loaded.student), weights(student))


@pytest.mark.slow
def test_logits_are_sensed_before_a_softmax_of_the_classifier():
    """Training is that of networks whose softmax is a layer of its own."""
    loss = keras.losses.SparseCategoricalCrossentropy()
    trained = []
    for activation in ("softmax", None):
        keras.utils.set_random_seed(0)
        networks = [
            functional([4, 6], activation=activation),
            functional([6, 8], activation=activation),
        ]
        if activation is None:
            networks = [
                keras.Model(network.input, layers.Softmax()(network.output))
                for network in networks
            ]
        mhgd = methods.CrossMHGD(num_heads=2, preparation_epochs=2)
        distiller = keras_mhgd.Distiller(*networks, [mhgd, "soft_logits"])
        assert distiller.sensing_points[-1] == ("scores", "scores")
        distiller.compile("sgd", loss)
        distiller.fit(values(*IMAGE), LABELS, 4, shuffle=False, verbose=0)
        trained.append(weights(distiller))
    for ours, theirs in zip(*trained, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_other_methods(name):
    pair = PAIRS[name]
    distiller = compiled(pair, pair.methods)
    before = weights(distiller.student)
    train(distiller, pair)
    assert not equal(weights(distiller.student), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "functional",
        "sequential of functional",
        "subclassed",
        "subclassed of several inputs",
        "dict of inputs",
        "list of inputs",
        "transformers",
        "text, attention",
        "text, convolutions of attention",
        "vectors",
        "one probability",
    ],
)
def test_the_student_leaves_alone(name, tmp_path):
    pair = PAIRS[name]
    distiller = compiled(pair, pair.methods)
    student = distiller.student
    others = [*distiller.teacher.variables, *distiller.methods[0].variables]
    assert not set(map(id, others)) & set(map(id, student.variables))
    assert len(student.weights) == len(pair.student().weights)
    expected = student(pair.x).numpy()

    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert equal(weights(loaded), weights(student))
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded(pair.x), expected, **close)
    if isinstance(pair.x, np.ndarray):
        for file in export.export_student(student, tmp_path, pair.x):
            found = export.load(file.path)(pair.x)
            np.testing.assert_allclose(found, expected, **close)
    else:
        distiller.export(tmp_path / "saved", verbose=False)
        serve = keras.layers.TFSMLayer(
            tmp_path / "saved", call_endpoint="serve"
        )
        np.testing.assert_allclose(serve(pair.x), expected, **close)


@pytest.mark.slow
def test_networks_of_keras_applications(eagerly, tmp_path):
    shape = (64, 64, 3)
    student = keras.applications.MobileNetV2(
        shape, alpha=0.35, weights=None, classes=CLASSES
    )
    teacher = keras.applications.ResNet50V2(
        weights=None, input_shape=shape, classes=CLASSES
    )
    x, y = np.zeros((4, *shape), "float32"), LABELS[:4]
    x += np.random.default_rng(0).normal(size=x.shape)
    distiller = keras_mhgd.Distiller(
        student,
        teacher,
        [
            methods.MHGD(num_heads=2, preparation_epochs=1),
            "dkd",
            "rkd",
            "attention_transfer",
        ],
    )
    assert distiller.sensing_points == (
        ("block_2_add", "conv2_block2_out"),
        ("block_5_add", "conv3_block3_out"),
        ("block_12_add", "conv4_block5_out"),
        ("out_relu", "post_relu"),
    )
    distiller.compile("sgd", scores(from_logits=False), jit_compile=False)
    history = distiller.fit(x, y, verbose=0).history
    assert set(history) == {"loss", "task_loss", *distiller.terms}
    assert np.isfinite(list(history.values())).all()
    distiller.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    np.testing.assert_allclose(loaded(x), student(x), atol=1e-5)


def in_one_test(names):
    """Those of large networks take seconds to build and train."""
    few = ("MobileNetV3Small", "ResNet50V2"), ("MobileNetV2", "DenseNet121")
    marks = [] if names in few else [pytest.mark.slow]
    return pytest.param(names, marks=marks, id=" of ".join(names))


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [in_one_test(names) for names in pairs.APPLICATIONS]
)
def test_pairs_of_the_page_train(names, eagerly):
    """One step, by the points that docs/pairs.md tells."""
    student, teacher = map(pairs.build, names)
    distiller = keras_mhgd.Distiller(
        student, teacher, ["similarity_preserving", "review_kd"]
    )
    line = pairs.row(names, distiller.sensing_points)
    assert line in pairs.PAGE.read_text()
    sizes = [
        keras_mhgd.features.find_layer(student, point).output.shape[1]
        for point, _ in distiller.sensing_points
    ]
    assert 3 <= len(sizes) <= 4
    assert max(sizes) <= pairs.IMAGE[0] // 4
    distiller.compile("sgd", scores(from_logits=False), jit_compile=False)
    x = np.random.default_rng(0).uniform(size=(2, *pairs.IMAGE))
    before = student.trainable_variables[0].numpy()
    history = distiller.fit(x, LABELS[:2], verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert not np.array_equal(student.trainable_variables[0], before)


def test_the_page_has_those_pairs():
    lines = pairs.PAGE.read_text().splitlines()
    found = [
        tuple(line.split(" | ")[:2])
        for line in lines
        if line.startswith("| ") and "<-" in line
    ]
    assert found == [
        (f"| {student}", teacher)
        for student, teacher in (*pairs.APPLICATIONS, *pairs.HUB_PAIRS)
    ]


def without_embedding(widths):
    """Class scores of each position, then their average."""
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(CLASSES, 1)(convolutions(inputs, widths))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="all")


def ending_in_operations(widths):
    inner = functional(widths)
    return keras.Model(inner.input, inner.output / 2.0, name="halved")


def test_logits_that_cannot_be_told_are_refused_when_compiled():
    message = "whether a network gives logits .*the output of the teacher, whi"
    model = keras_mhgd.Distiller(
        functional([4, 6]), ending_in_operations([6, 8]), "soft_logits"
    )
    with pytest.raises(ValueError, match=message):
        model.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )


@pytest.mark.parametrize(
    ("method", "student", "teacher", "message"),
    [
        (
            "attention_transfer",
            lambda: perceptron(5, 4),
            lambda: perceptron(8, 7, 6),
            r"AttentionTransfer compares positions: .*one position.* in "
            r"common. Received: shapes \(None, 5\) and \(None, 7\) at point 0. "
            "Choose `sensing_points` before",
        ),
        (
            "review_kd",
            lambda: attention_on_words(4, 1),
            lambda: attention_on_words(6, 2),
            "ReviewKD resizes maps: .*must be a map .*Received: shape "
            r"\(None, 6, 4\). Choose other `sensing_points`",
        ),
        (
            "factor_transfer",
            lambda: convolutions_on_words(4, 5),
            lambda: convolutions_on_words(5, 6),
            "FactorTransfer convolves: .*Received: shapes .* Choose another",
        ),
        (
            "fitnet",
            lambda: vit(4, 2),
            lambda: functional([6, 8]),
            "both be `maps .*or both `sequences .*Received: shapes "
            r"\(None, 9, 4\) and \(None, 12, 12, 6\). Choose other",
        ),
        (
            "rkd",
            lambda: without_embedding([4, 6]),
            lambda: functional([6, 8]),
            "reads the embedding must get networks whose classifier.* gets "
            r"vectors \(batch, D\). Received: 'all', .*Choose another method",
        ),
        (
            "mhgd",
            lambda: convolutions_on_words(4),
            lambda: convolutions_on_words(5, 6),
            r"`sensing_points` must give 2 or more.* \[\('a0', 'a1'\)\]. Pass",
        ),
        (
            "soft_logits",
            lambda: functional([4, 6], units=4),
            lambda: functional([6, 8]),
            r"same number of classes. Received: outputs \(4,\) of the student",
        ),
        (
            "soft_logits",
            lambda: perceptron(4),
            lambda: functional([6, 8]),
            r"same input shape, .* Received: \(9,\) .*, \(12, 12, 3\) float32",
        ),
    ],
)
def test_refuses_by_name_what_cannot_be(method, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(student(), teacher(), method)
