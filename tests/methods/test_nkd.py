import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.dkd import decoupled_losses
from keras_mhgd.methods.nkd import NKD, normalized_losses

LABELS = np.array([3, 0, 1, 1, 2])


def logits(seed, shape=(5, 4)):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def by_formula(student, teacher, labels, temperature):
    """The paper's loss, sample by sample."""
    target = non_target = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        target -= softmax(t)[y] * np.log(softmax(s)[y])
        others = [c for c in range(len(s)) if c != y]
        soft_s, soft_t = softmax(s / temperature), softmax(t / temperature)
        shares_s = soft_s[others] / soft_s[others].sum()
        shares_t = soft_t[others] / soft_t[others].sum()
        non_target -= temperature**2 * np.sum(shares_t * np.log(shares_s))
    return target / len(labels), non_target / len(labels)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_formula(temperature):
    pair = logits(0), logits(1)
    found = normalized_losses(*pair, LABELS, temperature)
    expected = by_formula(*pair, LABELS, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_hand_value():
    """Teacher (1/2, 1/4, 1/4), student (1/2, 3/8, 1/8), the label is 0.

    Target: 1/2 log 2. Shares of the others are (1/2, 1/2) and (3/4, 1/4):
    -(log 3/4 + log 1/4) / 2 = log(16 / 3) / 2.
    """
    student, teacher = np.log([[[4, 3, 1]], [[2, 1, 1]]])
    found = normalized_losses(student, teacher, [0])
    expected = [np.log(2) / 2, np.log(16 / 3) / 2]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradient_of_other_classes_is_that_of_dkd():
    """Cross-entropy and divergence differ by the teacher's entropy."""
    teacher, found = logits(1), []
    for losses in (normalized_losses, decoupled_losses):
        student = tf.constant(logits(0))
        with tf.GradientTape() as tape:
            tape.watch(student)
            _, non_target = losses(student, teacher, LABELS, 3.0)
        found.append(tape.gradient(non_target, student))
    np.testing.assert_allclose(found[0], found[1], atol=1e-14)


def test_two_classes_have_one_other():
    _, non_target = normalized_losses(
        logits(0, (5, 2)), logits(1, (5, 2)), LABELS % 2
    )
    assert float(non_target) == 0


def test_a_constant_added_to_all_logits_changes_nothing():
    pair = logits(0), logits(1)
    found = normalized_losses(pair[0] + 7, pair[1] - 3, LABELS, 2.0)
    expected = normalized_losses(*pair, LABELS, 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_standardize_comes_first():
    pair = logits(0), logits(1)
    found = normalized_losses(7 * pair[0] - 3, pair[1], LABELS, 2.0, True)
    expected = normalized_losses(*pair, LABELS, 2.0, True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_large_logits():
    """The student is sure of class 1, the teacher of the label 0."""
    student = tf.constant([[0.0, 1e4, -1e4]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        found = normalized_losses(student, [[1e4, 0.0, 0.0]], [0])
        loss = tf.add_n(list(found))
    np.testing.assert_allclose(found, [1e4, 1e4])
    gradient = tape.gradient(loss, student)
    np.testing.assert_allclose(gradient, [[-1, 1.5, -0.5]])


@pytest.mark.parametrize("shape", [(), (5, 3), (5, 1, 1)])
def test_wrong_labels(shape):
    message = r"`labels` must be class numbers .*\(batch, 4\)\. Received: lab"
    with pytest.raises(ValueError, match=message):
        normalized_losses(logits(0), logits(1), np.zeros(shape, "int32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1.0}, "`gamma` must be 0 or more. Received: gamma=-1.0"),
        ({"temperature": 0}, "`temperature` must be positive.*temperature=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NKD(**arguments)
