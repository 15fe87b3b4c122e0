"""Shares batches of many sizes and types among four devices."""

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.distribution import fitting, replicas

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)
strategy = tf.distribute.MirroredStrategy()

TYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64".split()
TYPES += "bfloat16 float16 float32 float64".split()
found = {}


class Model(keras.Model):
    def train_step(self, data):
        (x,) = data
        parts = {name: tf.cast(x > 3, name) for name in TYPES}
        joined = replicas.joined(parts | {"none": None})
        assert joined["none"] is None
        for name in TYPES:
            assert joined[name].dtype == name
            assert joined[name].shape[1:] == x.shape[1:], joined[name].shape
        whole = replicas.joined(x)
        same = [
            tf.reduce_all(joined[name] == tf.cast(whole > 3, name))
            for name in TYPES
        ]
        tf.debugging.Assert(tf.reduce_all(same), [same])
        tf.py_function(self.keep, [whole, replicas.share_of_batch(x)], [])
        self._loss_tracker.update_state(0.0)
        return self.get_metrics_result()

    def keep(self, whole, share):
        found.setdefault(len(whole), []).append(float(share))
        assert (whole.numpy().ravel() == np.arange(2 * len(whole))).all()


with strategy.scope():
    model = Model()
    model.built = True
    model.compile("sgd")
for count in (16, 4, 5, 6, 7, 9, 11):
    batch = np.arange(2 * count, dtype="int32").reshape(count, 2)
    batches = tf.data.Dataset.from_tensors((batch,))
    fitting.fit(model, batches, shuffle=False, verbose=0)
    shares = np.rint(np.array(found.pop(count)) * count)
    assert sum(shares) == count and max(shares) - min(shares) <= 1, shares
assert not found
try:
    batches = tf.data.Dataset.from_tensors((np.zeros((3, 2), "int32"),))
    fitting.fit(model, batches, verbose=0)
except tf.errors.InvalidArgumentError as error:
    assert "A batch must have a sample for each device." in error.message
    assert "Choose another batch size" in error.message
else:
    raise AssertionError("3 samples on 4 devices")
assert model.distribute_strategy is strategy


class Lengths(keras.Model):
    def call(self, words):
        if isinstance(words, tf.RaggedTensor):
            words = tf.strings.reduce_join(words, axis=1)
        return tf.cast(tf.strings.length(words), tf.float32)[:, None]


with strategy.scope():
    lengths = Lengths()
words = [["a", "bc"], ["d"], [], ["efg"], ["hi", "j"]]
for rows in (tf.constant(list(map("".join, words))), tf.ragged.constant(words)):
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(4)
    for part in (batches, batches.skip(1)):  # the last is of one sample
        expected = np.concatenate([lengths(batch) for batch in part])
        predicted = fitting.predict(lengths, part, verbose=0)
        np.testing.assert_array_equal(predicted, expected)
