"""Provides attention graphs, the network that learns them and its training."""

from keras_mhgd.graph.attention import AttentionHeads, Edge, attend
from keras_mhgd.graph.estimator import Estimator
from keras_mhgd.graph.mhan import MHAN, kept_heads
from keras_mhgd.graph.record import GraphRecord
from keras_mhgd.graph.trainer import MHANTrainer, estimation_loss

__all__ = [
    "AttentionHeads",
    "Edge",
    "Estimator",
    "GraphRecord",
    "MHAN",
    "MHANTrainer",
    "attend",
    "estimation_loss",
    "kept_heads",
]
