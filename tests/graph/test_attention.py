"""Graphs gone through in blocks of rows, against whole graphs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.graph import Edge, attend, attention
from keras_mhgd.methods import graph_divergence

HEADS, WIDTH = 2, 3
ACTIVATIONS = {"tanh": tf.tanh, "linear": tf.identity}


@pytest.fixture(params=[1, 4, 5, 10, 128])
def rows(request, monkeypatch):
    """Of a block: one, a divisor of the batch or not, all, more."""
    monkeypatch.setattr(attention, "_ROWS", request.param)


def tensors(seed, count, width=WIDTH, batch=10):
    rng = np.random.default_rng(seed)
    return [
        tf.constant(rng.normal(size=(HEADS, batch, width)))
        for _ in range(count)
    ]


def with_gradients(function, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
        weights = np.random.default_rng(9).normal(size=value.shape)
        total = tf.reduce_sum(weights * value)
    return value, tape.gradient(total, inputs)


def assert_same(found, expected):
    for a, b in zip(
        tf.nest.flatten(found), tf.nest.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("graph", [False, True])
def test_attention_is_that_of_whole_graphs(rows, graph):
    kept = tf.constant([[1.0] * 7 + [0.0] * 3, [0.5] * 10], tf.float64)
    kept = kept[:, :, tf.newaxis]

    def whole(queries, keys, values):
        logits = tf.einsum("anc,amc->anm", queries, keys)
        return tf.einsum("anm,amc->anc", kept * tf.nn.softmax(logits), values)

    def in_blocks(queries, keys, values):
        return attend(Edge(queries, keys), values, kept)

    inputs = [*tensors(0, 2), *tensors(1, 1, width=4)]
    run = tf.function(with_gradients) if graph else with_gradients
    assert_same(run(in_blocks, inputs), with_gradients(whole, inputs))


@pytest.mark.parametrize("activation", ["tanh", "linear"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_divergence_is_that_of_whole_graphs(rows, activation, reduction):
    teacher = tensors(2, 2)

    def log_graph(queries, keys):
        logits = tf.einsum("anc,amc->anm", queries, keys)
        return tf.nn.log_softmax(ACTIVATIONS[activation](logits))

    def whole(queries, keys):
        student = log_graph(queries, keys)
        difference = tf.exp(student) * (student - log_graph(*teacher))
        total = tf.reduce_sum(difference)
        return total / (HEADS * 10) if reduction == "mean" else total

    def in_blocks(queries, keys):
        return graph_divergence(
            [Edge(queries, keys)], [Edge(*teacher)], activation, reduction
        )

    inputs = tensors(0, 2)
    assert_same(
        with_gradients(in_blocks, inputs), with_gradients(whole, inputs)
    )


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_no_whole_graph_is_made(name, monkeypatch):
    function, sizes = getattr(tf.nn, name), []

    def recorded(logits):
        sizes.append(tuple(logits.shape))
        return function(logits)

    monkeypatch.setattr(tf.nn, name, recorded)
    factors = tensors(0, 3, batch=300)
    kept = tf.ones((HEADS, 300, 1), tf.float64)

    def both(queries, keys, values):
        edge = Edge(queries, keys)
        divergence = graph_divergence([edge], [Edge(keys, queries)])
        return attend(edge, values, kept) + divergence

    with_gradients(both, factors)
    # Three blocks of the student and the teacher, or forward and backward.
    assert sizes == [(HEADS, 128, 300)] * 6
