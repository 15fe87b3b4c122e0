"""Sensing points that nobody named."""

import keras
import pytest

from keras_mhgd import models
from keras_mhgd.features import (
    FeatureExtractor,
    block_ends,
    logits_end,
    pair,
    stage_ends,
)


def convolutions(*strides, size=32):
    """One convolution `c<i>` a stride, and a head."""
    x = inputs = keras.Input((size, size, 3))
    for index, stride in enumerate(strides):
        x = keras.layers.Conv2D(4, 3, stride, padding="same", name=f"c{index}")(
            x
        )
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def perceptron(*units):
    """Hidden layers `h<i>` with activations `a<i>` of their own."""
    x = inputs = keras.Input((12,))
    for index, width in enumerate(units):
        x = keras.layers.Dense(width, name=f"h{index}")(x)
        x = keras.layers.ReLU(name=f"a{index}")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(6)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return inputs + self.dense(inputs)


def transformer(blocks, custom):
    """Residual blocks, as layers of layers or as plain sums."""
    inputs = keras.Input((10,))
    x = keras.layers.Embedding(20, 6, name="embedding")(inputs)
    for index in range(blocks):
        if custom:
            x = Block(name=f"block{index}")(x)
            continue
        y = keras.layers.LayerNormalization(name=f"norm{index}")(x)
        y = keras.layers.MultiHeadAttention(2, 3, name=f"attend{index}")(y, y)
        x = keras.layers.Add(name=f"sum{index}")([x, y])
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        # Every stage of the student has a partner of its resolution.
        ((1, 2), (1, 2, 2), [("c0", "c0"), ("c1", "c1")]),
        # One resolution in common is not enough: by order, last with last.
        ((1, 2, 2), (4, 2, 2, 2), [("c0", "c1"), ("c1", "c2"), ("c2", "c3")]),
        ((4, 2, 2), (1, 2, 2), [("c0", "c0"), ("c1", "c1"), ("c2", "c2")]),
        ((1, 4, 4), (2, 4), [("c1", "c0"), ("c2", "c1")]),
    ],
)
def test_stages_of_images(ours, theirs, expected):
    assert pair(convolutions(*ours), convolutions(*theirs)) == expected


def test_networks_of_the_library_with_more_stages():
    """Three stages from full resolution learn from the last three of four."""
    teacher = keras.applications.ResNet50V2(
        weights=None, input_shape=(64, 64, 3), classes=5
    )
    student = models.get("resnet8", (64, 64, 3), 5)
    pairs = pair(student, teacher)
    assert [ours for ours, _ in pairs] == ["stage1", "stage2", "stage3"]
    factors = {path: factor for factor, path in stage_ends(teacher).items()}
    assert [factors[path] for _, path in pairs] == [8, 16, 32]


def test_vectors():
    assert block_ends(perceptron(8, 8, 4)) == ["a0", "a1", "a2"]
    assert pair(perceptron(8, 4), perceptron(16, 16, 8, 8)) == [
        ("a0", "a1"),
        ("a1", "a3"),
    ]
    many = pair(perceptron(*[8] * 6), perceptron(*[9] * 6))
    assert [ours for ours, _ in many] == ["a1", "a2", "a4", "a5"]


def test_sequences():
    assert block_ends(transformer(3, True)) == ["block0", "block1", "block2"]
    assert block_ends(transformer(2, False)) == ["sum0", "sum1"]
    # Images of any size have no resolutions.
    assert block_ends(after_activation(None, 2)) == ["out0", "out1"]
    assert pair(transformer(2, True), transformer(4, False)) == [
        ("block0", "sum1"),
        ("block1", "sum3"),
    ]


conv, norm, relu = (
    keras.layers.Conv2D,
    keras.layers.BatchNormalization,
    keras.layers.ReLU,
)


def ending(inputs, x):
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def after_activation(size=64, stages=3, stem_stride=2, add=None):
    """Residual blocks, `out<i>` after the sum; all but the first stride."""
    add = add or (lambda name: keras.layers.Add(name=name))
    inputs = keras.Input((size, size, 3))
    x = relu(name="stem")(conv(4, 3, stem_stride, padding="same")(inputs))
    for stage in range(stages):
        stride = 2 if stage else 1
        y = conv(2, 1, name=f"reduce{stage}", activation="relu")(x)
        y = conv(8, 3, stride, padding="same")(y)
        x = conv(8, 1, stride)(x)
        x = relu(name=f"out{stage}")(add(f"sum{stage}")([x, y]))
    return ending(inputs, x)


