import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.mlkd import MLKD, multi_level_losses

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def logits(seed, shape=(6, 4)):
    return np.random.default_rng(seed).normal(scale=4.0, size=shape)


def softmax(z):
    e = np.exp(z)
    return e / e.sum(axis=1, keepdims=True)


def by_formula(student, teacher, temperatures=TEMPERATURES):
    """The paper's losses, with the matrices of samples and of classes."""
    found = np.zeros(3)
    samples, classes = student.shape
    for temperature in temperatures:
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        found += [
            temperature**2 * np.sum(p * np.log(p / q)) / samples,
            np.sum((p @ p.T - q @ q.T) ** 2) / samples,
            np.sum((p.T @ p - q.T @ q) ** 2) / classes,
        ]
    return found


@pytest.mark.parametrize("shape", [(6, 4), (3, 7), (1, 3), (5, 2)], ids=str)
def test_formula(shape):
    pair = logits(0, shape), logits(1, shape)
    found = multi_level_losses(*pair)
    np.testing.assert_allclose(found, by_formula(*pair), rtol=1e-11)


def test_hand_value():
    """One sample of two classes: teacher (3, 1) / 4, student (1, 1) / 2.

    KL = 3/4 log 3/2 + 1/4 log 1/2. Products with itself: 10/16 less 1/2,
    squared, 1/64. Of classes: (9, 3, 3, 1) / 16 less 1/4 each, so that
    (25 + 1 + 1 + 9) / 256 / 2 = 9 / 128.
    """
    found = multi_level_losses(np.zeros((1, 2)), np.log([[3.0, 1.0]]), [1.0])
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    expected = [divergence, 1 / 64, 9 / 128]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rows_that_do_not_count():
    """They may hold anything."""
    pair = logits(0), logits(1)
    counts = np.array([1, 0, 1, 1, 0, 1.0])
    expected = by_formula(*(each[counts > 0] for each in pair))
    filled = [np.where(counts[:, None] > 0, each, np.inf) for each in pair]
    found = multi_level_losses(*filled, weights=counts)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    nothing = multi_level_losses(*pair, weights=0 * counts)
    np.testing.assert_array_equal(nothing, 0)


def test_nothing_cancels_where_the_student_is_close():
    """In float32, the losses of a small difference are as in float64."""
    teacher = logits(1, (64, 10)).astype("float32")
    student = (teacher + 1e-2 * logits(0, (64, 10))).astype("float32")
    found = multi_level_losses(student, teacher)
    expected = by_formula(np.float64(student), np.float64(teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_constant_added_to_all_logits_changes_nothing():
    pair = logits(0), logits(1)
    found = multi_level_losses(pair[0] + 7, pair[1] - 3)
    np.testing.assert_allclose(found, by_formula(*pair), rtol=1e-11)


def test_standardize_is_for_samples_alone():
    pair = logits(0), logits(1)
    z = [(x - x.mean(1)[:, None]) / x.std(1)[:, None] for x in pair]
    found = multi_level_losses(*pair, standardize=True)
    expected = [by_formula(*z)[0], *by_formula(*pair)[1:]]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_large_logits():
    """One sample, sure of another class than the teacher, at T = 1."""
    student = tf.constant([[1e4, 0.0, -1e4]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        found = multi_level_losses(student, [[0.0, 1e4, 0.0]], [1.0])
        loss = tf.add_n(list(found))
    np.testing.assert_allclose(found, [1e4, 0, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, student), [[1, -1, 0]])


@pytest.mark.parametrize(
    ("temperatures", "error", "message"),
    [
        ([], ValueError, r"`temperatures` must be one number or .*=\(\)\. Pa"),
        ([2.0, 0], ValueError, "`temperatures` must be positive.*tures=0"),
        (4.0, TypeError, "must be a sequence of numbers. Received: .*=4.0 of"),
        ("4", TypeError, "must be a sequence of numbers. Received: .*='4' of"),
    ],
)
def test_wrong_temperatures(temperatures, error, message):
    with pytest.raises(error, match=message):
        MLKD(temperatures)
