"""Functions that graphs call, instead of copies of their operations."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.tracing import traced_once


@pytest.fixture
def scaled():
    """Multiplies rows by the sums of columns; counts its traces."""

    def function(x, y):
        function.traces += 1
        return tf.reduce_sum(x, 0) * y

    function.traces = 0
    call = traced_once(function)
    call.function = function
    return call


SIZES = [(2, 3), (5, 3), (4, 7)]


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_one_trace_serves_all_sizes(scaled, jit_compile):
    call = scaled
    if jit_compile is not None:
        call = tf.function(scaled, autograph=False, jit_compile=jit_compile)
    for size in SIZES:
        x, y = np.random.default_rng(0).normal(size=(2, *size))
        found = call(tf.constant(x), tf.constant(y))
        np.testing.assert_allclose(found, x.sum(0) * y, rtol=1e-12)
    assert scaled.function.traces == 1


def test_dtypes_and_ranks_have_traces_of_their_own(scaled):
    for dtype in (tf.float32, tf.float64):
        assert scaled(tf.ones((2, 3), dtype), tf.ones(3, dtype)).dtype == dtype
    assert scaled(tf.ones((2, 3)), tf.ones((4, 3))).shape == (4, 3)
    assert scaled.function.traces == 3


def test_a_call_adds_one_operation(scaled):
    @tf.function(autograph=False)
    def step(x):
        for _ in range(5):
            x = scaled(x, x)
        return x

    graph = step.get_concrete_function(tf.ones((2, 3))).graph
    operations = [each.type for each in graph.get_operations()]
    assert operations.count("PartitionedCall") == 5
    assert "Sum" not in operations and "Mul" not in operations


def test_it_runs_on_the_device_of_the_call(scaled):
    """Not on that of the first call, which traces."""

    @tf.function(autograph=False)
    def step(x):
        found = []
        for device in ("cpu:1", "cpu:0"):
            with tf.device(device):
                found.append(scaled(x, x))
        return found

    graph = step.get_concrete_function(tf.ones((2, 3))).graph.as_graph_def()
    calls = [each for each in graph.node if each.op == "PartitionedCall"]
    assert [each.device[-5:] for each in calls] == ["CPU:1", "CPU:0"]
    (function,) = graph.library.function
    assert {node.device for node in function.node_def} == {""}


def test_an_unknown_rank(scaled):
    @tf.function(input_signature=[tf.TensorSpec(None)], autograph=False)
    def step(x):
        return scaled(x, x)

    assert step(tf.ones((2, 3))).shape == (2, 3)
    assert step(tf.ones(3)).shape == (3,)
    assert scaled.function.traces == 1
