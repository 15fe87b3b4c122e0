"""How a loss measures differences and joins its parts."""

import tensorflow as tf

REDUCTIONS = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}
DISTANCES = {"absolute": tf.abs, "squared": tf.square}
