"""Provides callbacks for the training of students."""

from keras_mhgd.callbacks.attention_graphs import AttentionGraphs
from keras_mhgd.callbacks.checkpoint import Checkpoint, Position

__all__ = ["AttentionGraphs", "Checkpoint", "Position"]
