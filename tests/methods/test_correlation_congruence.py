import types

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.correlation_congruence import (
    CorrelationCongruence,
    kernel_correlation_loss,
    neighbour_correlation_loss,
)


def test_published_numbers_of_neighbours(golden, close):
    data = golden("repd_cc")
    student = tf.constant(data["in/student"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = neighbour_correlation_loss(student, data["in/teacher"])
    np.testing.assert_allclose(loss, data["loss"], rtol=1e-4)
    close(tape.gradient(loss, student), data["grad/student"], 1e-3)


def test_neighbours_depend_on_the_order():
    """Errors 1, 1, 0, 0 of one entry: (1 + 0 + 0) / 3; 1, 0, 1, 0: 0."""
    student, teacher = [[1.0], [-1.0], [0.0], [0.0]], np.zeros((4, 1))
    found = neighbour_correlation_loss(student, teacher)
    assert float(found) == pytest.approx(1 / 3, rel=1e-6)
    found = neighbour_correlation_loss([student[i] for i in (0, 2, 1, 3)], 0.0)
    assert float(found) == 0


def test_hand_value_of_the_kernel():
    """Orthogonal samples of the student, parallel ones of the teacher.

    Off the diagonal: e^-0.8 (1 + 0 + 0) and e^-0.8 (1 + 0.8 + 0.8^2 / 2), which
    differ by 1.12 e^-0.8; two entries of four.
    """
    student, teacher = [[1.0, 0.0], [0.0, 2.0]], [[3.0], [1.0]]
    found = kernel_correlation_loss(student, teacher)
    expected = (1.12 * np.exp(-0.8)) ** 2 / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_series_tends_to_the_gaussian_kernel():
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 4))

    def kernel(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        squares = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
        return np.exp(-0.4 * squares)

    expected = np.mean((kernel(student) - kernel(teacher)) ** 2)
    errors = [
        abs(float(kernel_correlation_loss(student, teacher, 0.4, n)) - expected)
        for n in (1, 2, 4, 12)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-9


def test_neighbours_need_equal_widths():
    student, teacher = (
        types.SimpleNamespace(embedding=(None, width)) for width in (3, 4)
    )
    CorrelationCongruence().build(student, teacher)
    message = "`embedding` must be of the same width .*Received: 3 and 4. Choo"
    with pytest.raises(ValueError, match=message):
        CorrelationCongruence("neighbours").build(student, teacher)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"relation": "kernels"},
            "`relation` must be one of kernel, neighbours.*mean 'kernel'",
        ),
        ({"gamma": 0.0}, "`gamma` must be positive. Received: gamma=0.0"),
        ({"order": 0}, "`order` must be 1 or more. Received: order=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CorrelationCongruence(**arguments)