def before_activation():
    """As in ResNetV2 of Keras: the last block of a stage strides."""
    inputs = keras.Input((32, 32, 3))
    x = conv(8, 3, padding="same", name="stem")(inputs)
    for stage in range(2):
        for block in range(2):
            name, stride = f"{stage}{block}", 1 + block
            y = relu(name=f"before{name}")(norm()(x))
            y = relu(name=f"inside{name}")(conv(2, 1)(y))
            y = conv(8, 3, stride, padding="same")(y)
            x = keras.layers.MaxPooling2D(1, stride)(x) if block else x
            x = keras.layers.Add(name=f"sum{name}")([x, y])
    return ending(inputs, relu(name="last")(norm()(x)))


def dense_blocks():
    """Concatenations; a transition normalises, activates, narrows, pools."""
    inputs = keras.Input((32, 32, 3))
    x = conv(4, 3, padding="same")(inputs)
    for stage in range(2):
        for _ in range(2):
            x = keras.layers.Concatenate()([x, conv(4, 3, padding="same")(x)])
        x = relu(name=f"all{stage}")(norm()(x))
        x = conv(4, 1, name=f"narrow{stage}")(x)
        x = keras.layers.AveragePooling2D(2)(x)
    return ending(inputs, conv(4, 3, padding="same", name="last")(x))


def inverted_residuals(ghosts=False):
    """Wide inside, narrow between; the last block of a stage has no sum."""

    def expand(x, name):
        x = conv(12, 1, use_bias=False)(x)
        x = relu(name=f"wide{name}")(norm()(x))
        if ghosts:  # half of it is made from the other half
            y = keras.layers.DepthwiseConv2D(3, padding="same")(x)
            x = keras.layers.Concatenate(name=f"ghosts{name}")([x, y])
        return x

    inputs = x = keras.Input((32, 32, 3))
    for stage in range(2):
        for block in range(3):
            stride = 2 if block == 0 and stage else 1
            name = f"{stage}{block}"
            y = expand(x, name)
            y = keras.layers.DepthwiseConv2D(3, stride, padding="same")(y)
            y = relu()(norm()(y))
            y = norm(name=f"narrow{name}")(conv(4, 1)(y))
            if block == 1:
                y = keras.layers.Add(name=f"sum{name}")([x, y])
            elif ghosts:
                x = conv(4, 1, stride)(x)
                y = keras.layers.Add(name=f"sum{name}")([x, y])
            x = y
    return ending(inputs, relu(name="last")(conv(16, 1)(x)))


def cells(count=3):
    """As in NASNet: each reads the two before it, narrowed inside."""
    inputs = keras.Input((32, 32, 3))
    before = x = conv(6, 3, padding="same")(inputs)
    for cell in range(count):
        stride = 2 if cell == count - 1 else 1
        y, z = (
            conv(3, 3, stride, padding="same", activation="relu")(each)
            for each in (before, x)
        )
        both = keras.layers.Add()([y, z])
        halves = [both, y]
        narrow = keras.layers.Concatenate(name=f"narrow{cell}")(
            [conv(1, 1, activation="relu")(before) for _ in range(2)]
        )
        if stride == 1:
            halves.append(narrow)
        before = x
        x = keras.layers.Concatenate(name=f"cell{cell}")(halves)
        if stride > 1:
            x = keras.layers.Concatenate(name="with_skip")(
                [x, keras.layers.AveragePooling2D(2)(narrow)]
            )
    return ending(inputs, x)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (after_activation, ["out0", "out1", "out2"]),
        # Sums that are no layers: what activates them.
        (
            lambda: after_activation(add=lambda _: lambda x: x[0] + x[1]),
            ["out0", "out1", "out2"],
        ),
        # Not `inside01`, which the first block that strides is narrow at.
        (before_activation, ["sum00", "sum10", "last"]),
        (dense_blocks, ["all0", "all1", "last"]),
        (inverted_residuals, ["narrow02", "last"]),
        (lambda: inverted_residuals(ghosts=True), ["sum02", "last"]),
        (cells, ["cell1", "with_skip"]),
    ],
)
def test_stages_end_where_their_last_block_does(network, expected):
    assert list(stage_ends(network()).values()) == expected


