"""Callbacks for the training of students."""

from keras_mhgd.callbacks.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
