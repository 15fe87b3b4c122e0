"""Tells what a worker's `fit` and `evaluate` refuse, as one JSON object."""

import json

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.distribution import fitting

strategy = tf.distribute.MultiWorkerMirroredStrategy()
x, y = np.zeros((4, 2), "float32"), np.zeros(4, "int32")
found = {}
for name, value in {
    "class_weight": {0: 2.0},
    "validation_split": 0.5,
    "steps_per_execution": 2,
}.items():
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        options = {name: value} if name == "steps_per_execution" else {}
        model.compile("sgd", "sparse_categorical_crossentropy", **options)
    arguments = {} if options else {name: value}
    try:
        fitting.fit(model, x, y, **arguments)
    except ValueError as error:
        found[name] = str(error)
print(json.dumps(found))
