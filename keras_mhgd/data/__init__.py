"""Loads labelled images and words by name as reproducible tf.data streams."""

from keras_mhgd.data.dataset import Dataset
from keras_mhgd.data.files import Files
from keras_mhgd.data.loading import load, load_unlabeled, names
from keras_mhgd.data.random_layers import Mixing, RandomResizedCrop
from keras_mhgd.data.tokens import Tokens

__all__ = [
    "Dataset",
    "Files",
    "Mixing",
    "RandomResizedCrop",
    "Tokens",
    "load",
    "load_unlabeled",
    "names",
]
