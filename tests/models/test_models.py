"""The networks against the table of architectures of the publication."""

import functools

import keras
import numpy as np
import pytest

from keras_mhgd import models

NAMES = [*models.names("images"), "wrn_16_2"]
CLASSES = 10
VGG_WIDTHS = (64, 128, 256, 512)
SMALL = (16, 32, 64)


def widths(name):
    """Channels of each stage's output."""
    if name.startswith("wrn"):
        factor = int(name.split("_")[2])
        return tuple(factor * width for width in SMALL)
    if name in ("vgg16", "vgg7", "mobilenet"):
        return VGG_WIDTHS
    return SMALL if name.endswith(("small", "thin")) else (64, 128, 256)


def conv(inputs, outputs, size=3, bias=0):
    return size * size * inputs * outputs + bias * outputs


def norm(channels):
    """Scale, offset, moving mean and moving variance."""
    return 4 * channels


def dense(inputs, outputs):
    return inputs * outputs + outputs


def vgg(convs, stages, hidden, batch_norm, size=32):
    """Convolutions (with bias unless normalised), pools, a dense head."""
    total, channels = 0, 3
    for count, width in zip(convs, stages, strict=True):
        for _ in range(count):
            total += conv(channels, width, bias=not batch_norm)
            total += norm(width) if batch_norm else 0
            channels = width
    features = channels * (size // 2 ** len(stages)) ** 2
    for units in hidden:
        total += dense(features, units)
        features = units
    return total + dense(features, CLASSES)


def basic_block(inputs, outputs, strided):
    """Two convolutions, each normalised; a 1x1 one where shapes change."""
    total = conv(inputs, outputs) + norm(outputs)
    total += conv(outputs, outputs) + norm(outputs)
    if strided or inputs != outputs:
        total += conv(inputs, outputs, size=1) + norm(outputs)
    return total


def resnet(stem, stages, blocks):
    total, channels = conv(3, stem) + norm(stem), stem
    for stage, width in enumerate(stages):
        for block in range(blocks):
            strided = stage > 0 and block == 0
            total += basic_block(channels, width, strided)
            channels = width
    return total + dense(channels, CLASSES)


def wide_resnet(depth, factor):
    """Pre-activation: norms have the width of what enters them."""
    total, channels = conv(3, 16), 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        for block in range((depth - 4) // 6):
            total += norm(channels) + conv(channels, width)
            total += norm(width) + conv(width, width)
            total += conv(channels, width, size=1) if block == 0 else 0
            channels = width
    return total + norm(channels) + dense(channels, CLASSES)


def mobilenet(stem, widths):
    total, channels = conv(3, stem) + norm(stem), stem
    for width in widths:
        total += 9 * channels + norm(channels)
        total += conv(channels, width, size=1) + norm(width)
        channels = width
    return total + dense(channels, CLASSES)


PARAMETERS = {
    "vgg16": lambda: vgg((2, 2, 3, 3), VGG_WIDTHS, (1024, 1024), False),
    "vgg7": lambda: vgg((1, 1, 1, 1), VGG_WIDTHS, (1024, 1024), False),
    "wrn_22_4": lambda: wide_resnet(22, 4),
    "wrn_10_4": lambda: wide_resnet(10, 4),
    "wrn_16_2": lambda: wide_resnet(16, 2),
    "resnet32": lambda: resnet(32, (64, 128, 256), 5),
    "resnet8": lambda: resnet(32, (64, 128, 256), 1),
    "mobilenet": lambda: mobilenet(32, VGG_WIDTHS),
    "vgg_small": lambda: vgg((3, 3, 3), SMALL, (), True),
    "vgg_thin": lambda: vgg((1, 1, 1), SMALL, (), True),
    "resnet_small": lambda: resnet(16, SMALL, 1),
    "mobilenet_small": lambda: mobilenet(16, SMALL),
}


def make(name, size=32, **changes):
    return models.get(name, (size, size, 3), CLASSES, **changes)


@functools.cache
def untouched(name, size=32):
    """Shared by the tests that change nothing."""
    return make(name, size)


def shapes(model):
    layers = {layer.name: layer for layer in model.layers}
    names = [f"stage{i}" for i in range(1, 6) if f"stage{i}" in layers]
    return [layers[name].output.shape[1:] for name in names]


def batch(size=16):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, size, size, 3)).astype("float32")


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_parameters(name):
    model = untouched(name)
    assert model.name == name
    sizes = (32, 16, 8, 4)
    assert shapes(model) == [
        (size, size, width)
        for size, width in zip(sizes, widths(name), strict=False)
    ]
    assert model.output_shape == (None, CLASSES)
    assert model.count_params() == PARAMETERS[name]()


