"""Maps names to a loss's reductions and distance functions."""

import tensorflow as tf

REDUCTIONS = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}
DISTANCES = {"absolute": tf.abs, "squared": tf.square}
