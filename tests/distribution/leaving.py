"""One of two workers that leave, one before the other."""

import os
import pathlib
import sys
import time

import tensorflow as tf

from keras_mhgd.distribution import replicas

how, path = sys.argv[1], pathlib.Path(sys.argv[2])
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    replicas.wait_for_workers()
    if replicas.is_chief():
        replicas.leave()
        assert how == "lost" or path.exists()
    elif how == "late":
        time.sleep(2)  # as one that has not yet heard what the chief said
        path.touch()
        replicas.leave()
    else:
        time.sleep(2)
        os._exit(0)
