import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.soft_logits import SoftLogits, soft_logits_loss


@pytest.mark.parametrize(
    ("name", "temperature", "scaled"),
    [
        ("repd_kd", 1, True),
        ("repd_kd", 2, True),
        ("repd_kd", 4, True),
        ("tf_soft_logits", 2, False),
        ("tf_soft_logits", 4, False),
    ],
)
def test_published_numbers(golden, close, name, temperature, scaled):
    data = golden(name)
    student = tf.constant(data["in/student"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = soft_logits_loss(
            student,
            data["in/teacher"],
            temperature=float(temperature),
            scale_by_temperature=scaled,
        )
    np.testing.assert_allclose(loss, data[f"T{temperature}/loss"], rtol=1e-4)
    gradient = tape.gradient(loss, student)
    close(gradient, data[f"T{temperature}/grad/student"], 1e-3)


def test_standardize_hand_value():
    """Two classes have Z-scores 1 and -1, whatever their logits.

    Student prefers the first, teacher the second; T = 2. The softened log-odds
    are 1 and -1, p = sigmoid(1), KL = (2 p - 1) 1 = tanh(1/2); times T^2 = 4.
    """
    found = soft_logits_loss(
        [[5.0, 1.0]], [[0.0, 0.1]], temperature=2.0, standardize=True
    )
    assert float(found) == pytest.approx(4 * np.tanh(0.5), rel=1e-5)


def test_standardized_student_may_be_any_scaled_teacher():
    teacher = np.random.default_rng(0).normal(size=(4, 6))
    scale, shift = np.array([[[0.1], [1], [3], [9]], [[5], [0], [-2], [1]]])
    student = scale * teacher + shift
    found = soft_logits_loss(student, teacher, standardize=True)
    assert float(found) == pytest.approx(0, abs=1e-12)
    assert float(soft_logits_loss(student, teacher)) > 0.1
    # Turned around, it is not.
    assert float(soft_logits_loss(-teacher, teacher, standardize=True)) > 0.1


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_wrong_temperature(wrong):
    message = f"`temperature` must be positive. Received: temperature={wrong}"
    with pytest.raises(ValueError, match=message):
        SoftLogits(temperature=wrong)
