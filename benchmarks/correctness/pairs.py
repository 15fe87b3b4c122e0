"""Writes `docs/pairs.md`: sensing points that are found in many pairs.

    python -m benchmarks.correctness.pairs

Needs `pip install keras-mhgd[hub]`. All networks have random weights.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

import keras_mhgd

PAGE = Path(__file__).parents[2] / "docs" / "pairs.md"
CLASSES = 5
IMAGE = (96, 96, 3)
HUB_IMAGE = (64, 64, 3)
LENGTH, WORDS = 12, 30

_HEAD = """# Sensing points that are found

Without `sensing_points`, a `Distiller` finds sensing points in both networks
and pairs them: see `keras_mhgd.features.pair`. This page shows what it finds in
widely used networks. `python -m benchmarks.correctness.pairs` writes the page,
and tests check it.

Each line of the last column is a pair, student <- teacher, front end first.
"""
_COLUMNS = "| student | teacher | points |\n| --- | --- | --- |\n"

Build = Callable[[], keras.Model]

# Student, teacher: names in `keras.applications`.
APPLICATIONS = (
    ("MobileNetV2", "ResNet50V2"),
    ("MobileNetV3Small", "ResNet50V2"),
    ("MobileNetV3Small", "Xception"),
    ("MobileNetV3Large", "EfficientNetV2B0"),
    ("EfficientNetB0", "ConvNeXtTiny"),
    ("MobileNetV2", "DenseNet121"),
    ("NASNetMobile", "ResNet50"),
    ("MobileNet", "VGG16"),
    ("EfficientNetV2B0", "InceptionV3"),
    ("MobileNetV3Large", "NASNetMobile"),
    ("DenseNet121", "EfficientNetB0"),
)


def application(name: str) -> keras.Model:
    """Builds a network of `keras.applications`."""
    build = getattr(keras.applications, name)
    return build(weights=None, classes=CLASSES, input_shape=IMAGE)


def _vit(depth, width):
    from keras_hub import models

    backbone = models.ViTBackbone(HUB_IMAGE, 16, depth, 2, width, 2 * width)
    return models.ViTImageClassifier(backbone, num_classes=CLASSES)


def _deit(depth, width):
    from keras_hub import models

    backbone = models.DeiTBackbone(HUB_IMAGE, 16, depth, 2, width, 2 * width)
    return models.DeiTImageClassifier(backbone, num_classes=CLASSES)


def _resnet(blocks, kind, pre_activation=False):
    from keras_hub import models

    backbone = models.ResNetBackbone(
        [64],
        [7],
        [64, 64, 96, 96],
        blocks,
        [1, 2, 2, 2],
        kind,
        use_pre_activation=pre_activation,
        image_shape=HUB_IMAGE,
    )
    return models.ResNetImageClassifier(backbone, num_classes=CLASSES)


def _efficientnet():
    from keras_hub import models

    stages = 5
    backbone = models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * stages,
        stackwise_depth_coefficients=[1.0] * stages,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5],
        stackwise_num_repeats=[1, 2, 2, 2, 2],
        stackwise_input_filters=[16, 8, 16, 24, 32],
        stackwise_output_filters=[8, 16, 24, 32, 40],
        stackwise_expansion_ratios=[1, 4, 4, 4, 4],
        stackwise_strides=[1, 2, 2, 2, 2],
        stackwise_squeeze_and_excite_ratios=[0.25] * stages,
        stackwise_block_types=["v1"] * stages,
        stackwise_force_input_filters=[0] * stages,
        stackwise_nores_option=[False] * stages,
        input_shape=HUB_IMAGE,
    )
    return models.EfficientNetImageClassifier(backbone, num_classes=CLASSES)


def _mobilenet():
    from keras_hub import models

    backbone = models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144, 144]],
        stackwise_num_blocks=[2, 3],
        stackwise_num_filters=[[16, 16], [24, 24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"] * 3],
        stackwise_padding=[[1, 1], [2, 2, 2]],
        output_num_filters=64,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=32,
        squeeze_and_excite=0.5,
        input_activation="hard_swish",
        output_activation="hard_swish",
        image_shape=HUB_IMAGE,
    )
    return models.MobileNetImageClassifier(backbone, num_classes=CLASSES)


def _text(kind, depth, width):
    from keras_hub import models

    backbone = getattr(models, f"{kind}Backbone")(
        WORDS, depth, 2, width, 2 * width, max_sequence_length=LENGTH
    )
    classifier = getattr(models, f"{kind}TextClassifier")
    return classifier(backbone, num_classes=CLASSES)


# Names on the page, and functions that build the networks.
HUB: dict[str, Build] = {
    "ViT, 2 blocks": functools.partial(_vit, 2, 16),
    "ViT, 8 blocks": functools.partial(_vit, 8, 32),
    "DeiT, 4 blocks": functools.partial(_deit, 4, 16),
    "DeiT, 6 blocks": functools.partial(_deit, 6, 32),
    "ResNet, basic": functools.partial(_resnet, [1] * 4, "basic_block"),
    "ResNet, bottleneck": functools.partial(
        _resnet, [1, 2, 2, 1], "bottleneck_block"
    ),
    "ResNetV2, bottleneck": functools.partial(
        _resnet, [1, 2, 2, 1], "bottleneck_block", True
    ),
    "EfficientNet": _efficientnet,
    "MobileNetV3": _mobilenet,
    "DistilBERT, 2 blocks": functools.partial(_text, "DistilBert", 2, 8),
    "DistilBERT, 6 blocks": functools.partial(_text, "DistilBert", 6, 16),
    "BERT, 4 blocks": functools.partial(_text, "Bert", 4, 8),
    "BERT, 8 blocks": functools.partial(_text, "Bert", 8, 16),
}
HUB_PAIRS = (
    ("ResNet, basic", "ViT, 8 blocks"),
    ("ResNet, basic", "DeiT, 6 blocks"),
    ("DeiT, 4 blocks", "ResNetV2, bottleneck"),
    ("ViT, 2 blocks", "DeiT, 6 blocks"),
    ("EfficientNet", "MobileNetV3"),
    ("EfficientNet", "ResNet, bottleneck"),
    ("DistilBERT, 2 blocks", "DistilBERT, 6 blocks"),
    ("BERT, 4 blocks", "BERT, 8 blocks"),
)


def build(name: str) -> keras.Model:
    """Builds a network by its name on the page.

    Keras numbers layers of the same kind. The numbers start again here, so a
    network has the same layer names each time.
    """
    keras.utils.clear_session()
    return HUB[name]() if name in HUB else application(name)


def row(names: tuple[str, str], points: Sequence[tuple[str, str]]) -> str:
    """Formats a line of the table."""
    pairs = "<br>".join(f"`{ours}` <- `{theirs}`" for ours, theirs in points)
    return f"| {' | '.join(names)} | {pairs} |\n"


def table(pairs: Sequence[tuple[str, str]]) -> str:
    """Builds the networks and finds their points."""
    rows = [
        row(names, keras_mhgd.features.pair(*map(build, names)))
        for names in pairs
    ]
    return _COLUMNS + "".join(rows)


def page() -> str:
    """Makes the page."""
    return (
        f"{_HEAD}\n## keras.applications, {IMAGE[0]} x {IMAGE[1]} pixels\n\n"
        f"{table(APPLICATIONS)}\n## KerasHub\n\n"
        "The networks are small ones, made by their constructors. Layers in a "
        "block or an\nencoder are named by their path.\n\n"
        f"{table(HUB_PAIRS)}"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
