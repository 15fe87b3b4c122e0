"""Reads features at a network's sensing points in one forward pass."""

from keras_mhgd.features.augmentation import split_augmentation
from keras_mhgd.features.extractor import FeatureExtractor
from keras_mhgd.features.features import Features, Taught, without_padding
from keras_mhgd.features.head import End
from keras_mhgd.features.inputs import Inputs
from keras_mhgd.features.layers import (
    find_layer,
    input_shapes,
    input_specs,
    random_layers,
    require_network,
    with_input_shapes,
)
from keras_mhgd.features.pairing import (
    SensingPoints,
    block_ends,
    logits_end,
    pair,
    stage_ends,
)
from keras_mhgd.features.views import (
    Preprocessor,
    View,
    Views,
    text_as_tensors,
)

__all__ = [
    "End",
    "FeatureExtractor",
    "Features",
    "Inputs",
    "Preprocessor",
    "SensingPoints",
    "Taught",
    "View",
    "Views",
    "block_ends",
    "find_layer",
    "input_shapes",
    "input_specs",
    "logits_end",
    "pair",
    "random_layers",
    "require_network",
    "split_augmentation",
    "stage_ends",
    "text_as_tensors",
    "with_input_shapes",
    "without_padding",
]
