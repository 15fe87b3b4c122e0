"""How a loss joins its parts: one list for all methods."""

import tensorflow as tf

REDUCTIONS = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}
