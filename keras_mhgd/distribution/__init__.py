"""Shares batches among several replicas or workers."""

from keras_mhgd.distribution.fitting import Shared, fit
from keras_mhgd.distribution.replicas import is_chief

__all__ = ["Shared", "fit", "is_chief"]
