"""What `fit` needs on devices that there are none of here."""

import pytest
import tensorflow as tf

from keras_mhgd.distribution.fitting import static_batches


def test_static_batches_are_the_same_batches():
    images, labels = tf.random.stateless_normal((12, 2), (0, 0)), tf.range(12)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    found = static_batches(batches, 4, 12)
    assert [spec.shape for spec in found.element_spec] == [(4, 2), (4,)]
    for (a, b), (c, d) in zip(batches, found, strict=True):
        assert bool(tf.reduce_all(a == c)) and bool(tf.reduce_all(b == d))


def test_a_smaller_last_batch_is_refused():
    batches = tf.data.Dataset.range(10).batch(4)
    with pytest.raises(ValueError, match="10 samples in batches of 4"):
        static_batches(batches, 4, 10)
