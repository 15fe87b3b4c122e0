import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.dkd import decoupled_losses
from keras_mhgd.methods.rld import RLD, refined_losses

LABELS = np.array([3, 0, 1, 1, 2, 4])


def logits(seed, shape=(6, 5)):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def divergence(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def by_formula(student, teacher, labels, temperature, of_confidence):
    """The paper's loss, sample by sample."""
    confidence = correlation = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        sure_s = softmax(s / of_confidence)[y]
        sure_t = softmax(t / of_confidence).max()
        confidence += of_confidence**2 * divergence(
            [sure_t, 1 - sure_t], [sure_s, 1 - sure_s]
        )
        below = [c for c in range(len(t)) if t[c] < t[y]]
        if below:
            correlation += temperature**2 * divergence(
                softmax(t[below] / temperature), softmax(s[below] / temperature)
            )
    return confidence / len(labels), correlation / len(labels)


@pytest.mark.parametrize("temperatures", [(4.0, 1.0), (1.0, 1.0), (2.0, 3.0)])
def test_formula(temperatures):
    pair = logits(0), logits(1)
    below = [np.sum(t < t[y]) for t, y in zip(pair[1], LABELS, strict=True)]
    assert {0, 4} < set(below)  # all are masked, and only the label is
    found = refined_losses(*pair, LABELS, *temperatures)
    expected = by_formula(*pair, LABELS, *temperatures)
    assert min(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_hand_value():
    """Teacher (5, 2, 1, 1) / 9, student (2, 1, 3, 1) / 7; the label is 1.

    The teacher chooses class 0 with 5/9, the student has 1/7 for the label.
    Classes 2 and 3 are below it: (1/2, 1/2) against (3/4, 1/4).
    """
    student, teacher = np.log([[[2, 1, 3, 1]], [[5, 2, 1, 1]]])
    found = refined_losses(student, teacher, [1], 1.0)
    confidence = 5 / 9 * np.log(35 / 9) + 4 / 9 * np.log(14 / 27)
    expected = [confidence, np.log(4 / 3) / 2]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_is_dkd_where_the_teacher_is_right():
    student, teacher = logits(0), logits(1)
    labels = teacher.argmax(axis=1)
    found = refined_losses(student, teacher, labels, 3.0, 3.0)
    expected = decoupled_losses(student, teacher, labels, 3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_class_that_ties_with_the_label_is_masked():
    teacher = [[1.0, 1.0, 0.0, -1.0]]
    found = refined_losses([[0.0, 9.0, 1.0, 2.0]], teacher, [0], 1.0)
    _, without = refined_losses([[0.0, 1.0, 2.0]], [[1.0, 0.0, -1.0]], [0], 1.0)
    np.testing.assert_allclose(found[1], without, rtol=1e-6)


def test_nothing_below_the_label():
    """The teacher ranks it last, so only the confidence teaches."""
    student = tf.constant(logits(0))
    teacher = logits(1)
    with tf.GradientTape() as tape:
        tape.watch(student)
        _, correlation = refined_losses(student, teacher, teacher.argmin(1))
    assert float(correlation) == 0
    assert not np.any(tape.gradient(correlation, student))


def test_a_constant_added_to_all_logits_changes_nothing():
    pair = logits(0), logits(1)
    found = refined_losses(pair[0] + 7, pair[1] - 3, LABELS)
    expected = refined_losses(*pair, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_standardize_comes_first():
    pair = logits(0), logits(1)
    found = refined_losses(7 * pair[0] - 3, pair[1], LABELS, standardize=True)
    expected = refined_losses(*pair, LABELS, standardize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_large_logits():
    """The teacher is sure of class 0, the student of 1; the label is 2."""
    student = tf.constant([[0.0, 1e4, -1e4, 0.0, 1e4]])
    teacher = [[1e4, 0.0, 0.0, -1e4, -2e4]]
    with tf.GradientTape() as tape:
        tape.watch(student)
        found = refined_losses(student, teacher, [2], temperature=1.0)
        loss = tf.add_n(list(found))
    np.testing.assert_allclose(found, [2e4 + np.log(2), 1e4], rtol=1e-6)
    gradient = tape.gradient(loss, student)
    np.testing.assert_allclose(gradient, [[0, 0.5, -1, -1, 1.5]], atol=1e-6)


@pytest.mark.parametrize("shape", [(), (6, 3), (6, 1, 1)])
def test_wrong_labels(shape):
    message = r"`labels` must be class numbers .*\(batch, 5\)\. Received: lab"
    with pytest.raises(ValueError, match=message):
        refined_losses(logits(0), logits(1), np.zeros(shape, "int32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "`alpha` must be 0 or more. Received: alpha=-1.0"),
        ({"beta": float("nan")}, "`beta` must be 0 or more.*beta=nan"),
        ({"temperature": 0}, "`temperature` must be positive.*temperature=0"),
        (
            {"confidence_temperature": -2},
            "`confidence_temperature` must be positive. Rec.*temperature=-2",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RLD(**arguments)
