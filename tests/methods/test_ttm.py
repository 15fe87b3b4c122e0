import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.soft_logits import soft_logits_loss
from keras_mhgd.methods.ttm import TTM, WTTM, transformed_teacher_loss


def logits(seed, shape=(5, 4)):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def by_formula(student, teacher, gamma, weighted):
    """The paper's loss, sample by sample."""
    loss = 0.0
    for s, t in zip(student, teacher, strict=True):
        powers = softmax(t) ** gamma
        target = powers / powers.sum()
        divergence = np.sum(target * np.log(target / softmax(s)))
        loss += (powers.sum() if weighted else 1) * divergence
    return loss / len(student)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 0.2, 1.0, 2.0])
def test_formula(gamma, weighted):
    pair = logits(0), logits(1)
    found = transformed_teacher_loss(*pair, 1 / gamma, weighted)
    expected = by_formula(*pair, gamma, weighted)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_hand_value(weighted):
    """Two samples at T = 4, of which the first has no loss.

    Teacher (16, 1, 1, 1) / 19: the powers (2, 1, 1, 1) / 19^(1/4) give
    t = (2, 1, 1, 1) / 5, which the student predicts. Teacher (1, 1, 0, 0) / 2:
    t is the same, and U = 2 2^(-1/4). The student's (3, 1, 0, 0) / 4 is
    log(2 / 3) / 2 + log(2) / 2 = log(4 / 3) / 2 away.
    """
    lowest = -1e9
    student = [np.log([2, 1, 1, 1]), [np.log(3), 0, lowest, lowest]]
    teacher = [np.log([16, 1, 1, 1]), [0, 0, lowest, lowest]]
    found = transformed_teacher_loss(
        np.array(student), np.array(teacher), 4.0, weighted
    )
    power_sum = 2 * 2**-0.25 if weighted else 1
    expected = power_sum * np.log(4 / 3) / 2 / 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_temperature_one_is_soft_logits():
    """The power is 1 and the probabilities add up to 1."""
    pair = logits(0), logits(1)
    for weighted in (False, True):
        found = transformed_teacher_loss(*pair, 1.0, weighted)
        np.testing.assert_allclose(found, soft_logits_loss(*pair, 1.0))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_constant_added_to_all_logits_changes_nothing(weighted):
    pair = logits(0), logits(1)
    found = transformed_teacher_loss(pair[0] + 7, pair[1] - 3, 5.0, weighted)
    expected = transformed_teacher_loss(*pair, 5.0, weighted)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_standardize_comes_first():
    pair = logits(0), logits(1)
    found = transformed_teacher_loss(7 * pair[0] - 3, pair[1], standardize=True)
    expected = transformed_teacher_loss(*pair, standardize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_large_logits(weighted):
    """The teacher is sure of class 0, so U = 1. The student is, of class 1."""
    student = tf.constant([[0.0, 1e4, -1e4]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        found = transformed_teacher_loss(
            student, [[1e4, 0.0, 0.0]], 5.0, weighted
        )
    np.testing.assert_allclose(found, 1e4)
    np.testing.assert_allclose(tape.gradient(found, student), [[-1, 1, 0]])


@pytest.mark.parametrize("kind", [TTM, WTTM])
def test_wrong_temperature(kind):
    message = "`temperature` must be positive. Received: temperature=0"
    with pytest.raises(ValueError, match=message):
        kind(temperature=0)
