"""Batches that several replicas or workers share."""

from keras_mhgd.distribution.fitting import fit
from keras_mhgd.distribution.replicas import is_chief

__all__ = ["fit", "is_chief"]
