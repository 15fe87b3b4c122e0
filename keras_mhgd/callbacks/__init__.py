"""Callbacks for the training of students."""

from keras_mhgd.callbacks.checkpoint import Checkpoint, Position

__all__ = ["Checkpoint", "Position"]
