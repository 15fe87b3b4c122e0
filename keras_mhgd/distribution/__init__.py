"""Shares batches among several replicas or workers."""

from keras_mhgd.distribution.fitting import fit
from keras_mhgd.distribution.replicas import is_chief

__all__ = ["fit", "is_chief"]
