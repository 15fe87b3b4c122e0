"""Loads image-classification sets by name as reproducible tf.data streams."""

from keras_mhgd.data.dataset import Dataset
from keras_mhgd.data.loading import load, names

__all__ = ["Dataset", "load", "names"]
