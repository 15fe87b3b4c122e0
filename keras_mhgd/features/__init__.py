"""Sensing points: from layer names to features in one forward pass."""

from keras_mhgd.features.augmentation import (
    augmentations,
    split_augmentation,
)
from keras_mhgd.features.batch import Features, Taught
from keras_mhgd.features.extractor import FeatureExtractor
from keras_mhgd.features.inputs import Inputs
from keras_mhgd.features.layers import (
    find_layer,
    input_shapes,
    input_specs,
    require_network,
)
from keras_mhgd.features.pairing import (
    SensingPoints,
    block_ends,
    logits_end,
    pair,
    stage_ends,
)
from keras_mhgd.features.views import View, Views, text_as_tensors

__all__ = [
    "FeatureExtractor",
    "Features",
    "Inputs",
    "SensingPoints",
    "Taught",
    "View",
    "Views",
    "augmentations",
    "block_ends",
    "find_layer",
    "input_shapes",
    "input_specs",
    "logits_end",
    "pair",
    "require_network",
    "split_augmentation",
    "stage_ends",
    "text_as_tensors",
]
