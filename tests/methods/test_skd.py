import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.situations import SITUATIONS
from keras_mhgd.features import Features
from keras_mhgd.methods.skd import SKD, whitened_gram_loss


def gram(logits):
    unit = logits / np.linalg.norm(logits, axis=1, keepdims=True)
    return unit @ unit.T


def of_the_formula(student, teacher, tikhonov=0.1, classes=1):
    """The distance by numpy in float64, with an inverse matrix."""
    rows = (gram(student) - gram(teacher)) / classes
    covariance = np.cov(rows, rowvar=False)
    inverse = np.linalg.inv(covariance + tikhonov * np.eye(len(rows)))
    return np.mean([np.sqrt(row @ inverse @ row) for row in rows])


def divergence(student, teacher, temperature):
    def softmax(z):
        e = np.exp(z / temperature)
        return e / e.sum(1, keepdims=True)

    ours, theirs = softmax(student), softmax(teacher)
    return (theirs * np.log(theirs / ours)).sum(1).mean()


def drawn(seed, batch=6, classes=4):
    return 2 * np.random.default_rng(seed).normal(size=(batch, classes))


@pytest.mark.parametrize("batch", [2, 6, 20])
@pytest.mark.parametrize("tikhonov", [0.01, 0.1, 1.0])
def test_the_formula(batch, tikhonov):
    student, teacher = drawn(0, batch), drawn(1, batch)
    found = whitened_gram_loss(
        tf.constant(student), tf.constant(teacher), tikhonov
    )
    expected = of_the_formula(student, teacher, tikhonov)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_hand_value():
    """Two samples: orthogonal in the student, parallel in the teacher.

    D = -[[0, 1], [1, 0]]. Its columns have the variance 1/2 and the covariance
    -1/2. With lambda = 1/2, Cov + lambda I = [[1, -1/2], [-1/2, 1]] has the
    inverse 4/3 [[1, 1/2], [1/2, 1]], and both roots are sqrt(4/3).
    """
    student, teacher = [[1.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [1.0, 0.0]]
    found = whitened_gram_loss(student, teacher, tikhonov=0.5)
    assert float(found) == pytest.approx(np.sqrt(4 / 3), rel=1e-6)


def test_gradient_against_finite_differences():
    student, teacher = drawn(0), drawn(1)
    variable, step = tf.constant(student), 1e-6
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = whitened_gram_loss(variable, tf.constant(teacher))
    numeric = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
        high, low = student.copy(), student.copy()
        high[index] += step
        low[index] -= step
        difference = of_the_formula(high, teacher) - of_the_formula(
            low, teacher
        )
        numeric[index] = difference / (2 * step)
    np.testing.assert_allclose(
        tape.gradient(loss, variable), numeric, atol=1e-8
    )


def test_lengths_and_order_do_not_matter():
    student, teacher = map(tf.constant, (drawn(0), drawn(1)))
    expected = float(whitened_gram_loss(student, teacher))
    lengths = np.arange(1.0, 7)[:, np.newaxis]
    found = float(whitened_gram_loss(lengths * student, teacher / lengths))
    assert found == pytest.approx(expected, rel=1e-12)
    order = [3, 0, 5, 1, 2, 4]
    permuted = (tf.gather(each, order) for each in (student, teacher))
    found = float(whitened_gram_loss(*permuted))
    assert found == pytest.approx(expected, rel=1e-9)


def test_rows_that_do_not_count_are_no_part_of_the_batch():
    student, teacher = drawn(0), drawn(1)
    expected = of_the_formula(student[[0, 1, 4, 5]], teacher[[0, 1, 4, 5]])
    student[2], teacher[3] = 1e6, np.inf
    found = whitened_gram_loss(
        tf.constant(student),
        tf.constant(teacher),
        weights=tf.constant([1.0, 1, 0, 0, 1, 1]),
    )
    assert float(found) == pytest.approx(expected, rel=1e-9)


def terms(method, student, teacher):
    found = method.call(
        *(
            Features(None, [], logits=tf.constant(each))
            for each in (student, teacher)
        ),
        None,
    )
    return [float(each) for each in found.values()]


def test_the_terms_of_the_paper_and_of_the_code():
    student, teacher = drawn(0), drawn(1)
    paper = divergence(student, teacher, 4), of_the_formula(student, teacher)
    found = terms(SKD(), student, teacher)
    np.testing.assert_allclose(found, paper, rtol=1e-9)
    code = 16 * paper[0], of_the_formula(student, teacher, 0.1, 4)
    found = terms(
        SKD(scale_by_temperature=True, divide_by_classes=True, weight=0.9),
        student,
        teacher,
    )
    np.testing.assert_allclose(found, 0.9 * np.array(code), rtol=1e-9)


def test_standardized_logits():
    student, teacher = drawn(0), drawn(1)

    def standard(x):
        x = x - x.mean(1, keepdims=True)
        return x / x.std(1, keepdims=True)

    expected = terms(SKD(), standard(student), standard(teacher))
    found = terms(SKD(standardize=True), student, teacher)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["segmentation", "tagging"])
def test_refuses_outputs_with_positions(name):
    situation = SITUATIONS[name]
    message = "SKD relates the samples.*without positions. Received: outputs"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(situation.student(), situation.teacher(), "skd")


def test_refuses_independent_labels():
    situation = SITUATIONS["multi_label"]
    distiller = keras_mhgd.Distiller(
        situation.student(), situation.teacher(), "skd"
    )
    message = "SKD must get outputs that are single_label. Received: a multi_l"
    with pytest.raises(ValueError, match=message):
        distiller.compile("sgd", **situation.task)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`tikhonov` must be pos.*=0"):
        SKD(tikhonov=0)
    with pytest.raises(ValueError, match="`temperature` must be pos.*=-1"):
        SKD(temperature=-1)