def test_sums_that_nothing_follows():
    """They have no name: the last layer inside of the block stands for it."""
    inputs = x = keras.Input((32, 32, 3))
    for stage in range(2):
        x = conv(4, 3, 1 + stage, padding="same")(x)
        y = conv(4, 3, padding="same", activation="relu")(x)
        x = x + conv(4, 1, name=f"branch{stage}")(y)
    assert list(stage_ends(ending(inputs, x)).values()) == [
        "branch0",
        "branch1",
    ]


@pytest.mark.parametrize(
    ("stages", "stem_stride", "expected"),
    [
        (3, 4, ["out0", "out1", "out2"]),
        (5, 1, ["out1", "out2", "out3", "out4"]),
    ],
)
def test_at_most_four_stages_are_chosen(stages, stem_stride, expected):
    pairs = pair(*[after_activation(64, stages, stem_stride)] * 2)
    assert pairs == [(each, each) for each in expected]


@pytest.mark.parametrize("stages", [2, 3])
def test_a_stem_is_a_point_if_there_is_little_else(stages):
    """It has a resolution, of convolutions alone."""
    inputs = keras.Input((32, 32, 3))
    x = relu(name="stem")(conv(4, 3, padding="same")(inputs))
    for stage in range(stages):
        x = keras.layers.MaxPooling2D()(x)
        y = conv(4, 3, padding="same", activation="relu")(x)
        x = relu(name=f"out{stage}")(keras.layers.Add()([x, y]))
    network = ending(inputs, x)
    blocks = [f"out{stage}" for stage in range(stages)]
    assert list(stage_ends(network).values()) == ["stem", *blocks]
    expected = blocks if stages == 3 else ["stem", *blocks]
    assert pair(network, network) == [(each, each) for each in expected]


def test_stage_ends_without_images():
    assert stage_ends(perceptron(8, 4)) == {}


def test_an_image_beside_another_input():
    image, number = keras.Input((8, 8, 1)), keras.Input((2,))
    x = keras.layers.Conv2D(4, 3, padding="same", name="fine")(image)
    x = keras.layers.Conv2D(4, 3, 2, padding="same", name="coarse")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, number])
    model = keras.Model([number, image], keras.layers.Dense(3)(x))
    assert stage_ends(model) == {1: "fine", 2: "coarse"}


def test_what_scales_channels_or_comes_after_the_pooling_is_no_stage():
    """As in MobileNetV3; `pad2` has the size of the stage before."""
    image = x = keras.Input((16, 16, 3))
    x = keras.layers.Normalization(name="normal")(x)
    for stage in (1, 2):
        x = keras.layers.Conv2D(4, 3, 2, padding="same", name=f"c{stage}")(x)
        weights = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        weights = keras.layers.Conv2D(4, 1, activation="sigmoid")(weights)
        x = keras.layers.Multiply(name=f"scaled{stage}")([x, weights])
        x = keras.layers.Dropout(0.1)(x)
    x = keras.layers.ZeroPadding2D(2, name="pad2")(x)
    x = keras.layers.Conv2D(4, 5, name="c3")(x)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Conv2D(8, 1, name="hidden")(x)
    x = keras.layers.Conv2D(3, 1, name="scores")(x)
    model = keras.Model(image, keras.layers.Flatten()(x))
    assert stage_ends(model) == {2: "scaled1", 4: "c3"}


