"""Attention graphs: the network that learns them, and its training."""

from keras_mhgd.graph.attention import AttentionHeads
from keras_mhgd.graph.estimator import Estimator
from keras_mhgd.graph.mhan import MHAN, drop_heads
from keras_mhgd.graph.trainer import MHANTrainer, estimation_loss

__all__ = [
    "AttentionHeads",
    "Estimator",
    "MHAN",
    "MHANTrainer",
    "drop_heads",
    "estimation_loss",
]
