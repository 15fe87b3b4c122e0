"""Several devices that share a batch train like one."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "cases"),
    [
        # 64 images are four batches of 16; of 59 the last is 11.
        ("2", ["outputs and graphs,64", "per_feature,59", "embeddings,59"]),
        ("2", ["as published,59"]),
        ("4", ["outputs and graphs,59", "embeddings,59"]),
        # Losses that Keras divides by the number of replicas, and not.
        (
            "2",
            [
                "soft_logits,59,sum",
                "soft_logits,59,weighted mean",
                "soft_logits,59,function",
                "soft_logits,59,no labels",
                "fitnet,59,no labels",
            ],
        ),
        # Each half of a batch with graphs of its own.
        ("2", ["replica sum,64", "replica mean,64"]),
        # A step that is skipped on all because of one.
        (
            "2",
            [
                "embeddings,59,a bad batch",
                "soft_logits,59,a bad batch",
                "soft_logits,59,an overflow",
                "outputs and graphs,59,an overflow",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_weights_and_history_are_those_of_one_device(devices, cases):
    done = subprocess.run(
        [sys.executable, "-m", "tests.replicated", devices, *cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert differences.keys() == set(cases)
    assert max(differences.values()) < 1e-5, differences


SHARING = """
import keras
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)
strategy = tf.distribute.MirroredStrategy()

from keras_mhgd import fitting, replicas

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
"""


@pytest.mark.slow
def test_devices_share_batches_evenly_and_join_them():
    """Types and static sizes stay; a device without a sample is refused."""
    done = subprocess.run(
        [sys.executable, "-c", SHARING], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
