import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.methods.attention_transfer import (
    AttentionTransfer,
    attention_transfer_loss,
)


def test_published_numbers(golden, close):
    stored = golden("repd_at")
    total = 0.0
    for point in range(2):
        student = tf.constant(stored[f"in/student{point}"])
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = attention_transfer_loss(
                [student], [stored[f"in/teacher{point}"]]
            )
        assert float(loss) == pytest.approx(stored[f"loss{point}"], rel=1e-4)
        gradient = tape.gradient(loss, student)
        close(gradient, stored[f"grad/student{point}"], 1e-3)
        total += float(loss)
    both = attention_transfer_loss(
        *(
            [stored[f"in/{of}{i}"] for i in range(2)]
            for of in ("student", "teacher")
        )
    )
    assert float(both) == pytest.approx(total, rel=1e-6)
    assert total == pytest.approx(stored["loss"], rel=1e-4)


def test_published_numbers_of_the_other_code(golden, close):
    """There the student's second map passes through a square matrix first."""
    stored = golden("tf_at")
    students = [tf.constant(stored[f"in/student{i}"]) for i in range(2)]
    teachers = [stored[f"in/teacher{i}"] for i in range(2)]
    kernel = tf.constant(stored["var/Attention/Map/fc/weights"])
    with tf.GradientTape() as tape:
        tape.watch([students, kernel])
        mapped = tf.einsum("bhwc,cd->bhwd", students[1], kernel)
        method = AttentionTransfer()
        features = [students[0], mapped], teachers
        terms = method.call(*(Features(None, maps) for maps in features), None)
        loss = terms["attention_transfer"]
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    found, of_kernel = tape.gradient(loss, [students, kernel])
    for point, gradient in enumerate(found):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    close(of_kernel, stored["grad/var/Attention/Map/fc/weights"], 1e-3)


def test_hand_values():
    """Two positions; student (3, 4); teacher (0, 2) and (0, -2).

    power 1: Q^S = (3, 4) / 5, Q^T = (0, 1): the mean of 0.6^2 and 0.2^2 is
    0.2. power 2: Q^S = (9, 16) / sqrt 337, so the loss is
    (2 - 2 x 16 / sqrt 337) / 2 = 1 - 16 / sqrt 337.
    """
    student, teacher = [[[3.0], [4.0]]], [[[0.0, 0.0], [2.0, -2.0]]]
    for power, expected in ((1, 0.2), (2, 1 - 16 / 337**0.5)):
        found = attention_transfer_loss([student], [teacher], power)
        assert float(found) == pytest.approx(expected, rel=1e-5)
