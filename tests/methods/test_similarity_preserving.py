import pytest
import tensorflow as tf

from keras_mhgd.methods.similarity_preserving import similarity_preserving_loss


def test_published_numbers(golden, close):
    stored = golden("repd_sp")
    total = 0.0
    for point in range(2):
        student = tf.constant(stored[f"in/student{point}"])
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = similarity_preserving_loss(
                [student], [stored[f"in/teacher{point}"]]
            )
        assert float(loss) == pytest.approx(stored[f"loss{point}"], rel=1e-4)
        gradient = tape.gradient(loss, student)
        close(gradient, stored[f"grad/student{point}"], 1e-3)
        total += float(loss)
    both = similarity_preserving_loss(
        *(
            [stored[f"in/{of}{i}"] for i in range(2)]
            for of in ("student", "teacher")
        )
    )
    assert float(both) == pytest.approx(total, rel=1e-6)
    assert total == pytest.approx(stored["loss"], rel=1e-4)


def test_hand_value():
    """Two samples; student (1, 0), (0, 1); teacher (1, 0), (1, 0).

    G^S = I, G^T = 1/sqrt(2) everywhere. Squares: 2 (1 - 1/sqrt 2)^2 +
    2 / 2 = 4 - 2 sqrt 2, over 2^2.
    """
    student, teacher = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    found = similarity_preserving_loss([student], [teacher])
    assert float(found) == pytest.approx(1 - 2**-0.5, rel=1e-6)
