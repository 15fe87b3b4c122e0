"""Measures single runs, each in a process of its own."""

import time

import numpy as np
import tensorflow as tf

import keras_mhgd
from benchmarks.speed.contest import peak_memory
from benchmarks.speed.pairs import (
    PAIRS,
    compile_model,
    distiller,
    mhgd,
)
from keras_mhgd import methods

METHODS = {
    "MHGD": mhgd,
    "soft logits": lambda pair: methods.SoftLogits(),
    "RKD": lambda pair: methods.RKD(),
}


def graph(size: int, heads: int = 8, width: int = 64) -> dict[str, float]:
    """Runs the graph loss forward and backward.

    Args:
        size: Samples in a batch.
        heads: Attention heads.
        width: Length of the vectors, and of a head.

    Returns:
        `megabytes` that the loss adds to the process's peak memory, and
        `seconds`, the median of three runs.
    """
    heads = keras_mhgd.graph.MHAN([width, width], num_heads=heads, seed=0)

    @tf.function
    def run(student, teacher):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = methods.graph_divergence(
                heads.edges(student), heads.edges(teacher)
            )
        return loss, tape.gradient(loss, student)

    def vectors(count):
        return [
            tf.math.l2_normalize(tf.random.normal((count, width)), 1)
            for _ in range(2)
        ]

    specs = [tf.TensorSpec((None, width))] * 2
    run = run.get_concrete_function(specs, specs)
    run(*vectors(64), *vectors(64))
    before, seconds = peak_memory(), []
    inputs = [*vectors(size), *vectors(size)]
    for _ in range(3):
        begin = time.perf_counter()
        run(*inputs)
        seconds.append(time.perf_counter() - begin)
    return {
        "megabytes": peak_memory() - before,
        "seconds": float(np.median(seconds)),
    }


def first_steps(
    pair: str, method: str, jit_compile: bool, batch_size: int
) -> dict[str, float]:
    """Trains three steps.

    Args:
        pair: A name in `PAIRS`.
        method: A name in `METHODS`.
        jit_compile: Whether XLA compiles the step.
        batch_size: Images in a batch.

    Returns:
        `seconds` of the first step, and the `loss` of the third.
    """
    described = PAIRS[pair]
    model = distiller(
        described, METHODS[method](described), jit_compile=jit_compile
    )
    data = tf.data.Dataset.from_tensors(described.batch(batch_size)).repeat()
    begin = time.perf_counter()
    model.fit(data, steps_per_epoch=1, shuffle=False, verbose=0)
    seconds = time.perf_counter() - begin
    for _ in range(2):
        history = model.fit(data, steps_per_epoch=1, shuffle=False, verbose=0)
    return {"seconds": seconds, "loss": history.history["loss"][0]}


def fusion(pair: str, steps: int, batch_size: int) -> dict[str, float]:
    """Trains a student with fused and with Keras's batch normalisation.

    Args:
        pair: A name in `PAIRS`.
        steps: Steps, on different images.
        batch_size: Images in a batch.

    Returns:
        The largest difference between trained `weights`, and the largest
        difference between moving `statistics` relative to the largest entry of
        the variable.
    """
    ends = []
    for fused in (False, True):
        student, _ = PAIRS[pair].networks(fused)
        compile_model(student)
        data = PAIRS[pair].dataset().train(batch_size)
        student.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)
        ends.append(student)
    weights, statistics = (
        [
            (np.abs(a.numpy() - b.numpy()).max(), np.abs(a.numpy()).max())
            for a, b in zip(
                *(getattr(each, which) for each in ends), strict=True
            )
        ]
        for which in ("trainable_variables", "non_trainable_variables")
    )
    return {
        "weights": float(max(apart for apart, _ in weights)),
        "statistics": float(max(apart / size for apart, size in statistics)),
    }
