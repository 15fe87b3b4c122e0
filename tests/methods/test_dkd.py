import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.dkd import DKD, decoupled_losses
from keras_mhgd.methods.soft_logits import soft_logits_loss


def logits(seed, shape=(5, 4)):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape)


@pytest.mark.parametrize(
    ("key", "alpha", "beta", "temperature"),
    [
        ("a1_b8_T4", 1, 8, 4.0),
        ("a1_b2_T2", 1, 2, 2.0),
        ("tckd_T4", 1, 0, 4.0),
        ("nckd_T4", 0, 1, 4.0),
    ],
)
def test_published_numbers(golden, close, key, alpha, beta, temperature):
    data = golden("mdist_dkd")
    student = tf.constant(data["in/student"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        target, non_target = decoupled_losses(
            student, data["in/teacher"], data["in/labels"], temperature
        )
        loss = alpha * target + beta * non_target
    np.testing.assert_allclose(loss, data[f"{key}/loss"], rtol=1e-4)
    gradient = tape.gradient(loss, student)
    close(gradient, data[f"{key}/grad/student"], 1e-3)


def test_forms_of_labels_agree():
    numbers = np.array([3, 0, 1, 1, 2])
    forms = [
        numbers,
        numbers.astype("float32"),
        numbers[:, None],
        np.eye(4)[numbers],
        0.9 * np.eye(4, dtype="float32")[numbers] + 0.025,
    ]
    found = [decoupled_losses(logits(0), logits(1), each) for each in forms]
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])
    other = decoupled_losses(logits(0), logits(1), numbers[::-1].copy())
    assert not np.allclose(other, found[0], rtol=1e-2)


def test_two_classes_have_one_other():
    """Nothing to tell among one class; the target's term is the whole KL."""
    student, teacher = logits(0, (5, 2)), logits(1, (5, 2))
    target, other = decoupled_losses(student, teacher, [0, 1, 1, 0, 1], 2.0)
    assert float(other) == 0
    expected = soft_logits_loss(student, teacher, 2.0)
    np.testing.assert_allclose(target, expected, rtol=1e-12)


def test_decouples_soft_logits():
    """KL = TCKD + (1 - p^T_y) NCKD of a sample, as the paper derives."""
    student, teacher = logits(0, (1, 4)), logits(1, (1, 4))
    target, other = decoupled_losses(student, teacher, [2], temperature=3.0)
    weight = 1 - tf.nn.softmax(teacher / 3.0)[0, 2]
    expected = soft_logits_loss(student, teacher, temperature=3.0)
    np.testing.assert_allclose(target + weight * other, expected, rtol=1e-9)


def test_standardize_comes_first():
    scaled = 7 * logits(0) - 3
    found = decoupled_losses(scaled, logits(0), np.arange(5) % 4, 4.0, True)
    np.testing.assert_allclose(found, 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (5, 3), (5, 1, 1)])
def test_wrong_labels(shape):
    message = r"`labels` must be class numbers .*\(batch, 4\)\. Received: lab"
    with pytest.raises(ValueError, match=message):
        decoupled_losses(logits(0), logits(1), np.zeros(shape, "int32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "`alpha` must be 0 or more. Received: alpha=-1.0"),
        ({"beta": float("nan")}, "`beta` must be 0 or more.*beta=nan"),
        ({"temperature": 0}, "`temperature` must be positive.*temperature=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DKD(**arguments)
