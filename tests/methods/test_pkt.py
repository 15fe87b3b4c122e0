import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.pkt import PKT, probabilistic_transfer_loss


def test_published_numbers(golden, close):
    data = golden("repd_pkt")
    student = tf.constant(data["in/student"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = probabilistic_transfer_loss(student, data["in/teacher"])
    np.testing.assert_allclose(loss, data["loss"], rtol=1e-4)
    close(tape.gradient(loss, student), data["grad/student"], 1e-3)


def test_hand_value():
    """Orthogonal samples of the student, parallel ones of the teacher.

    c = 1 and 1/2, so p = 2/3 and 1/3; of the teacher 1/2 and 1/2. Each of two
    rows: 1/2 log 3/4 + 1/2 log 3/2 = 1/2 log 9/8; their sum over 4.
    """
    student, teacher = [[1.0, 0.0], [0.0, 2.0]], [[3.0], [1.0]]
    found = probabilistic_transfer_loss(student, teacher)
    assert float(found) == pytest.approx(np.log(9 / 8) / 4, rel=1e-5)


def test_opposite_samples_are_finite():
    """A probability of 0 in the student."""
    student = tf.constant([[1.0, 1.0], [-1.0, -1.0]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = probabilistic_transfer_loss(student, [[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, student)).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`weight` must be 0 or more.*=-1"):
        PKT(weight=-1)
