import pytest
import tensorflow as tf

from keras_mhgd.methods.nst import neuron_selectivity_loss


def test_published_numbers(golden, close):
    stored = golden("repd_nst")
    total = 0.0
    for point in range(2):
        student = tf.constant(stored[f"in/student{point}"])
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = neuron_selectivity_loss(
                [student], [stored[f"in/teacher{point}"]]
            )
        assert float(loss) == pytest.approx(stored[f"loss{point}"], rel=1e-4)
        gradient = tape.gradient(loss, student)
        close(gradient, stored[f"grad/student{point}"], 1e-3)
        total += float(loss)
    both = neuron_selectivity_loss(
        *(
            [stored[f"in/{of}{i}"] for i in range(2)]
            for of in ("student", "teacher")
        )
    )
    assert float(both) == pytest.approx(total, rel=1e-6)
    assert total == pytest.approx(stored["loss"], rel=1e-4)


def test_hand_value():
    """Two positions; student channel (3, 4) / 5; teacher (0, 1) and (1, 0).

    k(s, s) = 1; teacher pairs 1, 0, 0, 1: mean 1/2; pairs 0.8^2 and 0.6^2:
    mean 1/2. 1 + 1/2 - 1 = 1/2.
    """
    student, teacher = [[[3.0], [4.0]]], [[[0.0, 2.0], [1.0, 0.0]]]
    found = neuron_selectivity_loss([student], [teacher])
    assert float(found) == pytest.approx(0.5, rel=1e-6)
