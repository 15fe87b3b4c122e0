import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.methods.srd import SRD, log_sum_loss


def of_the_formula(student, teacher, exponent, epsilon):
    """The loss by numpy in float64."""

    def normalised(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + epsilon)

    difference = np.abs(normalised(student) - normalised(teacher))
    return np.log((difference**exponent).sum())


def drawn(seed, batch=6, width=5):
    return np.random.default_rng(seed).normal(size=(batch, width))


@pytest.mark.parametrize("exponent", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_the_formula(exponent, epsilon):
    student, teacher = drawn(0), 3 * drawn(1) + 2
    found = log_sum_loss(
        tf.constant(student), tf.constant(teacher), exponent, epsilon
    )
    expected = of_the_formula(student, teacher, exponent, epsilon)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_hand_value():
    """Two samples are normalised to +-1 / sqrt(1 + epsilon / variance).

    The student's variance is 1 and the teacher's 4, with epsilon = 3: +-1/2
    and -+2/sqrt(7). Both samples differ by 1/2 + 2/sqrt(7).
    """
    student, teacher = [[0.0], [2.0]], [[4.0], [0.0]]
    found = log_sum_loss(student, teacher, exponent=2.0, epsilon=3.0)
    expected = np.log(2 * (1 / 2 + 2 / np.sqrt(7)) ** 2)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_gradient_against_finite_differences():
    student, teacher = drawn(0), drawn(1)
    variable, step = tf.constant(student), 1e-6
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = log_sum_loss(variable, tf.constant(teacher))
    numeric = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
        high, low = student.copy(), student.copy()
        high[index] += step
        low[index] -= step
        numeric[index] = (
            of_the_formula(high, teacher, 4.0, 1e-4)
            - of_the_formula(low, teacher, 4.0, 1e-4)
        ) / (2 * step)
    np.testing.assert_allclose(
        tape.gradient(loss, variable), numeric, atol=1e-7
    )


def test_scale_offset_and_order_do_not_matter():
    student, teacher = drawn(0), drawn(1)
    expected = float(log_sum_loss(student, teacher, epsilon=1e-12))
    order = [3, 0, 5, 1, 2, 4]
    moved = 7 * student[order] - 3, teacher[order] / 5 + 1
    found = log_sum_loss(*moved, epsilon=1e-12)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 4.0])
def test_equal_embeddings_are_finite(exponent):
    student = tf.constant(drawn(0), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = log_sum_loss(student, tf.identity(student), exponent)
    assert float(loss) == pytest.approx(np.log(1e-12), rel=1e-6)
    np.testing.assert_array_equal(tape.gradient(loss, student), 0)


def test_the_method_projects_the_student():
    method = SRD(exponent=2.0, epsilon=0.1, weight=0.5)
    student, teacher = drawn(0, width=3), drawn(1, width=5)
    method.build(
        *(Features(None, [], embedding=(None, width)) for width in (3, 5))
    )
    kernel = method.projector.kernel.numpy()
    assert kernel.shape == (3, 5)
    assert np.abs(kernel).max() <= 1 / np.sqrt(3)
    terms = method(
        *(
            Features(None, [], embedding=tf.constant(each, tf.float32))
            for each in (student, teacher)
        ),
        None,
    )
    expected = 0.5 * of_the_formula(student @ kernel, teacher, 2.0, 0.1)
    assert float(terms["srd"]) == pytest.approx(expected, rel=1e-5)


def test_projects_between_equal_widths_too():
    method = SRD()
    shapes = Features(None, [], embedding=(None, 4))
    method.build(shapes, shapes)
    assert [each.shape for each in method.trainable_variables] == [(4, 4)]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`exponent` must be pos.*exponent=0"):
        SRD(exponent=0)
    with pytest.raises(ValueError, match="`epsilon` must be pos.*epsilon=-1"):
        SRD(epsilon=-1)