@keras.saving.register_keras_serializable(package="tests")
class Attending(Block):
    """Gives its scores, or `None`, beside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.sum = keras.layers.Add(name="sum")

    def build(self, shape):
        super().build(shape)
        self.sum.build([shape, shape])

    def call(self, inputs):
        return self.sum([inputs, self.dense(inputs)]), None


@keras.saving.register_keras_serializable(package="tests")
class Embedding(Block):
    """Made of layers, and no block."""


@keras.saving.register_keras_serializable(package="tests")
class Encoder(keras.layers.Layer):
    def __init__(self, blocks, **kwargs):
        super().__init__(**kwargs)
        self.blocks = blocks

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


@pytest.mark.parametrize(("kind", "end"), [(Block, ""), (Attending, "/sum")])
def test_blocks_inside_of_an_encoder(kind, end):
    inputs = keras.Input((5, 6))
    blocks = [kind(name=f"block{index}") for index in range(3)]
    x = Encoder(blocks, name="encoder")(Embedding(name="embedding")(inputs))
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    ends = [f"encoder/block{index}{end}" for index in range(3)]
    assert block_ends(model) == ends
    maps = FeatureExtractor(model, ends).shapes.maps
    assert maps == [(None, 5, 6)] * 3


def test_an_embedding_made_of_layers_is_no_block():
    inputs = keras.Input((5, 6))
    x = Embedding(name="embedding")(inputs)
    for index in range(2):
        x = Block(name=f"block{index}")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    assert block_ends(model) == ["block0", "block1"]


def test_patches_of_an_image_become_a_sequence():
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(6, 8, 8, name="patches")(image)
    x = keras.layers.Reshape((16, 6))(x)
    for index in range(3):
        x = Block(name=f"block{index}")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(image, keras.layers.Dense(3)(x))
    assert stage_ends(model) == {}
    assert block_ends(model) == ["block0", "block1", "block2"]
    assert pair(convolutions(1, 2), model) == [
        ("c0", "block1"),
        ("c1", "block2"),
    ]


def test_images_of_one_resolution():
    """And of an unknown one."""
    expected = [("c0", "c1"), ("c1", "c2")]
    assert pair(convolutions(1, 1), convolutions(1, 1, 1)) == expected
    unknown = [
        convolutions(*strides, size=None) for strides in ((1, 2), (1, 2, 2))
    ]
    assert pair(*unknown) == expected


def test_scaling_and_noise_end_no_block():
    x = inputs = keras.Input((12,))
    x = keras.layers.Normalization()(x)
    for index in range(2):
        x = keras.layers.Dense(4, name=f"h{index}")(x)
        x = keras.layers.LayerNormalization(name=f"n{index}")(x)
        x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    assert block_ends(model) == ["n0", "n1"]


@keras.saving.register_keras_serializable(package="tests")
class Stages(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fine = keras.layers.Conv2D(4, 3, padding="same", name="fine")
        self.coarse = keras.layers.Conv2D(4, 3, 2, name="coarse")

    def call(self, inputs):
        return self.coarse(self.fine(inputs))


def test_stages_of_code_inside_of_a_graph():
    image = keras.Input((8, 8, 1))
    x = keras.layers.GlobalAveragePooling2D()(Stages(name="code")(image))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    assert list(stage_ends(model).values()) == ["code/fine", "code/coarse"]


def ending_in(*layers):
    inputs = keras.Input((12,))
    x = keras.layers.Dense(4, name="hidden")(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="net")


def test_logits_end_is_before_a_last_activation():
    dense = keras.layers.Dense
    assert logits_end(ending_in(dense(3, name="scores"))) == "scores"
    softmax = keras.layers.Softmax()
    assert logits_end(ending_in(dense(3, name="scores"), softmax)) == "scores"
    fused = dense(3, activation="softmax", name="probabilities")
    assert logits_end(ending_in(fused)) == "probabilities"
    inner = ending_in(dense(3, name="scores"))
    nested = keras.Sequential([keras.Input((12,)), inner])
    assert logits_end(nested) == "net/scores"
    subclassed = Subclassed()
    subclassed(keras.ops.zeros((1, 12)))
    assert logits_end(subclassed) == "scores"


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.scores = keras.layers.Dense(3, name="scores")
        self.softmax = keras.layers.Softmax()

    def call(self, inputs):
        return self.softmax(self.scores(inputs))


def test_logits_are_a_last_pair_once():
    student, teacher = perceptron(8, 4), perceptron(16, 8)
    pairs = pair(student, teacher, logits=True)
    ends = logits_end(student), logits_end(teacher)
    assert pairs == [*pair(student, teacher), ends]
    assert pair(student, teacher, pairs, logits=True) == pairs
    assert pair(student, teacher, [("a0", "a1")], 1, logits=True) == [
        ("a0", "a1"),
        ends,
    ]