@pytest.mark.parametrize("name", NAMES)
def test_large_images_are_pooled_in_vgg_and_wide_resnets(name):
    model, small = make(name, size=64), untouched(name)
    pooled = name in ("vgg16", "vgg7") or name.startswith("wrn")
    first = 32 if pooled else 64
    assert [shape[0] for shape in shapes(model)] == [
        first // 2**stage for stage in range(len(shapes(small)))
    ]
    pools = [
        sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in m.layers)
        for m in (model, small)
    ]
    assert pools[0] - pools[1] == pooled
    if name not in ("vgg_small", "vgg_thin"):  # dense over 8 x 8 positions
        assert model.count_params() == small.count_params()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_weight_decay_covers_every_trainable_weight(name):
    model = make(name, size=16, weight_decay=0.02)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        # Offsets and biases start at zero, which would hide them.
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    squares = [
        (variable.numpy().astype("float64") ** 2).sum()
        for variable in model.trainable_variables
    ]
    expected = 0.02 / 2 * sum(squares)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    assert len(model.losses) == len(squares)


def test_no_weight_decay():
    assert not make("resnet_small", weight_decay=0.0).losses


@pytest.mark.parametrize("name", NAMES)
def test_variance_scaling_by_fan_out(name):
    """Variance 2 / fan out; a depthwise kernel's fan out is its 9 taps."""
    checked = 0
    for variable in untouched(name).trainable_variables:
        kernel = variable.numpy()
        if kernel.ndim < 2 or kernel.size < 500:
            continue
        fan_out = np.prod(kernel.shape) / kernel.shape[-2]
        # Five standard errors of the deviation of `size` normal values.
        tolerance = 5 / (2 * kernel.size) ** 0.5
        ratio = kernel.std() / (2 / fan_out) ** 0.5
        assert ratio == pytest.approx(1, abs=tolerance), variable.path
        # Truncated at two deviations of the untruncated normal.
        assert np.abs(kernel).max() < 2.3 * (2 / fan_out) ** 0.5
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_logits_are_float32_under_mixed_precision(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make(name, size=16)
    assert model.get_layer("stage1").output.dtype == "bfloat16"
    logits = model(batch())
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


# The large ones are deeper stacks of the same blocks.
LARGE = ("vgg16", "wrn_22_4", "resnet32")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE])
@pytest.mark.slow
def test_saves_and_loads(name, tmp_path):
    model, path = make(name, size=16), tmp_path / f"{name}.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(model(batch()), loaded(batch()))
    assert float(sum(model.losses)) == float(sum(loaded.losses))
    assert shapes(model) == shapes(loaded)


@pytest.mark.parametrize("name", ["vgg16", "vgg7"])
def test_vgg_drops_half_of_each_hidden_dense_layer(name):
    layers = untouched(name).layers
    rates = [
        layer.rate
        for layer in layers
        if isinstance(layer, keras.layers.Dropout)
    ]
    assert rates == [0.5, 0.5]


def test_residual_blocks_add_their_input():
    """With its last kernel at zero a wide block gives the shortcut alone."""
    model = make("wrn_16_2", size=16)
    kernel = model.get_layer("stage2_block2_conv2").kernel
    kernel.assign(np.zeros(kernel.shape))
    block = keras.Model(
        model.input,
        [model.get_layer(f"stage2_block{i}_add").output for i in (1, 2)],
    )
    before, after = block(batch())
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet_smal", "'resnet_small'"),
        ("wrn_22-4", "'wrn_22_4'"),
        ("VGG16", None),
        ("mobilenet_v2", "'mobilenet'"),
        (None, None),
    ],
)
def test_unknown_names(name, near):
    with pytest.raises(ValueError) as error:
        models.get(name, (32, 32, 3), CLASSES)
    text = str(error.value)
    every = ", ".join([*models.names(), "wrn_<depth>_<width>"])
    assert f"`model` must be one of {every}." in text
    assert f"Received: model={name!r}." in text
    if near:
        assert f"Did you mean {near}" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "wrn_11_4"}, r"6 n \+ 4 .*depth=11. Take 10, 16, 22"),
        ({"name": "wrn_4_4"}, r"6 n \+ 4 .*depth=4"),
        ({"name": "wrn_10_0"}, "`width` .* positive integer.*width=0"),
        ({"input_shape": (32, 32)}, r"`input_shape`.*Received: .*\(32, 32\)"),
        ({"input_shape": (15, 32, 3)}, r"16 x 16 pixels.*\(15, 32, 3\)"),
        ({"input_shape": (32, 8, 1)}, "16 x 16 pixels"),
        ({"input_shape": (None, None, None)}, r"\(None, None, None\)"),
        ({"num_classes": 1}, "`num_classes` must be 2 or more.*num_classes=1"),
        ({"weight_decay": -1e-4}, "`weight_decay` must be 0 or.*-0.0001"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {
        "name": "resnet_small",
        "input_shape": (32, 32, 3),
        "num_classes": 10,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        models.get(**arguments)


@pytest.mark.parametrize("name", ["resnet_small", "wrn_10_1", "mobilenet"])
def test_any_size_of_images(name):
    network = models.get(name, (None, None, 3), 5)
    for size in ((32, 32), (40, 64)):
        assert network(np.zeros((2, *size, 3), "float32")).shape == (2, 5)
    with pytest.raises(ValueError, match="a height and a width .* vgg7"):
        models.get("vgg7", (None, None, 3), 5)
